"""The comparison of arms as text of at most 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.statistics import Estimate
from vlm_pruner.experiments.summary import ArmSummary
from vlm_pruner.report.table import WIDTH, render, split_columns

SHORT = {"existence": "exist", "attribute": "attr", "relation": "rel", "reading": "read"}


def comparison_table(summaries: Sequence[ArmSummary], width: int = WIDTH) -> str:
    """Accuracy overall and per kind in percent, time and KV cache. Kinds that do not fit follow in a second table."""
    kinds = list(summaries[0].kinds)
    columns = [_kind_column(summaries, kind) for kind in kinds]
    first = _fixed_columns(summaries)
    last = _cost_columns(summaries)
    taken = sum(_width(column) + 1 for column in first + last)
    groups = split_columns([_width(column) for column in columns], width - taken)
    tables = [_columns([*first, *(columns[i] for i in groups[0]), *last])]
    tables += [_columns([*first[:2], *(columns[i] for i in group)]) for group in groups[1:]]
    return "\n\n".join(tables)


def difference_table(summaries: Sequence[ArmSummary]) -> str:
    """Paired differences to the dense model in points, one row per method and one column per budget."""
    pruned = [summary for summary in summaries if summary.difference is not None]
    if not pruned:
        return ""
    budgets = list(dict.fromkeys(_budget(summary.arm) for summary in pruned))
    cells = {(s.arm.label, _budget(s.arm)): _signed(s.difference) for s in pruned if s.difference is not None}
    labels = list(dict.fromkeys(summary.arm.label for summary in pruned))
    rows = [[label, *(cells.get((label, budget), "") for budget in budgets)] for label in labels]
    return render(["minus dense, points", *budgets], rows)


def _budget(arm: Arm) -> str:
    return arm.budget or f"{arm.tokens} tokens"


def _fixed_columns(summaries: Sequence[ArmSummary]) -> list[list[str]]:
    return [
        ["method", *(s.arm.label for s in summaries)],
        ["kept", *(f"{s.kept:.4g}" for s in summaries)],
        ["accuracy", *(f"{100 * s.accuracy.mean:.1f}±{100 * s.accuracy.standard_error:.1f}" for s in summaries)],
    ]


def _cost_columns(summaries: Sequence[ArmSummary]) -> list[list[str]]:
    times = ["" if s.relative_time is None else f"{s.relative_time:.2f}" for s in summaries]
    return [["time", *times], ["KV MB", *(f"{s.kv_bytes / 1e6:.2f}" for s in summaries)]]


def _kind_column(summaries: Sequence[ArmSummary], kind: str) -> list[str]:
    return [SHORT.get(kind, kind), *(_percent(s.kinds[kind]) for s in summaries)]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.0f}±{100 * estimate.standard_error:.0f}"


def _signed(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:+.1f} ± {100 * estimate.standard_error:.1f}"


def _width(column: Sequence[str]) -> int:
    return max(len(cell) for cell in column)


def _columns(columns: Sequence[Sequence[str]]) -> str:
    header, *rows = [list(cells) for cells in zip(*columns, strict=True)]
    return render(header, rows)
