"""The comparison of methods as text of at most 100 columns, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.bootstrap import Interval
from vlm_pruner.experiments.timings import Measured
from vlm_pruner.experiments.verdicts import BETTER, REFERENCES, UNCLEAR, WORSE, Cell, Difference
from vlm_pruner.report import table
from vlm_pruner.report.table import Group, blocks

MARKS = {BETTER: "+", WORSE: "-", UNCLEAR: "~"}
SHORT = {"existence": "exist", "attribute": "attr", "relation": "rel", "reading": "read"}
NAMES = {"dense": "dense", "random": "random", "vlm-pruner": "VLM-Pruner"}
HEAD = ["method", "avg", "FLOPs", "acc", "loyal"]


def terminal(cells: Sequence[Cell], measured: Mapping[str, Measured] | None = None) -> str:
    """Per benchmark and budget one block of rows, and below them the kinds of question. Columns end before 100.

    measured: of a timed run, by arm's key: adds two columns.
    """
    costs = measured or {}
    parts = []
    for benchmark in dict.fromkeys(cell.benchmark for cell in cells):
        own = [cell for cell in cells if cell.benchmark == benchmark]
        parts.append(f"{benchmark}, n = {own[0].accuracy.n}\n" + by_budget(_header(own, costs), _grouped(own, costs)))
        parts.append(by_budget(_kind_header(own), [(title, [_kind_row(c) for c in g]) for title, g in _by_budget(own)]))
    return "\n\n".join(parts)


def markdown(cells: Sequence[Cell]) -> str:
    """The same with every interval written out."""
    parts = []
    for benchmark in dict.fromkeys(cell.benchmark for cell in cells):
        own = [cell for cell in cells if cell.benchmark == benchmark]
        header = ["budget", "method", "average tokens", "FLOPs", "accuracy", "loyalty", *_titles(own)]
        rows = [[_budget(cell), cell.arm.label, *_costs(cell), *_long(cell, _shown(own))] for cell in own]
        kinds = list(own[0].kinds)
        kind_rows = [[_budget(c), c.arm.label, *(_span(c.kinds[kind]) for kind in kinds)] for c in own]
        parts.append(f"## {benchmark}, n = {own[0].accuracy.n}\n\n{table.markdown(header, rows)}")
        parts.append(table.markdown(["budget", "method", *kinds], kind_rows))
    return "\n\n".join(parts)


def _header(cells: Sequence[Cell], measured: Mapping[str, Measured]) -> list[str]:
    return [*HEAD, *(["time", "KV MB"] if measured else []), *_titles(cells)]


def _titles(cells: Sequence[Cell]) -> list[str]:
    return [f"- {NAMES[name]}" for name in _shown(cells)]


def _shown(cells: Sequence[Cell]) -> list[str]:
    """The references that any cell is compared with."""
    return [name for name in REFERENCES if any(name in cell.against for cell in cells)]


def _by_budget(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    budgets = dict.fromkeys(_budget(cell) for cell in cells)
    return [(budget, [cell for cell in cells if _budget(cell) == budget]) for budget in budgets]


def _grouped(cells: Sequence[Cell], measured: Mapping[str, Measured]) -> list[tuple[str, list[list[str]]]]:
    shown = _shown(cells)
    return [
        (title, [_row(cell, shown, measured.get(cell.arm.key)) for cell in group]) for title, group in _by_budget(cells)
    ]


def _budget(cell: Cell) -> str:
    return cell.arm.key.partition("@")[2] if cell.arm.has_budget else ""


def _row(cell: Cell, shown: Sequence[str], measured: Measured | None) -> list[str]:
    loyal = "" if cell.loyalty is None else f"{100 * cell.loyalty.mean:.0f}"
    accuracy = f"{100 * cell.accuracy.mean:.1f}"
    differences = [_difference(cell.against.get(name)) for name in shown]
    return [_name(cell), *_costs(cell), accuracy, loyal, *_measured(measured), *differences]


def _measured(measured: Measured | None) -> list[str]:
    if measured is None:
        return []
    time = "" if measured.relative_time is None else f"{measured.relative_time:.2f}"
    return [time, f"{measured.kv_bytes / 1e6:.2f}"]


def _name(cell: Cell) -> str:
    return short_name(cell.arm)


def short_name(arm: Arm) -> str:
    return short(arm.label)


def short(label: str) -> str:
    """At most 20 characters."""
    return label if len(label) <= 20 else label[:19] + "."


def _costs(cell: Cell) -> list[str]:
    account = cell.arm.accounting
    return ["", ""] if account is None else [f"{account.average_tokens:.0f}", f"{100 * account.flops_share:.0f}%"]


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    interval = difference.interval
    low, high = (f"{100 * bound:.1f}" for bound in (interval.low, interval.high))
    return f"{100 * interval.mean:+.1f} [{low},{high}]{MARKS[difference.verdict]}"


def _kind_header(cells: Sequence[Cell]) -> list[str]:
    return ["accuracy by kind", *(SHORT.get(kind, kind) for kind in cells[0].kinds)]


def _kind_row(cell: Cell) -> list[str]:
    """Accuracies in percent; a mark where the difference to dense is clear."""
    dense = cell.against.get("dense")
    return [_name(cell), *(_kind_cell(i, None if dense is None else dense.kinds[k]) for k, i in cell.kinds.items())]


def _kind_cell(accuracy: Interval, difference: Interval | None) -> str:
    clear = difference is not None and difference.excludes_zero
    mark = "" if difference is None or not clear else MARKS[BETTER if difference.mean > 0 else WORSE]
    return f"{100 * accuracy.mean:.0f}{mark or ' '}"


def _long(cell: Cell, shown: Sequence[str]) -> list[str]:
    against = [cell.against.get(name) for name in shown]
    differences = ["" if d is None else f"{_span(d.interval, '+')} {d.verdict}" for d in against]
    return [_span(cell.accuracy), "" if cell.loyalty is None else _span(cell.loyalty), *differences]


def _span(interval: Interval, sign: str = "") -> str:
    low, high = (f"{100 * bound:{sign}.1f}" for bound in (interval.low, interval.high))
    return f"{100 * interval.mean:{sign}.1f} [{low}, {high}]"


def by_budget(header: Sequence[str], groups: Sequence[Group]) -> str:
    """One table with a block of rows per budget, which is the group's title."""
    return blocks(header, [(_title(budget), rows) for budget, rows in groups])


def _title(budget: str) -> str:
    return f"-- {budget + ' tokens' if budget.isdigit() else budget}" if budget else ""
