"""Tables as plain text that fits a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

WIDTH = 80
MISSING = "-"

Group = tuple[str, Sequence[Sequence[str]]]  # a title, empty for none, and rows


def render(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns one space apart: the first `left` flush left, the others flush right.

    Raises ValueError if a row does not have as many cells as the header.
    """
    return blocks(header, [("", rows)], left)


def blocks(header: Sequence[str], groups: Sequence[Group], left: int = 1) -> str:
    """One table whose groups have their title on a line of its own above them."""
    lines = [header, *(row for _, rows in groups for row in rows)]
    for row in lines:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells and the header {len(header)}: {list(row)}")
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [_line(header, widths, left)]
    for title, rows in groups:
        text += [*([title] if title else []), *(_line(row, widths, left) for row in rows)]
    return "\n".join(text)


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    names = [cell.ljust(width) for cell, width in zip(cells[:left], widths[:left], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[left:], widths[left:], strict=True)]
    return " ".join(names + numbers).rstrip()


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int | None = None) -> str:
    """The first `left` columns, or all, are flush left, the others flush right."""
    rule = ["---" if left is None or column < left else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def as_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().rstrip("\n")


def number(value: float | None, decimals: int, sign: str = "") -> str:
    """sign: "+" to show it. A missing value is "-"."""
    if value is None:
        return MISSING
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # + 0.0: no -0
