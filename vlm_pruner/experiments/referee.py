"""Prune or resize? Duels of each pruned arm with the smaller picture, and a verdict in words.

At equal tokens the opponent is the `resize` arm of the same budget. At equal time it is the largest smaller picture
whose first token (vision tower and prefill, measured) takes no longer. The floor is `blind`, which sees no picture.
Verdicts are corrected by Holm's method for the number of duels, because the best of many arms wins some by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlm_pruner.experiments.arms import BLIND, DENSE, RESIZE, Arm
from vlm_pruner.experiments.bootstrap import DIFFERENCE, SHARE, Interval, PictureBootstrap, holm
from vlm_pruner.experiments.clock import Cost
from vlm_pruner.experiments.questions import Question
from vlm_pruner.experiments.verdicts import BETTER, UNCLEAR, WORSE, Rules

TOKENS, TIME, FLOOR = "equal tokens", "equal time", "blind"


@dataclass(frozen=True)
class Duel:
    """An arm minus its opponent, on the same questions. p_holm, verdict: corrected over all duels of the report."""

    arm: Arm
    kind: str
    opponent: Arm
    interval: Interval
    p_holm: float = 1.0
    verdict: str = UNCLEAR

    def describe(self) -> dict[str, Any]:
        found = {"mean": self.interval.mean, "low": self.interval.low, "high": self.interval.high}
        return {"arm": self.arm.key, "kind": self.kind, "opponent": self.opponent.key, **found,
                "p_holm": self.p_holm, "verdict": self.verdict}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Questions that dense answers right, split by whether the smaller picture of a budget fails on them.

    fails: number of them. accuracy: of each arm of that budget on those; None where there are none.
    """

    budget: str
    fails: int
    holds: int
    accuracy: dict[str, Interval]

    def describe(self) -> dict[str, Any]:
        shares = {key: {"mean": i.mean, "low": i.low, "high": i.high} for key, i in self.accuracy.items()}
        return {"budget": self.budget, "resize_fails": self.fails, "resize_holds": self.holds, "accuracy": shares}


@dataclass(frozen=True)
class Match:
    """One benchmark's duels. verdict: the answer in words."""

    benchmark: str
    n: int
    duels: list[Duel]
    splits: list[Split]
    costs: Mapping[str, Cost] = field(default_factory=dict)

    def of(self, arm: Arm, kind: str) -> Duel | None:
        return next((duel for duel in self.duels if duel.arm == arm and duel.kind == kind), None)

    @property
    def verdict(self) -> str:
        return _verdict(self)

    def describe(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark, "n": self.n, "verdict": self.verdict,
            "duels": [duel.describe() for duel in self.duels], "splits": [split.describe() for split in self.splits],
            "costs": {key: cost.describe() for key, cost in self.costs.items()},
        }  # fmt: skip


def matches(
    arms: Sequence[Arm], benchmarks: Mapping[str, Sequence[Question]], records: Sequence[Mapping[str, Any]],
    rules: Rules, costs: Mapping[str, Cost], rivals: Mapping[str, Arm],
) -> list[Match]:  # fmt: skip
    """A match per benchmark; none where no smaller picture was compared."""
    pruned = [arm for arm in arms if arm.method is not None]
    if not pruned or not any(arm.name == RESIZE for arm in arms):
        return []
    found = []
    for name, questions in benchmarks.items():
        mine = {(r["arm"], r["question_id"]): float(r["correct"]) for r in records if r["benchmark"] == name}
        correct = {arm.key: [mine[arm.key, q.question_id] for q in questions] for arm in arms}
        made = PictureBootstrap(
            [q.image for q in questions], [q.kind for q in questions], rules.resamples, rules.seed, rules.level
        )
        pairs = [(arm, kind, other) for arm in pruned for kind, other in _opponents(arm, arms, rivals).items()]
        pairs += _floors_of_opponents(pairs, arms)
        duels = [
            Duel(arm, kind, other, made.over_kinds(_minus(correct[arm.key], correct[other.key]), DIFFERENCE))
            for arm, kind, other in pairs
        ]
        splits = _splits(arms, questions, correct, rules)
        found.append(Match(name, len(questions), duels, splits, costs))
    return _corrected(found, rules)


def _opponents(arm: Arm, arms: Sequence[Arm], rivals: Mapping[str, Arm]) -> dict[str, Arm]:
    found = {}
    for other in arms:
        if other.name == RESIZE and budget_of(other) == budget_of(arm):
            found[TOKENS] = other
        if arm.key in rivals and other.key == rivals[arm.key].key:
            found[TIME] = other
        if other.name == BLIND:
            found[FLOOR] = other
    return found


def _floors_of_opponents(pairs: Sequence[tuple[Arm, str, Arm]], arms: Sequence[Arm]) -> list[tuple[Arm, str, Arm]]:
    """Smaller pictures against the question alone: one that is not shown to beat it is not recommended either."""
    blind = next((arm for arm in arms if arm.name == BLIND), None)
    smaller = {other.key: other for _, _, other in pairs if other.name == RESIZE}
    return [] if blind is None else [(other, FLOOR, blind) for other in smaller.values()]


