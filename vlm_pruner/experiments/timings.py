"""Times of a timed run, arm by arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from vlm_pruner.experiments.arms import Arm


@dataclass(frozen=True)
class Measured:
    """Means over questions; `relative_time` is the median over questions of this arm's time / the dense model's.

    Both times of a pair were measured within moments of each other, so a busy spell of the machine cancels out. It is
    None without a dense arm. kept: visual tokens per picture from the pruned layer on.
    """

    seconds: float
    relative_time: float | None
    kv_bytes: float
    kept: float


def measure(arms: Sequence[Arm], records: Iterable[Mapping[str, Any]]) -> dict[str, Measured]:
    """By arm's key."""
    own: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {arm.key: {} for arm in arms}
    for record in records:
        if record["arm"] in own:
            own[record["arm"]][record["benchmark"], record["question_id"]] = record
    dense = next((own[arm.key] for arm in arms if arm.is_dense), None)
    return {arm.key: _measure(arm, own[arm.key], dense) for arm in arms}


def _measure(arm: Arm, own: Mapping[Any, Mapping[str, Any]], dense: Mapping[Any, Mapping[str, Any]] | None) -> Measured:
    ratios = [] if dense is None else [record["seconds"] / dense[asked]["seconds"] for asked, record in own.items()]
    return Measured(
        seconds=fmean(record["seconds"] for record in own.values()),
        relative_time=median(ratios) if ratios else None,
        kv_bytes=fmean(record["kv_bytes"] for record in own.values()),
        kept=fmean(arm.tokens if record["kept"] is None else len(record["kept"]) for record in own.values()),
    )
