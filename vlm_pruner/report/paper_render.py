"""The paper's tables as text for a terminal, Markdown or CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Iterator, Sequence

from vlm_pruner.report.paper_numbers import COLUMNS
from vlm_pruner.report.paper_table import AVERAGE, DIFFERENCE, ERROR, OURS, PAPER, Line, ModelTable, budget_label
from vlm_pruner.report.table import WIDTH, render

MISSING = "-"
NAMES = tuple(column.name for column in COLUMNS.values())
CSV_HEADER = ("model", "visual_tokens", "method", "row", *NAMES, "Avg", "misprinted")
CSV_KINDS = {OURS: "ours", ERROR: "standard_error", PAPER: "paper", DIFFERENCE: "difference"}


def terminal(tables: Sequence[ModelTable]) -> str:
    """80 columns wide unless a method's settings need more: a header per model and budget, notes below each model."""
    return "\n\n".join(_terminal_model(table) for table in tables)


def markdown(tables: Sequence[ModelTable]) -> str:
    return "\n\n".join(_markdown_model(table) for table in tables)


def as_csv(tables: Sequence[ModelTable]) -> str:
    """Unrounded numbers, one line per row of the tables; an empty cell is missing, misprinted cells are named."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for table in tables:
        for line in table.lines:
            numbers = [line.values.get(name, "") for name in (*COLUMNS, AVERAGE)]
            flagged = " ".join(_column_name(name) for name in (*COLUMNS, AVERAGE) if name in line.flagged)
            start = (table.model, budget_label(line.budget, table.model), line.method, CSV_KINDS[line.kind])
            writer.writerow([*start, *numbers, flagged])
    return text.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Sequence[ModelTable]], str]] = {"terminal": terminal, "md": markdown, "csv": as_csv}


def _terminal_model(table: ModelTable) -> str:
    header = ["", "", *(column.header for column in COLUMNS.values()), "Avg"]
    parts, rows = [f"{table.model}, visual tokens kept, % or points"], []
    for budget, lines in _by_budget(table):
        rows.append([budget, *[""] * (len(header) - 1)])
        rows += [_cells(line, shown) for line, shown in lines]
    # The budget's line has no numbers, so it may run over the columns: it is set after the widths are known.
    budgets = {budget for budget, _ in _by_budget(table)}
    body = render(header, [row if row[0] not in budgets else ["", *row[1:]] for row in rows], left=2).split("\n")
    titles = iter(row[0] for row in rows if row[0] in budgets)
    parts += [f"{next(titles)}:" if not line.strip() else line for line in body]
    notes = [textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="    ") for note in table.notes]
    return "\n".join([*parts, *notes])


def _markdown_model(table: ModelTable) -> str:
    lines = [
        f"### {table.model}",
        "",
        f"| visual tokens | method | | {' | '.join(NAMES)} | Avg |",
        f"|---|---|---|{'---:|' * (len(NAMES) + 1)}",
    ]
    for budget, rows in _by_budget(table):
        for line, shown in rows:
            lines.append(f"| {budget} | {' | '.join([line.method, *_cells(line, shown)[1:]])} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)])


def _by_budget(table: ModelTable) -> Iterator[tuple[str, list[tuple[Line, bool]]]]:
    """Lines by budget, and with each whether it is the first of its method, whose name is shown."""
    groups: dict[str, list[tuple[Line, bool]]] = {}
    previous = None
    for line in table.lines:
        key = (line.budget, line.method)
        groups.setdefault(budget_label(line.budget, table.model), []).append((line, key != previous))
        previous = key
    yield from groups.items()


def _cells(line: Line, shown: bool) -> list[str]:
    numbers = [_number(line, name) for name in (*COLUMNS, AVERAGE)]
    return [line.method if shown else "", line.kind, *numbers]


def _number(line: Line, name: str) -> str:
    """With the paper's decimals."""
    value = line.values.get(name)
    if value is None:
        return MISSING
    decimals = 2 if name == AVERAGE else COLUMNS[name].decimals
    sign = "+" if line.kind == DIFFERENCE else ""
    rounded = round(value, decimals) + 0.0  # no -0
    return f"{rounded:{sign}.{decimals}f}{'!' if name in line.flagged else ''}"


def _column_name(name: str) -> str:
    return "Avg" if name == AVERAGE else COLUMNS[name].name
