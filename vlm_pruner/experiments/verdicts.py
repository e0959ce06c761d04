"""Turns answers into verdicts: accuracies, agreement with the dense model, and paired differences with intervals.

A difference counts as better or worse if its interval excludes 0, with Holm's correction if its corrected p is below
1 - level. Anything else is not distinguishable at this n, which does not mean equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from vlm_pruner.console import DENSE
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.bootstrap import DIFFERENCE, LEVEL, RESAMPLES, SHARE, Interval, PictureBootstrap, holm
from vlm_pruner.experiments.questions import Question

BETTER, WORSE, UNCLEAR = "better", "worse", "not distinguishable"
REFERENCES = (DENSE, "random", "vlm-pruner")


@dataclass(frozen=True)
class Difference:
    """An arm minus a reference on the same questions, mean over kinds and kind by kind. p_holm: over the report."""

    interval: Interval
    kinds: dict[str, Interval]
    p_holm: float
    verdict: str

    def describe(self) -> dict[str, Any]:
        kinds = {kind: {"mean": i.mean, "low": i.low, "high": i.high} for kind, i in self.kinds.items()}
        return {**asdict(self.interval), "p_holm": self.p_holm, "verdict": self.verdict, "kinds": kinds}


@dataclass(frozen=True)
class Cell:
    """One arm on one benchmark. against: by name of the reference; those at the arm's own budget, and dense.

    calibration: expected calibration error. length: mean number of an answer's tokens. None if answers lack it.
    """

    benchmark: str
    arm: Arm
    accuracy: Interval
    kinds: dict[str, Interval]
    loyalty: Interval | None
    against: dict[str, Difference]
    calibration: Interval | None = None
    length: float | None = None

    def describe(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "benchmark": self.benchmark,
            "arm": self.arm.key,
            "n": self.accuracy.n,
            "accuracy": _bounds(self.accuracy),
            "kinds": {kind: {**_bounds(interval), "n": interval.n} for kind, interval in self.kinds.items()},
            "loyalty": None if self.loyalty is None else _bounds(self.loyalty),
            "calibration_error": None if self.calibration is None else _bounds(self.calibration),
            "answer_tokens": self.length,
            "against": {name: difference.describe() for name, difference in self.against.items()},
        }


@dataclass(frozen=True)
class Rules:
    """resamples, seed, level: of the bootstrap. holm: whether verdicts are corrected for the number of comparisons.

    references: names of the arms to compare all others with, at their own budget.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL
    holm: bool = False
    references: tuple[str, ...] = REFERENCES


def judge(
    arms: Sequence[Arm],
    benchmarks: Mapping[str, Sequence[Question]],
    records: Sequence[Mapping[str, Any]],
    rules: Rules,
) -> list[Cell]:
    """A cell for each arm and benchmark. Raises ValueError if an answer is missing."""
    cells = []
    for name, questions in benchmarks.items():
        mine = {(r["arm"], r["question_id"]): r for r in records if r["benchmark"] == name}
        cells += _Benchmark(name, questions, arms, mine, rules).cells()
    return _corrected(cells, rules)


def answerable(
    dense: Arm, benchmarks: Mapping[str, Sequence[Question]], records: Sequence[Mapping[str, Any]], rules: Rules
) -> tuple[dict[str, list[Question]], list[str]]:
    """Questions of the kinds that the dense model can answer, and the kinds left out.

    A kind counts if the dense model's accuracy is, by its interval, above the share of the most frequent answer. If
    the model guesses, no method can lose, which only dilutes differences. Raises ValueError if no kind counts.
    """
    kept: dict[str, list[Question]] = {}
    left_out: list[str] = []
    for name, questions in benchmarks.items():
        mine = {(r["arm"], r["question_id"]): r for r in records if r["benchmark"] == name}
        accuracy = _Benchmark(name, questions, [dense], mine, rules).cells()[0].kinds
        guessed = [kind for kind, interval in accuracy.items() if interval.low <= _most_frequent(questions, kind)]
        kept[name] = [question for question in questions if question.kind not in guessed]
        left_out += [kind for kind in guessed if kind not in left_out]
    if not all(kept.values()):
        raise ValueError("the dense model answers no kind of question better than one fixed answer would")
    return kept, left_out


