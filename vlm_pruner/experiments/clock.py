"""Measures what an answer costs on this machine, arm by arm, and which smaller picture costs the same.

One question at a time, because that is how long a user waits. Arms take turns, so that a slow minute of the machine
affects all alike; figures are medians.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from vlm_pruner.cost.budgets import Budget
from vlm_pruner.experiments.answerer import Answerer
from vlm_pruner.experiments.arms import Arm, ModelFacts, resize_arm, turned
from vlm_pruner.experiments.questions import Question

DECODED = 4  # tokens after the first that a decoding step is timed over
SIZES = 12  # of smaller pictures that are timed


@dataclass(frozen=True)
class Cost:
    """Median seconds: of the vision tower with its projector, of the prefill, and of each later token.

    vision: None where the tower runs within the prefill and is part of its time.
    """

    vision: float | None
    prefill: float
    token: float

    @property
    def first_token(self) -> float:
        return (self.vision or 0.0) + self.prefill

    def answer(self, tokens: float) -> float:
        """Seconds of a whole answer of so many tokens."""
        return self.first_token + max(0.0, tokens - 1) * self.token

    def describe(self) -> dict[str, Any]:
        return {**asdict(self), "first_token": self.first_token}


def measure(answerer: Answerer, arms: Sequence[Arm], questions: Sequence[Question]) -> dict[str, Cost]:
    """By arm's key. Each question is one turn of all arms; the first turn, which pays for set-up, does not count."""
    seconds: dict[str, list[tuple[float | None, float, float]]] = {arm.key: [] for arm in arms}
    for turn, question in enumerate([questions[0], *questions]):
        for arm in turned(arms, turn):
            measured = _once(answerer, arm, question)
            if turn:
                seconds[arm.key].append(measured)
    return {key: _medians(own) for key, own in seconds.items()}


def _medians(measured: Sequence[tuple[float | None, float, float]]) -> Cost:
    vision, prefill, token = zip(*measured, strict=True)
    apart = [seconds for seconds in vision if seconds is not None]
    return Cost(median(apart) if apart else None, median(prefill), median(token))


def _once(answerer: Answerer, arm: Arm, question: Question) -> tuple[float | None, float, float]:
    answerer.forget()
    method = arm.method_for(0)
    (first,) = answerer.answer([question], method, arm.shown, exactly=1)
    (longer,) = answerer.answer([question], method, arm.shown, exactly=1 + DECODED)
    return first.vision_seconds, first.seconds, max(0.0, longer.seconds - first.seconds) / DECODED


def smaller_pictures(facts: ModelFacts) -> list[Arm]:
    """Square pictures from small to whole, to find those that cost as much as a pruned arm."""
    side = round(facts.visual**0.5)
    sides = sorted({max(1, round(side * step / SIZES)) for step in range(1, SIZES + 1)})
    return [resize_arm(Budget("tokens", side**2), facts) for side in sides]


def rivals(arms: Sequence[Arm], sizes: Sequence[Arm], costs: Mapping[str, Cost]) -> dict[str, Arm]:
    """For each arm with a method the largest picture among `sizes` whose first token takes no longer.

    By the arm's key; the smallest picture if all take longer.
    """
    found = {}
    for arm in (arm for arm in arms if arm.method is not None):
        affordable = [one for one in sizes if costs[one.key].first_token <= costs[arm.key].first_token]
        found[arm.key] = max(affordable or sizes[:1], key=lambda one: one.tokens)
    return found


@dataclass(frozen=True)
class Timing:
    """Costs, and the smaller picture that is as slow, by arm's key. more: those pictures that are no arms yet."""

    costs: dict[str, Cost] = field(default_factory=dict)
    rivals: dict[str, Arm] = field(default_factory=dict)
    more: list[Arm] = field(default_factory=list)


def timing(
    answerer: Answerer, arms: Sequence[Arm], facts: ModelFacts, questions: Sequence[Question], path: Path,
    about: Mapping[str, Any],
) -> Timing:  # fmt: skip
    """Measures, or reads from `path` what a run of the same arms has measured: a resumed run needs the same rivals.

    about: what else the measurements depend on.
    """
    sizes = smaller_pictures(facts)
    known = {arm.key for arm in arms}
    timed = [*arms, *(arm for arm in sizes if arm.key not in known)]
    costs = _read(path, about, [arm.key for arm in timed])
    if costs is None:
        costs = measure(answerer, timed, questions)
        _write(path, about, costs)
    found = rivals(arms, sizes, costs)
    wanted = {arm.key for arm in found.values()} - known
    return Timing(costs, found, [arm for arm in sizes if arm.key in wanted])


def _read(path: Path, about: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Cost] | None:
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["about"] != about or set(found["seconds"]) != set(keys):
        return None
    return {key: Cost(**found["seconds"][key]) for key in keys}


def _write(path: Path, about: Mapping[str, Any], costs: Mapping[str, Cost]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = {key: asdict(cost) for key, cost in costs.items()}
    path.write_text(json.dumps({"about": about, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
