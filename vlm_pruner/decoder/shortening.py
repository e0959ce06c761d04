"""One batch made shorter: which spans to prune to what budget, the selection, the merge, the packing, the receipt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_pruner.decoder.packing import Packing
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.methods.view import View
from vlm_pruner.receipts import ImageReceipt


@dataclass(frozen=True)
class Task:
    """One image of a batch row, and what is to be done to it.

    image:   its visual span in the sequence that enters the decoder.
    budgets: visual tokens to keep at each stage that is to come.
    span:    where those of its tokens that are left are now, as long as a stage is to come.
    kept:    the same tokens, counted within `image`, as the last stage chose them; None if all are left.
    steps:   (layer, visual tokens from there on) of each stage that is done.
    """

    row: int
    image: VisualSpan
    budgets: tuple[int, ...]
    span: VisualSpan
    kept: Selection | None = None
    steps: tuple[tuple[int, int], ...] = ()

    @property
    def budget(self) -> int:
        return self.budgets[0]

    @property
    def keeps_all(self) -> bool:
        return self.budget == self.span.length

    @property
    def keeps_all_to_the_end(self) -> bool:
        return all(budget == self.span.length for budget in self.budgets)

    def keep_all(self, layer: int) -> Task:
        """After a stage before `layer` that left the sequence as it was."""
        return replace(self, budgets=self.budgets[1:], steps=(*self.steps, (layer, self.span.length)))


def plan(spans: list[list[VisualSpan]], method: Pruner, depth: int) -> list[Task]:
    """Tasks in order of row and position. Of a span that has fewer tokens than are to be kept, all are."""
    tasks = []
    stages = len(method.layers(depth))
    for row, row_spans in enumerate(spans):
        if method.per_frame:
            row_spans = [frame for span in row_spans for frame in span.frames()]
        for number, span in enumerate(sorted(row_spans, key=lambda span: span.start)):
            keeps_all = (number > 0 and method.released) or too_small(span, method)
            budgets = (
                (span.length,) * stages if keeps_all else method.budgets(span.length, depth, span.released.rounding)
            )
            image = span.as_released() if method.released else span
            tasks.append(Task(row, image, budgets, image))
    return tasks


def too_small(image: VisualSpan, method: Pruner) -> bool:
    """Whether the image has fewer tokens than `method` is to keep."""
    return method.keep_tokens is not None and method.keep_tokens > image.length


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
    """hidden: [B, L, d], packed as `packing` says. tasks: what is left of each, for the stage that comes next."""

    hidden: Tensor
    packing: Packing
    tasks: list[Task]


def shorten(
    hidden: Tensor,
    visible: Tensor | None,
    tasks: list[Task],
    method: Pruner,
    layer: int,
    look: Callable[[Task], View],
) -> Shortened:
    """Select, merge and pack. Padding goes the way of dropped tokens, so that rows are padded only among themselves.

    hidden: [B, T, d], entering decoder layer `layer`. visible: bool [B, T], False for padding; None if there is none.
    look: what the method sees of a task's image.
    """
    rows, length = hidden.shape[:2]
    keep = torch.ones(rows, length, dtype=torch.bool, device=hidden.device)
    if visible is not None:
        keep &= visible.to(keep.device)
    cut = [task for task in tasks if not task.keeps_all]
    choices = [(task, method.choose(look(task))) for task in cut]
    counts = [length] * rows  # of what each row keeps, if nothing is padding
    for task, selection in choices:
        keep[task.row, task.span.index(keep.device)] = False
        keep[task.row].index_fill_(0, task.span.positions_of(selection.indices), True)
        counts[task.row] -= task.span.length - len(selection.indices)
    packing = Packing.of(keep, counts if visible is None else None)
    short, places = packing.gather(hidden), packing.places(length)
    for task, selection in choices:
        new_rows = method.merge(rows_of(hidden[task.row], task.span), selection)
        now = places[task.row].index_select(0, task.span.positions_of(selection.indices))
        short[task.row].index_copy_(0, now, new_rows)
    selections = iter(selection for _, selection in choices)
    left = [_carry_on(task, None if task.keeps_all else next(selections), layer, places) for task in tasks]
    return Shortened(short, packing, left)


def rows_of(tokens: Tensor, span: VisualSpan) -> Tensor:
    """[N, ...]: the rows of `tokens` [T, ...] at a span's positions. Not to be written to: without gaps, not a copy."""
    return tokens[span.index(tokens.device)]


def _carry_on(task: Task, selection: Selection | None, layer: int, places: Tensor) -> Task:
    """What is left of a task after a stage. places: long [B, T], where in the short sequence each position has gone.

    Where its tokens are is read, and a GPU waited for, only if a stage is to come.
    """
    count = task.span.length if selection is None else len(selection.indices)
    kept = task.kept if selection is None else _within_image(task, selection)
    done = replace(task, budgets=task.budgets[1:], kept=kept, steps=(*task.steps, (layer, count)))
    if not done.budgets:
        return done
    indices = torch.arange(count) if selection is None else selection.indices.cpu()
    now = places[task.row].cpu()[task.span.positions_of(indices)]
    layout = TokenLayout(task.span.layout.coords[indices], task.span.layout.diagonal)
    return replace(done, span=VisualSpan.at(now.tolist(), layout))


def _within_image(task: Task, chosen: Selection) -> Selection:
    """A choice among what an earlier stage left, counted in the whole image's tokens."""
    if task.kept is None:
        return chosen
    left = task.kept.indices.cpu()
    pivots = None if chosen.pivots is None else left[chosen.pivots.cpu()]
    return Selection(left[chosen.indices.cpu()], left[chosen.order.cpu()], pivots=pivots)


def image_receipt(task: Task, method: Pruner, fit: Callable[[TokenLayout], Fit | None] | None) -> ImageReceipt:
    """The receipt of a task whose stages are all done. fit: tells how a picture was laid on its tokens' grid."""
    every = torch.arange(task.image.length)
    kept = task.kept or Selection(every, every)
    indices = kept.indices.tolist()
    return ImageReceipt(
        row=task.row,
        span=(task.image.start, task.image.stop - task.image.start),
        layer=task.steps[-1][0],
        method=method.name,
        n_before=task.image.length,
        n_after=len(indices),
        indices=indices,
        order=kept.order.tolist(),
        coords=task.image.layout.coords[indices].tolist(),
        pivots=[] if kept.pivots is None else kept.pivots.tolist(),
        nearest=None if kept.nearest is None else kept.nearest.tolist(),
        offsets=None if task.image.offsets is None else task.image.offsets.tolist(),
        steps=[list(step) for step in task.steps],
        fit=fit(task.image.true_layout or task.image.layout) if fit else None,
    )
