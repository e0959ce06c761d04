"""Tables as plain text that fits a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

MISSING = "-"
SHORTEST = 12  # characters of a cut name


def render(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, width: int | None = None) -> str:
    """`blocks` without titles."""
    return blocks(header, [("", row) for row in rows], left, width)


def blocks(
    header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], left: int = 1, width: int | None = None
) -> str:
    """Columns one space apart: the first `left` flush left, the others flush right. Empty columns are left out.

    rows: each with its title; rows of one title stand together, below it. width: of a line; names in the first column
    are cut in the middle to keep it. Raises ValueError if a row does not have as many cells as the header.
    """
    groups: dict[str, list[Sequence[str]]] = {}
    for title, row in rows:
        groups.setdefault(title, []).append(row)
    lines = [row for group in groups.values() for row in group]
    shown = _filled(header, lines)
    widths = {i: max(len(line[i]) for line in [header, *lines]) for i in shown}
    if width is not None:
        widths[0] = min(widths[0], max(SHORTEST, width + widths[0] - sum(widths.values()) - len(widths) + 1))

    def line(cells: Sequence[str]) -> str:
        cells = [_cut(cells[0], widths[0]), *cells[1:]]
        return " ".join(cells[i].ljust(n) if i < left else cells[i].rjust(n) for i, n in widths.items()).rstrip()

    text = [line(header)]
    for title, group in groups.items():
        text += [title] * bool(title) + [line(row) for row in group]
    return "\n".join(text)


def _filled(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Numbers of the columns that any row fills, and of the first."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells and the header {len(header)}: {list(row)}")
    return [i for i in range(len(header)) if i == 0 or not rows or any(row[i] for row in rows)]


def _cut(name: str, width: int) -> str:
    """Keeps the end, which tells apart the settings of one method."""
    return name if len(name) <= width else f"{name[: width - 7]}..{name[-5:]}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int | None = None) -> str:
    """The first `left` columns, or all, are flush left, the others flush right. Empty columns are left out."""
    rows = list(rows)
    shown = _filled(header, rows)
    rule = ["---" if left is None or column < left else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(line[i] for i in shown) + " |" for line in [header, rule, *rows])


def as_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().rstrip("\n")


def number(value: float | None, decimals: int, sign: str = "") -> str:
    """sign: "+" to show it. A missing value is "-"."""
    if value is None:
        return MISSING
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # + 0.0: no -0
