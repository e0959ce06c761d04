"""Prune or resize: the verdict in words, the duels behind it, and what each arm's answer costs."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.clock import Cost
from vlm_pruner.experiments.experiment import Experiment
from vlm_pruner.experiments.referee import FLOOR, TIME, TOKENS, Duel, Match, budget_of
from vlm_pruner.experiments.verdicts import Cell
from vlm_pruner.report.compare_table import MARKS, by_budget, short_name
from vlm_pruner.report.results import wrapped
from vlm_pruner.report.table import render

DUELS = ["prune or resize", "time", "- resize, same tokens", "size", "- resize, same time", "- blind", "fails"]
COSTS = ["cost of an answer", "vision", "prefill", "token", "tokens", "answer", "ECE"]


def text(done: Experiment) -> str:
    """Empty where no smaller picture was compared."""
    parts = []
    for match in done.matches:
        cells = {cell.arm.key: cell for cell in done.cells if cell.benchmark == match.benchmark}
        parts += ["\n".join(wrapped(match.verdict)), _duels(match), _costs(match, cells)]
    return "\n\n".join([*parts, "\n".join(_notes(done))]) if parts else ""


def _duels(match: Match) -> str:
    arms = list({duel.arm.key: duel.arm for duel in match.duels if duel.arm.method is not None}.values())
    groups = []
    for budget in dict.fromkeys(budget_of(arm) for arm in arms):
        split = next((split for split in match.splits if split.budget == budget), None)
        title = f"{budget} tokens" if budget.isdigit() else budget
        if split is not None:
            title += f"; resize fails on {split.fails} of {split.fails + split.holds} that dense answers right"
        groups.append((title, [_duel_row(match, arm) for arm in arms if budget_of(arm) == budget]))
    return by_budget(DUELS, groups)


def _duel_row(match: Match, arm: Arm) -> list[str]:
    same_tokens, same_time, floor = (match.of(arm, kind) for kind in (TOKENS, TIME, FLOOR))
    cost, split = match.costs.get(arm.key), next((s for s in match.splits if arm.key in s.accuracy), None)
    size = "" if same_time is None else _size(same_time.opponent)
    return [
        short_name(arm),
        "" if cost is None else f"{1000 * cost.first_token:.0f}",
        _difference(same_tokens),
        size,
        _difference(same_time),
        "" if floor is None else f"{100 * floor.interval.mean:+.1f}{MARKS[floor.verdict]}",
        "" if split is None else f"{100 * split.accuracy[arm.key].mean:.0f}",
    ]


def _size(arm: Arm) -> str:
    """Of a smaller picture: 8x8, or its tokens where pictures differ in shape."""
    return "x".join(map(str, arm.grid)) if arm.grid else str(arm.tokens) if arm.sight else ""


def _difference(duel: Duel | None) -> str:
    if duel is None:
        return ""
    low, high = (f"{100 * bound:.1f}" for bound in (duel.interval.low, duel.interval.high))
    return f"{100 * duel.interval.mean:+.1f} [{low},{high}]{MARKS[duel.verdict]}"


def _costs(match: Match, cells: dict[str, Cell]) -> str:
    rows = [_cost_row(cell, match.costs.get(key)) for key, cell in cells.items()]
    return render(COSTS, rows)


def _cost_row(cell: Cell, cost: Cost | None) -> list[str]:
    arm, length = cell.arm, cell.length
    name = f"{short_name(arm)} {budget_of(arm)}" if arm.has_budget else arm.label
    seconds = (
        ["", "", ""]
        if cost is None
        else ["" if s is None else f"{1000 * s:.1f}" for s in (cost.vision, cost.prefill, cost.token)]
    )
    whole = "" if cost is None or length is None else f"{1000 * cost.answer(length):.1f}"
    error = "" if cell.calibration is None else _error(cell)
    return [name, *seconds, "" if length is None else f"{length:.1f}", whole, error]


def _error(cell: Cell) -> str:
    assert cell.calibration is not None
    mean, low, high = (100 * v for v in (cell.calibration.mean, cell.calibration.low, cell.calibration.high))
    return f"{mean:.1f} [{low:.1f},{high:.1f}]"


def _notes(done: Experiment) -> Sequence[str]:
    settings = done.settings
    timed = (
        f"one question at a time, median of {settings.clock}, on {settings.device}" if settings.clock else "not timed"
    )
    said = [
        f"time: vision tower and prefill in ms ({timed}); size: the largest smaller picture that takes no longer, the "
        "opponent at the same time",
        f"differences: points, paired, [{100 * settings.rules.level:g} % interval]; marks here are corrected for the "
        "number of duels (Holm)",
        "fails: accuracy in % on the questions that dense answers right and the smaller picture wrong, a set on which "
        "resize scores 0 by definition",
        "cost: ms of tower and projector, of the prefill and of each later token; tokens: of an answer; answer: their "
        "sum; ECE: expected calibration error of the answers' probabilities in points, 10 bins",
    ]
    if any(cost.vision is None for match in done.matches for cost in match.costs.values()):
        said.append("prefill: with the vision tower, which was not timed apart")
    return [line for note in said for line in wrapped(note)]


def markdown(done: Experiment) -> str:
    """The verdicts, and the printed tables."""
    verdicts = "\n\n".join(match.verdict for match in done.matches)
    return f"\n\n## Prune or resize\n\n{verdicts}\n\n```text\n{text(done)}\n```" if done.matches else ""
