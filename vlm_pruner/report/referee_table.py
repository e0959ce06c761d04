"""Prune or resize: the verdict in words, the duels behind it, and what each arm's answer costs."""

from __future__ import annotations

from vlm_pruner.console import COLUMNS, wrapped
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.clock import Cost
from vlm_pruner.experiments.experiment import Experiment
from vlm_pruner.experiments.referee import FLOOR, TIME, TOKENS, Match, budget_of
from vlm_pruner.experiments.verdicts import Cell
from vlm_pruner.report.compare_table import MARKS, difference, narrow, title
from vlm_pruner.report.table import blocks

DUELS = ["method", "time", "- same tokens", "size", "- same time", "- blind", "fails"]
COSTS = ["cost of an answer", "vision", "prefill", "token", "tokens", "answer", "ECE"]


def text(done: Experiment) -> str:
    """At most 80 columns. Empty where no smaller picture was compared."""
    parts = []
    for match in done.matches:
        duels = [(_title(match, budget_of(arm)), _duel_row(match, arm)) for arm in _pruned(match)]
        parts += [wrapped(match.verdict, "  "), blocks(DUELS, duels, width=COLUMNS)]
        own = [cell for cell in done.cells if cell.benchmark == match.benchmark]
        costs = [("", row) for cell in own if any((row := _cost_row(cell, match.costs.get(cell.arm.key)))[1:])]
        parts += [blocks(COSTS, costs, width=COLUMNS)] if costs else []
    return "\n\n".join([*parts, "\n".join(wrapped(note, "  ") for note in _notes(done))]) if parts else ""


def _pruned(match: Match) -> list[Arm]:
    return list({duel.arm.key: duel.arm for duel in match.duels if duel.arm.method is not None}.values())


def _title(match: Match, budget: str) -> str:
    split = next((split for split in match.splits if split.budget == budget), None)
    if split is None:
        return title(budget)
    return f"{title(budget)}; resize fails on {split.fails} of {split.fails + split.holds} that dense answers right"


def _duel_row(match: Match, arm: Arm) -> list[str]:
    same_tokens, same_time, floor = (match.of(arm, kind) for kind in (TOKENS, TIME, FLOOR))
    cost, split = match.costs.get(arm.key), next((s for s in match.splits if arm.key in s.accuracy), None)
    return [
        arm.label,
        "" if cost is None else f"{1000 * cost.first_token:.0f}",
        difference(same_tokens),
        "" if same_time is None else _size(same_time.opponent),
        difference(same_time),
        "" if floor is None else f"{100 * floor.interval.mean:+.1f}{MARKS[floor.verdict]}",
        "" if split is None else f"{100 * split.accuracy[arm.key].mean:.0f}",
    ]


def _size(arm: Arm) -> str:
    """Of a smaller picture: 8x8, or its tokens where pictures differ in shape."""
    return "x".join(map(str, arm.grid)) if arm.grid else str(arm.tokens) if arm.sight else ""


def _cost_row(cell: Cell, cost: Cost | None) -> list[str]:
    arm, length = cell.arm, cell.length
    whole = None if cost is None or length is None else cost.answer(length)
    seconds = (None, None, None) if cost is None else (cost.vision, cost.prefill, cost.token)
    vision, prefill, token, answer = ("" if s is None else f"{1000 * s:.1f}" for s in (*seconds, whole))
    name = f"{arm.label} {budget_of(arm)}" if arm.has_budget else arm.label
    tokens = "" if length is None else f"{length:.1f}"
    return [name, vision, prefill, token, tokens, answer, "" if cell.calibration is None else narrow(cell.calibration)]


def _notes(done: Experiment) -> list[str]:
    settings, costs = done.settings, [cost for match in done.matches for cost in match.costs.values()]
    said = [
        f"differences: the arm minus resize or blind, in points, paired, [{100 * settings.rules.level:g} % interval]; "
        "their marks are corrected for the number of duels (Holm)",
        "fails: accuracy in % on the questions that dense answers right and the smaller picture wrong, a set on which "
        "resize scores 0 by definition",
    ]
    if costs:
        said += [
            f"time: vision tower and prefill in ms (one question at a time, median of {settings.clock}, on "
            f"{settings.device}); size: of the largest smaller picture that takes no longer, resize at the same time",
            "cost: ms of tower and projector, of the prefill and of each later token; answer: of the whole",
        ]
    if any(cost.vision is None for cost in costs):
        said.append("prefill: with the vision tower, which was not timed apart")
    said.append(
        "tokens: of an answer; ECE: expected calibration error of the answers' probabilities in points, 10 bins"
    )
    return said


def markdown(done: Experiment) -> str:
    """The verdicts, and the printed tables."""
    verdicts = "\n\n".join(match.verdict for match in done.matches)
    return f"\n\n## Prune or resize\n\n{verdicts}\n\n```text\n{text(done)}\n```" if done.matches else ""
