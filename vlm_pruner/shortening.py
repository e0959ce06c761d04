"""One batch made shorter: which spans to prune to what budget, the selection, the merge, the packing, the receipt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_pruner.errors import PruningError
from vlm_pruner.layout import VisualSpan
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.packing import Packing
from vlm_pruner.receipts import ImageReceipt


@dataclass(frozen=True)
class Task:
    """One visual span of a batch row, and the number of its tokens to keep."""

    row: int
    span: VisualSpan
    budget: int

    @property
    def keeps_all(self) -> bool:
        return self.budget == self.span.length


def plan(spans: list[list[VisualSpan]], method: Pruner, released_rounding: str) -> list[Task]:
    """Tasks in order of row and position. Raises PruningError if a span has fewer tokens than are to be kept."""
    tasks = []
    for row, row_spans in enumerate(spans):
        for number, span in enumerate(sorted(row_spans, key=lambda span: span.start)):
            keeps_all = number > 0 and method.released
            budget = span.length if keeps_all else method.budget(span.length, released_rounding)
            tasks.append(Task(row, span.as_released() if method.released else span, budget))
    return tasks


def check_inside(tasks: list[Task], rows: int, length: int) -> None:
    """Raises PruningError if a task lies outside a batch of `rows` sequences of `length` tokens."""
    for task in tasks:
        if task.row >= rows or task.span.stop > length:
            raise PruningError(
                f"visual tokens {task.span.start}..{task.span.stop - 1} of row {task.row} lie outside the batch of "
                f"{rows} rows of {length} tokens; prefill the whole prompt in one forward call"
            )


@dataclass(frozen=True)
class Shortened:
    """hidden: [B, L, d], packed as `packing` says. selections: one per task, None where the whole span stayed."""

    hidden: Tensor
    packing: Packing
    selections: list[Selection | None]


def shorten(hidden: Tensor, keys: Tensor, visible: Tensor | None, tasks: list[Task], method: Pruner) -> Shortened:
    """Select, merge and pack. Padding goes the way of dropped tokens, so that rows are padded only among themselves.

    hidden: [B, T, d], entering the pruned layer. keys: [B, key heads, T, head size], of the layer before.
    visible: bool [B, T], False for padding; None if there is none.
    """
    keep = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if visible is not None:
        keep &= visible.to(keep.device)
    hidden = hidden.clone()
    selections = [_shorten_span(hidden, keep, keys, task, method) for task in tasks]
    packing = Packing.of(keep)
    return Shortened(packing.gather(hidden), packing, selections)


def _shorten_span(hidden: Tensor, keep: Tensor, keys: Tensor, task: Task, method: Pruner) -> Selection | None:
    """Writes one span's merged rows into `hidden` and its choice into `keep`."""
    if task.keeps_all:
        return None
    positions = task.span.positions().to(hidden.device)
    tokens = hidden[task.row, positions]
    token_keys = keys[task.row][:, positions.to(keys.device)].transpose(0, 1).flatten(1)  # [N, heads x head size]
    selection = method.select(tokens, token_keys.to(tokens.device), task.span.layout, task.budget)
    stays = positions[selection.indices]
    hidden[task.row, stays] = method.merge(tokens, selection)
    keep[task.row, positions] = False
    keep[task.row, stays] = True
    return selection


def image_receipt(task: Task, selection: Selection | None, method: Pruner) -> ImageReceipt:
    """The receipt of one task; without a selection all tokens were kept."""
    every = torch.arange(task.span.length)
    chosen = Selection(every, every) if selection is None else selection
    indices = chosen.indices.tolist()
    return ImageReceipt(
        row=task.row,
        span=(task.span.start, task.span.stop - task.span.start),
        layer=method.layer,
        method=method.name,
        n_before=task.span.length,
        n_after=len(indices),
        indices=indices,
        order=chosen.order.tolist(),
        coords=task.span.layout.coords[indices].tolist(),
        pivots=[] if chosen.pivots is None else chosen.pivots.tolist(),
        nearest=None if chosen.nearest is None else chosen.nearest.tolist(),
        offsets=None if task.span.offsets is None else task.span.offsets.tolist(),
    )
