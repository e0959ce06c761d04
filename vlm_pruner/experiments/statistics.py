"""Accuracies and differences with their standard errors.

Questions are treated as independent draws within a kind; several questions about one picture are a little less than
that, so the true errors are slightly larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vlm_pruner.scoring import stats


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error (both in the unit of the data), and the number of observations."""

    mean: float
    standard_error: float
    n: int


def proportion(outcomes: Sequence[bool]) -> Estimate:
    """Share of true outcomes with its binomial standard error."""
    _refuse_empty(outcomes, "a proportion")
    share = sum(outcomes) / len(outcomes)
    return Estimate(share, stats.binomial_stderr(share, len(outcomes)), len(outcomes))


def mean_of(values: Sequence[float]) -> Estimate:
    """Mean with the standard error of the sample."""
    _refuse_empty(values, "a mean")
    return Estimate(stats.mean(values), stats.mean_stderr(values), len(values))


def mean_over(parts: Iterable[Estimate]) -> Estimate:
    """Plain mean of independent estimates (every kind counts the same) with its propagated standard error."""
    parts = list(parts)
    _refuse_empty(parts, "a mean over kinds")
    error = stats.mean_of_independent([part.standard_error for part in parts])
    return Estimate(stats.mean([part.mean for part in parts]), error, sum(part.n for part in parts))


def _refuse_empty(values: Sequence[object], what: str) -> None:
    if not values:
        raise ValueError(f"{what} of nothing is undefined; there must be at least one question of every kind")


def accuracy_by_kind(correct: Mapping[int, bool], kinds: Mapping[int, str]) -> dict[str, Estimate]:
    """Accuracy per kind; both mappings are keyed by question_id, and `kinds` fixes the order of the result."""
    return {
        kind: proportion([correct[question] for question, its in kinds.items() if its == kind])
        for kind in dict.fromkeys(kinds.values())
    }


def paired_difference(ours: Mapping[int, bool], theirs: Mapping[int, bool], kinds: Mapping[int, str]) -> Estimate:
    """Mean over kinds of `ours - theirs` on the same questions, with the standard error of the paired difference."""
    return mean_over(
        mean_of([float(ours[question]) - float(theirs[question]) for question, its in kinds.items() if its == kind])
        for kind in dict.fromkeys(kinds.values())
    )
