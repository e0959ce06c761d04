"""The paper's tables as text for a terminal, Markdown or CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from vlm_pruner.console import wrapped
from vlm_pruner.report import table
from vlm_pruner.report.paper_numbers import COLUMNS
from vlm_pruner.report.paper_table import AVERAGE, DIFFERENCE, ERROR, OURS, PAPER, Line, ModelTable, budget_label
from vlm_pruner.report.table import MISSING, blocks, number

NAMES = tuple(column.name for column in COLUMNS.values())
CSV_HEADER = ("model", "visual_tokens", "method", "row", *NAMES, "Avg", "misprinted")
CSV_KINDS = {OURS: "ours", ERROR: "standard_error", PAPER: "paper", DIFFERENCE: "difference"}


def terminal(tables: Sequence[ModelTable]) -> str:
    """80 columns wide unless a method's settings need more: a header per model and budget, notes below each model."""
    return "\n\n".join(_terminal_model(one) for one in tables)


def markdown(tables: Sequence[ModelTable]) -> str:
    return "\n\n".join(_markdown_model(one) for one in tables)


def as_csv(tables: Sequence[ModelTable]) -> str:
    """Unrounded numbers, one line per row of the tables; an empty cell is missing, misprinted cells are named."""
    return table.as_csv(CSV_HEADER, [_record(one.model, line) for one in tables for line in one.lines])


def _record(model: str, line: Line) -> list[object]:
    numbers = [line.values.get(name, "") for name in (*COLUMNS, AVERAGE)]
    flagged = " ".join(_column_name(name) for name in (*COLUMNS, AVERAGE) if name in line.flagged)
    return [model, budget_label(line.budget, model), line.method, CSV_KINDS[line.kind], *numbers, flagged]


FORMATS: dict[str, Callable[[Sequence[ModelTable]], str]] = {"terminal": terminal, "md": markdown, "csv": as_csv}


def _terminal_model(one: ModelTable) -> str:
    header = ["", "", *(column.header for column in COLUMNS.values()), "Avg"]
    rows = [(f"{budget_label(line.budget, one.model)}:", _cells(line, first)) for line, first in _lines(one)]
    notes = [wrapped(note, "    ", "  ") for note in one.notes]
    return "\n".join([f"{one.model}, visual tokens kept, % or points", blocks(header, rows, left=2), *notes])


def _markdown_model(one: ModelTable) -> str:
    header = ["visual tokens", "method", "", *NAMES, "Avg"]
    rows = [[budget_label(line.budget, one.model), *_cells(line, True)] for line in one.lines]
    return "\n".join(
        [f"### {one.model}", "", table.markdown(header, rows, 3), "", *(f"- {note}" for note in one.notes)]
    )


def _lines(one: ModelTable) -> Iterator[tuple[Line, bool]]:
    """The lines, each with whether it is the first of its method, whose name is shown."""
    previous = None
    for line in one.lines:
        yield line, (line.budget, line.method) != previous
        previous = (line.budget, line.method)


def _cells(line: Line, shown: bool) -> list[str]:
    numbers = [_number(line, name) for name in (*COLUMNS, AVERAGE)]
    return [line.method if shown else "", line.kind, *numbers]


def _number(line: Line, name: str) -> str:
    """With the paper's decimals."""
    decimals = 2 if name == AVERAGE else COLUMNS[name].decimals
    value = number(line.values.get(name), decimals, "+" if line.kind == DIFFERENCE else "")
    return f"{value}!" if name in line.flagged and value != MISSING else value


def _column_name(name: str) -> str:
    return "Avg" if name == AVERAGE else COLUMNS[name].name
