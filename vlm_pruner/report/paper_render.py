"""The paper's tables as text for a terminal, Markdown or CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from vlm_pruner.report import table
from vlm_pruner.report.paper_numbers import COLUMNS
from vlm_pruner.report.paper_table import AVERAGE, DIFFERENCE, ERROR, OURS, PAPER, Line, ModelTable, budget_label
from vlm_pruner.report.table import MISSING, WIDTH, blocks, number

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
    groups = [(f"{budget}:", [_cells(*line) for line in lines]) for budget, lines in _by_budget(one)]
    notes = [textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="    ") for note in one.notes]
    return "\n".join([f"{one.model}, visual tokens kept, % or points", blocks(header, groups, left=2), *notes])


def _markdown_model(one: ModelTable) -> str:
    header = ["visual tokens", "method", "", *NAMES, "Avg"]
    rows = [[budget, *_cells(line, True)] for budget, lines in _by_budget(one) for line, _ in lines]
    return "\n".join(
        [f"### {one.model}", "", table.markdown(header, rows, 3), "", *(f"- {note}" for note in one.notes)]
    )


def _by_budget(one: ModelTable) -> Iterator[tuple[str, list[tuple[Line, bool]]]]:
    """Lines by budget, and with each whether it is the first of its method, whose name is shown."""
    groups: dict[str, list[tuple[Line, bool]]] = {}
    previous = None
    for line in one.lines:
        key = (line.budget, line.method)
        groups.setdefault(budget_label(line.budget, one.model), []).append((line, key != previous))
        previous = key
    yield from groups.items()


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