def budget_of(arm: Arm) -> str:
    return arm.key.partition("@")[2]


def _minus(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _splits(
    arms: Sequence[Arm], questions: Sequence[Question], correct: Mapping[str, Sequence[float]], rules: Rules
) -> list[Split]:
    """One per budget at which pruned arms and a smaller picture were compared, if dense was too."""
    dense = next((arm for arm in arms if arm.name == DENSE), None)
    splits = []
    for resize in (arm for arm in arms if arm.name == RESIZE and dense is not None):
        own = [arm for arm in arms if arm.method is not None and budget_of(arm) == budget_of(resize)]
        if dense is None or not own:
            continue
        answered = [index for index, right in enumerate(correct[dense.key]) if right]
        fails = [index for index in answered if not correct[resize.key][index]]
        accuracy = {}
        if fails:
            pictures = [questions[index].image for index in fails]
            made = PictureBootstrap(pictures, ["all"] * len(fails), rules.resamples, rules.seed, rules.level)
            accuracy = {a.key: made.over_kinds([correct[a.key][index] for index in fails], SHARE) for a in own}
        splits.append(Split(budget_of(resize), len(fails), len(answered) - len(fails), accuracy))
    return splits


def _corrected(found: Sequence[Match], rules: Rules) -> list[Match]:
    corrected = iter(holm([duel.interval.p for match in found for duel in match.duels]))

    def settled(duel: Duel) -> Duel:
        p = next(corrected)
        clear = p < 1 - rules.level and duel.interval.excludes_zero
        return replace(duel, p_holm=p, verdict=(BETTER if duel.interval.mean > 0 else WORSE) if clear else UNCLEAR)

    return [replace(match, duels=[settled(duel) for duel in match.duels]) for match in found]


# The verdict in words


def _verdict(match: Match) -> str:
    """One paragraph: what to use at each budget, or that it is not shown."""
    budgets = list(dict.fromkeys(budget_of(duel.arm) for duel in match.duels))
    said = [sentence for budget in budgets if (sentence := _at_budget(match, budget))]
    kind = TIME if any(duel.kind == TIME for duel in match.duels) else TOKENS
    how = "at equal time (vision tower and prefill on this machine)" if kind == TIME else "at equal tokens, not timed"
    start = f"Prune or resize, for this model and these {match.n} questions ({match.benchmark}), {how}:"
    return " ".join([start, *said])


def _at_budget(match: Match, budget: str) -> str:
    duels = [duel for duel in match.duels if budget_of(duel.arm) == budget and duel.arm.name != "random"]
    timed = any(duel.kind == TIME for duel in duels)
    own = [duel for duel in duels if duel.kind == (TIME if timed else TOKENS)]
    if not own:
        return ""
    seeing = [duel for duel in own if _above_floor(match, duel.arm)]
    better = [duel for duel in seeing if duel.verdict == BETTER]
    label = f"{budget} tokens" if budget.isdigit() else budget
    if better:
        best = max(better, key=lambda duel: duel.interval.mean)
        others = {1: "", 2: "; so does one other"}.get(len(better), f"; so do {len(better) - 1} others")
        return f"At {label}, prune with {best.arm.label}, which beats {_opponent(best)} by {_points(best)}{others}."
    if all(duel.verdict == WORSE for duel in own):
        closest = max(own, key=lambda duel: duel.interval.mean)
        if not _above_floor(match, closest.opponent):
            return (
                f"At {label}, use neither: every pruned arm does worse than the smaller picture, which is not shown to "
                "do better than the question alone."
            )
        return (
            f"At {label}, resize: every pruned arm does worse, {closest.arm.label} least so, by {_points(closest)} "
            f"against {_opponent(closest)}."
        )
    if not seeing and any(duel.kind == FLOOR for duel in duels):
        return f"At {label}, use neither: no pruned arm is shown to do better than the question alone."
    closest = max(own, key=lambda duel: duel.interval.mean)
    return (
        f"At {label} it is not shown: the best pruned arm, {closest.arm.label}, differs from {_opponent(closest)} by "
        f"{_points(closest)}."
    )


def _above_floor(match: Match, arm: Arm) -> bool:
    floor = match.of(arm, FLOOR)
    return floor is None or floor.verdict == BETTER


def _opponent(duel: Duel) -> str:
    if duel.opponent.shown is None:
        return "the whole picture"
    if duel.opponent.grid is None:
        return f"the picture resized to at most {duel.opponent.tokens} tokens"
    rows, columns = duel.opponent.grid
    return f"the picture resized to {rows} x {columns} tokens"


def _points(duel: Duel) -> str:
    interval = duel.interval
    low, high = (f"{100 * bound:+.1f}" for bound in (interval.low, interval.high))
    return f"{100 * interval.mean:+.1f} [{low}, {high}] points"
