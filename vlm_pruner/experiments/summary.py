"""From single answers to one line per arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from vlm_pruner.experiments.arms import DENSE, Arm
from vlm_pruner.experiments.statistics import Estimate, accuracy_by_kind, mean_of, mean_over, paired_difference

Records = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class ArmSummary:
    """What one arm achieved. Accuracies are shares; `accuracy` is the plain mean over kinds.

    `difference` is arm minus dense on the same questions. `relative_time` is the median over questions of arm / dense,
    each pair measured within moments of each other, so that a busy spell of the machine does not decide it. Both are
    None without a dense arm.
    """

    arm: Arm
    accuracy: Estimate
    kinds: dict[str, Estimate]
    difference: Estimate | None
    seconds: Estimate
    relative_time: float | None
    kv_bytes: float
    kept: float

    def describe(self) -> dict[str, Any]:
        """Ready for JSON."""
        fields = {name: value for name, value in asdict(self).items() if name != "arm"}
        account = self.arm.accounting
        return {**self.arm.describe(), **fields, "accounting": None if account is None else account.to_dict()}


def summarise(arms: Sequence[Arm], records: Iterable[Mapping[str, Any]], kinds: Sequence[str] = ()) -> list[ArmSummary]:
    """One summary per arm; `kinds` come first and in that order, other kinds of question follow.

    Raises ValueError when an arm did not answer the questions that the first one answered.
    """
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {arm.key: {} for arm in arms}
    for record in records:
        if record["arm"] in by_arm:
            by_arm[record["arm"]][record["question_id"]] = record
    asked = by_arm[arms[0].key]
    for arm in arms:
        if by_arm[arm.key].keys() != asked.keys():
            raise ValueError(f"{arm.key} answered {len(by_arm[arm.key])} questions and {arms[0].key} {len(asked)}")
    dense = next((by_arm[arm.key] for arm in arms if arm.name == DENSE), None)
    present = dict.fromkeys([*kinds, *(record["kind"] for record in asked.values())])
    kind_of = {question: kind for kind in present for question, record in asked.items() if record["kind"] == kind}
    return [_summarise(arm, by_arm[arm.key], dense, kind_of) for arm in arms]


def _summarise(arm: Arm, own: Records, dense: Records | None, kinds: Mapping[int, str]) -> ArmSummary:
    accuracies = accuracy_by_kind(_correct(own), kinds)
    seconds = mean_of([record["seconds"] for record in own.values()])
    difference = relative = None
    if dense is not None:
        relative = median(record["seconds"] / dense[question]["seconds"] for question, record in own.items())
        if arm.name != DENSE:
            difference = paired_difference(_correct(own), _correct(dense), kinds)
    return ArmSummary(
        arm=arm,
        accuracy=mean_over(accuracies.values()),
        kinds=accuracies,
        difference=difference,
        seconds=seconds,
        relative_time=relative,
        kv_bytes=mean_of([record["kv_bytes"] for record in own.values()]).mean,
        kept=mean_of([record["kept"] for record in own.values()]).mean,
    )


def _correct(records: Records) -> dict[int, bool]:
    return {question: record["correct"] for question, record in records.items()}