def _most_frequent(questions: Sequence[Question], kind: str) -> float:
    answers = Counter(question.answer for question in questions if question.kind == kind)
    return max(answers.values()) / answers.total()


def comparisons(cells: Sequence[Cell]) -> int:
    return sum(len(cell.against) for cell in cells)


class _Benchmark:
    def __init__(
        self,
        name: str,
        questions: Sequence[Question],
        arms: Sequence[Arm],
        records: Mapping[tuple[str, int], Mapping[str, Any]],
        rules: Rules,
    ) -> None:
        self.name, self.arms, self.references = name, arms, rules.references
        self.bootstrap = PictureBootstrap(
            [q.image for q in questions], [q.kind for q in questions], rules.resamples, rules.seed, rules.level
        )
        self.correct: dict[str, list[float]] = {}
        self.texts: dict[str, list[str]] = {}
        self.confidences: dict[str, list[float]] = {}
        self.lengths: dict[str, list[int]] = {}
        for arm in arms:
            missing = sum((arm.key, q.question_id) not in records for q in questions)
            if missing:
                raise ValueError(f"{arm.key} has not answered {missing} of {len(questions)} questions of {name}")
            own = [records[arm.key, q.question_id] for q in questions]
            self.correct[arm.key] = [float(record["correct"]) for record in own]
            self.texts[arm.key] = [record["text"] for record in own]
            self.confidences[arm.key] = [record["confidence"] for record in own if "confidence" in record]
            self.lengths[arm.key] = [record["tokens"] for record in own if "tokens" in record]

    def cells(self) -> list[Cell]:
        return [self._cell(arm) for arm in self.arms]

    def _cell(self, arm: Arm) -> Cell:
        correct = self.correct[arm.key]
        against = {name: self._difference(arm, other) for name, other in self._references(arm).items()}
        return Cell(
            self.name,
            arm,
            self.bootstrap.over_kinds(correct, SHARE),
            self.bootstrap.by_kind(correct, SHARE),
            self._loyalty(arm),
            against,
            self._calibration(arm),
            fmean(self.lengths[arm.key]) if self.lengths[arm.key] else None,
        )

    def _calibration(self, arm: Arm) -> Interval | None:
        sure = self.confidences[arm.key]
        return self.bootstrap.calibration_error(sure, self.correct[arm.key]) if sure else None

    def _references(self, arm: Arm) -> dict[str, Arm]:
        """What it is compared with, by name: the dense model, and references at its own budget.

        The dense model is compared only where it is no reference itself.
        """
        if arm.is_dense and DENSE in self.references:
            return {}
        budget = arm.key.partition("@")[2]
        found = {}
        for name in self.references:
            for other in self.arms:
                same = arm.is_dense or not other.has_budget or other.key.partition("@")[2] == budget
                if other.name == name and same and other != arm:
                    found[name] = other
        return found

    def _difference(self, arm: Arm, other: Arm) -> Difference:
        values = [a - b for a, b in zip(self.correct[arm.key], self.correct[other.key], strict=True)]
        interval = self.bootstrap.over_kinds(values, DIFFERENCE)
        return Difference(interval, self.bootstrap.by_kind(values, DIFFERENCE), interval.p, _verdict(interval))

    def _loyalty(self, arm: Arm) -> Interval | None:
        """Share of answers that equal the dense model's, right or wrong."""
        dense = next((other for other in self.arms if other.is_dense), None)
        if dense is None or arm is dense:
            return None
        pairs = zip(self.texts[arm.key], self.texts[dense.key], strict=True)
        return self.bootstrap.over_kinds([float(ours == theirs) for ours, theirs in pairs], SHARE)


def _verdict(interval: Interval) -> str:
    return (BETTER if interval.mean > 0 else WORSE) if interval.excludes_zero else UNCLEAR


def _corrected(cells: Sequence[Cell], rules: Rules) -> list[Cell]:
    """Corrects p values over all comparisons of the report, and verdicts too if the rules say so."""
    corrected = iter(holm([difference.interval.p for cell in cells for difference in cell.against.values()]))

    def correct(difference: Difference) -> Difference:
        p = next(corrected)
        verdict = UNCLEAR if rules.holm and p >= 1 - rules.level else difference.verdict
        return replace(difference, p_holm=p, verdict=verdict)

    return [replace(cell, against={name: correct(d) for name, d in cell.against.items()}) for cell in cells]


def _bounds(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
