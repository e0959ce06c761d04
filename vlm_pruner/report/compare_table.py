"""The comparison of methods as text of at most 100 columns, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vlm_pruner.experiments.bootstrap import Interval
from vlm_pruner.experiments.referee import Duel
from vlm_pruner.experiments.timings import Measured
from vlm_pruner.experiments.verdicts import BETTER, REFERENCES, UNCLEAR, WORSE, Cell, Difference
from vlm_pruner.report import table
from vlm_pruner.report.table import blocks

WIDE = 100  # columns
MARKS = {BETTER: "+", WORSE: "-", UNCLEAR: "~"}
SHORT = {"existence": "exist", "attribute": "attr", "relation": "rel", "reading": "read"}
NAMES = {"dense": "dense", "random": "random", "vlm-pruner": "VLM-Pruner"}
AGAINST = [f"- {NAMES[name]}" for name in REFERENCES]
HEAD = ["method", "avg", "FLOPs", "acc", "loyal", "time", "KV MB", *AGAINST]
LONG_HEAD = ["budget", "method", "average tokens", "FLOPs", "accuracy", "loyalty", *AGAINST]


def terminal(cells: Sequence[Cell], measured: Mapping[str, Measured] | None = None) -> str:
    """Per benchmark and budget one block of rows, and below them the kinds of question.

    measured: of a timed run, by arm's key: adds two columns.
    """
    parts = []
    for name, own in _by_benchmark(cells):
        kinds = [SHORT.get(kind, kind) for kind in own[0].kinds]
        rows = [(title(_budget(cell)), _row(cell, (measured or {}).get(cell.arm.key))) for cell in own]
        parts.append(f"{name}, n = {own[0].accuracy.n}\n{blocks(HEAD, rows, width=WIDE)}")
        rows = [(title(_budget(cell)), _kind_row(cell)) for cell in own]
        parts.append(blocks(["accuracy by kind", *kinds], rows, width=WIDE))
    return "\n\n".join(parts)


def markdown(cells: Sequence[Cell]) -> str:
    """The same tables, with every interval in full."""
    parts = []
    for name, own in _by_benchmark(cells):
        kinds = [[_budget(c), c.arm.label, *(_span(interval) for interval in c.kinds.values())] for c in own]
        parts.append(f"## {name}, n = {own[0].accuracy.n}\n\n{table.markdown(LONG_HEAD, map(_long_row, own))}")
        parts.append(table.markdown(["budget", "method", *own[0].kinds], kinds))
    return "\n\n".join(parts)


def _by_benchmark(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    for name in dict.fromkeys(cell.benchmark for cell in cells):
        yield name, [cell for cell in cells if cell.benchmark == name]


def _budget(cell: Cell) -> str:
    return cell.arm.key.partition("@")[2] if cell.arm.has_budget else ""


def title(budget: str) -> str:
    """The line above the rows of a budget; none for arms without one."""
    return f"-- {budget + ' tokens' if budget.isdigit() else budget}" if budget else ""


def _row(cell: Cell, measured: Measured | None) -> list[str]:
    loyal = "" if cell.loyalty is None else f"{100 * cell.loyalty.mean:.0f}"
    against = [difference(cell.against.get(name)) for name in REFERENCES]
    return [cell.arm.label, *_costs(cell), f"{100 * cell.accuracy.mean:.1f}", loyal, *_measured(measured), *against]


def _measured(measured: Measured | None) -> list[str]:
    if measured is None:
        return ["", ""]
    time = "" if measured.relative_time is None else f"{measured.relative_time:.2f}"
    return [time, f"{measured.kv_bytes / 1e6:.2f}"]


def _costs(cell: Cell) -> list[str]:
    account = cell.arm.accounting
    return ["", ""] if account is None else [f"{account.average_tokens:.0f}", f"{100 * account.flops_share:.0f}%"]


def narrow(interval: Interval, sign: str = "") -> str:
    """In percent or points: +4.2 [-16.7,21.6]."""
    return f"{100 * interval.mean:{sign}.1f} [{100 * interval.low:.1f},{100 * interval.high:.1f}]"


def difference(one: Difference | Duel | None) -> str:
    """In points, with the mark of its verdict."""
    return "" if one is None else narrow(one.interval, "+") + MARKS[one.verdict]


def _kind_row(cell: Cell) -> list[str]:
    """Accuracies in percent; a mark if the difference from dense is clear."""
    dense = cell.against.get("dense")
    return [cell.arm.label, *(_kind_cell(i, None if dense is None else dense.kinds[k]) for k, i in cell.kinds.items())]


def _kind_cell(accuracy: Interval, difference: Interval | None) -> str:
    clear = difference is not None and difference.excludes_zero
    mark = "" if difference is None or not clear else MARKS[BETTER if difference.mean > 0 else WORSE]
    return f"{100 * accuracy.mean:.0f}{mark or ' '}"


def _long_row(cell: Cell) -> list[str]:
    against = [cell.against.get(name) for name in REFERENCES]
    differences = ["" if d is None else f"{_span(d.interval, '+')} {d.verdict}" for d in against]
    loyal = "" if cell.loyalty is None else _span(cell.loyalty)
    return [_budget(cell), cell.arm.label, *_costs(cell), _span(cell.accuracy), loyal, *differences]


def _span(interval: Interval, sign: str = "") -> str:
    low, high = (f"{100 * bound:{sign}.1f}" for bound in (interval.low, interval.high))
    return f"{100 * interval.mean:{sign}.1f} [{low}, {high}]"
