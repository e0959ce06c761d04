"""The paper's tables beside our results: model x budget x method, with the difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlm_pruner.report import paper_numbers
from vlm_pruner.report.paper_numbers import COLUMNS, DENSE, MISPRINTS, PaperRow
from vlm_pruner.report.paper_results import LABELS, ResultRow, RowBudget, known_tokens

AVERAGE = "avg"
OURS, ERROR, PAPER, DIFFERENCE = "ours", "s.e.", "paper", "diff"


@dataclass(frozen=True)
class Line:
    """One line of a table. values: by benchmark, and the average; unknown ones are left out.

    flagged: the cells whose printed number is a misprint or rests on one.
    """

    budget: RowBudget
    method: str
    kind: str
    values: Mapping[str, float]
    flagged: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ModelTable:
    """One model's part: its lines in the paper's order, with notes."""

    model: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def model_tables(rows: Sequence[ResultRow], models: Sequence[str] | None = None) -> list[ModelTable]:
    """A table per model, the paper's models first. models: which ones; default: those in `rows`."""
    wanted = list(models) if models is not None else _order({row.model: None for row in rows})
    return [_model_table(model, [row for row in rows if row.model == model]) for model in wanted]


def budget_label(budget: RowBudget, model: str) -> str:
    """'64 of 576' where every picture has as many tokens, else '11.1 %' or a count."""
    if budget.kept is None:
        return f"{budget.tokens} tokens"
    tokens = known_tokens(model)
    if tokens is None or paper_numbers.tokens_vary(model):
        return "all" if budget.kept == 100 else f"{budget.kept:.1f} %"
    return f"{round(tokens * budget.kept / 100)} of {tokens}"


def _order(models: Mapping[str, None]) -> list[str]:
    known = paper_numbers.models()
    return sorted(models, key=lambda model: known.index(model) if model in known else len(known))


def _model_table(model: str, rows: Sequence[ResultRow]) -> ModelTable:
    printed = [row for row in paper_numbers.paper_rows() if row.model == model]
    bounds = next((row.scores for row in rows if row.method == DENSE), {})
    lines: list[Line] = []
    for paper, own in _pairs(printed, rows):
        lines += _lines(paper, own, bounds)
    return ModelTable(model, tuple(lines), tuple(_notes(model, printed, rows)))


def _pairs(
    printed: Sequence[PaperRow], rows: Sequence[ResultRow]
) -> Iterator[tuple[PaperRow | None, ResultRow | None]]:
    """The paper's rows and ours side by side, budgets from all tokens down, the paper's order within a budget.

    Another setting of a method follows the method and is compared with the same row of the paper.
    """
    ours = list(rows)
    budgets = {RowBudget(kept=row.kept): None for row in printed} | {row.budget: None for row in rows}
    for budget in sorted(budgets, key=_most_first):
        for paper in (row for row in printed if RowBudget(kept=row.kept) == budget):
            own = [row for row in ours if row.budget == budget and LABELS.get(row.method, row.method) == paper.method]
            ours = [row for row in ours if row not in own]
            own.sort(key=lambda row: row.label != paper.method)  # the published setting first
            if not own:
                yield paper, None
            yield from ((paper, row) for row in own)
        yield from ((None, row) for row in ours if row.budget == budget)


def _most_first(budget: RowBudget) -> tuple[float, float]:
    return (-(budget.kept or 0.0), -(budget.tokens or 0))


def _lines(paper: PaperRow | None, own: ResultRow | None, bounds: Mapping[str, float]) -> Iterator[Line]:
    scores = {} if own is None else _with_average(own.scores, bounds)
    if own is not None:
        yield Line(own.budget, own.label, OURS, scores)
        yield Line(own.budget, own.label, ERROR, own.errors)
    if paper is not None:
        budget, label = (RowBudget(kept=paper.kept), paper.method) if own is None else (own.budget, own.label)
        yield Line(budget, label, PAPER, _printed(paper), _flagged(paper))
        meant = _meant(paper)
        if own is not None:
            yield Line(
                budget, label, DIFFERENCE, {name: scores[name] - meant[name] for name in scores if name in meant}
            )


def _with_average(scores: Mapping[str, float], bounds: Mapping[str, float]) -> dict[str, float]:
    mean = paper_numbers.average(scores, bounds)
    return dict(scores) if mean is None else {**scores, AVERAGE: mean}


def _printed(paper: PaperRow) -> dict[str, float]:
    return dict(paper.scores) if paper.average is None else {**paper.scores, AVERAGE: paper.average}


def _meant(paper: PaperRow) -> dict[str, float]:
    """The paper's row with misprints corrected, and the Avg that rests on them. The dense row's Avg is 100."""
    again = paper_numbers.recompute(paper)
    values = _printed(paper) | paper.meant()
    if again is not None and AVERAGE in _flagged(paper):
        values[AVERAGE] = again.meant
    return values


def _flagged(paper: PaperRow) -> frozenset[str]:
    """Cells that are misprinted, rest on a misprint, or do not follow from the row's own numbers."""
    cells = {name for name in COLUMNS if (paper.model, paper.method, name) in MISPRINTS}
    again = paper_numbers.recompute(paper)
    if again is not None and (again.parts or abs(again.meant - again.from_printed) > 0.005):
        cells.add(AVERAGE)
    return frozenset(cells)


def _notes(model: str, printed: Sequence[PaperRow], rows: Sequence[ResultRow]) -> Iterator[str]:
    for (owner, method, benchmark), (wrong, meant) in MISPRINTS.items():
        if owner == model:
            yield (
                f"! {COLUMNS[benchmark].name} of the {method} row is printed {wrong:.0f}, more than its maximum of "
                f"2800; {meant:.0f} is meant. Differences are to what is meant; the printed averages use the misprint:"
            )
    for row in printed:
        again = paper_numbers.recompute(row)
        if again is not None and AVERAGE in _flagged(row) and row.method != DENSE:
            yield f"! {row.method}, {row.budget}: Avg is printed {again.printed:.2f}, {_because(again)}"
    for own in rows:
        missing = [column.name for name, column in COLUMNS.items() if name not in own.scores]
        if missing:
            yield f"missing: {own.label}, {budget_label(own.budget, model)}: {', '.join(missing)}"
    if printed:
        yield f"paper: {paper_numbers.SOURCE}, as printed"


def _because(again: paper_numbers.Recomputed) -> str:
    parts = [f"its own numbers give {again.from_printed:.2f}"] if again.parts else []
    if abs(again.meant - again.from_printed) > 0.005:
        parts.append(f"with the bound put right {again.meant:.2f}")
    return ", ".join(parts)
