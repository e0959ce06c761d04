"""Each image of a batch while it is pruned: its budgets, what is left after each stage, and finally its receipt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.receipts import ImageReceipt


@dataclass(frozen=True)
class ImageState:
    """One image of a batch row: how to prune it, and what is left of it.

    original: its visual span in the sequence that enters the decoder.
    budgets:  visual tokens to keep at each remaining stage.
    span:     its remaining tokens in the current sequence, while stages remain; None if no token remains.
    kept:     the same tokens, counted within `original`, in the last stage's choice; None if all remain.
    shown:    long, the tokens of `original` that the attention mask does not hide; None if it hides none.
    whole:    at the stage that drops hidden tokens, whatever is chosen: `span` with them.
    steps:    (layer, visual tokens from there on) of each stage that is done.
    """

    row: int
    original: VisualSpan
    budgets: tuple[int, ...]
    span: VisualSpan | None
    kept: Selection | None = None
    shown: Tensor | None = None
    whole: VisualSpan | None = None
    steps: tuple[tuple[int, int], ...] = ()
    newlines_follow: bool = False

    @property
    def countable(self) -> int:
        """Tokens before the next stage that count towards its budget."""
        return 0 if self.span is None else counted(self.span, self.newlines_follow)

    @property
    def remaining(self) -> int:
        """Number of tokens before the next stage."""
        return 0 if self.span is None else self.span.length

    @property
    def budget(self) -> int:
        return min(self.budgets[0], self.countable)

    @property
    def keeps_all(self) -> bool:
        return self.budget == self.countable

    @property
    def keeps_all_to_the_end(self) -> bool:
        return min(self.budgets) >= self.countable

    def skipped(self, layer: int) -> ImageState:
        """The image after a stage before `layer` that left the sequence unchanged."""
        return replace(self, budgets=self.budgets[1:], steps=(*self.steps, (layer, self.remaining)))

    def without(self, hidden: Tensor | None) -> ImageState:
        """The image without the tokens that the attention mask hides. hidden: bool [T] of the row's tokens; None: none.

        At the first stage that drops tokens: what is hidden is gone afterwards.
        """
        if hidden is None or self.kept is not None or self.span is None:
            return self
        shown = (~hidden[self.span.positions()]).nonzero().squeeze(1)
        if len(shown) == self.span.length:
            return self
        span = self.span.part(shown) if len(shown) else None
        return replace(self, span=span, kept=Selection(shown, shown), shown=shown, whole=self.span)

    def reduced(self, selection: Selection | None, layer: int, new_positions: Tensor) -> ImageState:
        """The image after a stage. selection: None if all is kept.

        new_positions: long [B, T], the new position of each old one. Read only if another stage follows, because that
        waits for a GPU.
        """
        count = self.remaining if selection is None else len(selection.indices)
        kept = self.kept if selection is None else self._within_image(selection)
        done = replace(self, budgets=self.budgets[1:], kept=kept, whole=None, steps=(*self.steps, (layer, count)))
        if not done.budgets or self.span is None:
            return done
        indices = torch.arange(count, device="cpu") if selection is None else selection.indices.cpu()
        now = new_positions[self.row].cpu()[self.span.positions_of(indices)]
        return replace(done, span=VisualSpan.at(now.tolist(), self.span.layout.part(indices)))

    def _within_image(self, chosen: Selection) -> Selection:
        """Converts a choice among the remaining tokens to indices within the whole image."""
        if self.kept is None:
            return chosen
        left = self.kept.indices.cpu()
        pivots = None if chosen.pivots is None else left[chosen.pivots.cpu()]
        return Selection(left[chosen.indices.cpu()], left[chosen.order.cpu()], pivots=pivots)

    def receipt(self, method: Pruner, fit: Callable[[TokenLayout], Fit | None] | None) -> ImageReceipt:
        """The receipt, after all stages. fit: maps a layout to how the picture was fitted to its grid."""
        every = torch.arange(self.original.length, device="cpu")
        kept = self.kept or Selection(every, every)
        indices = kept.indices.tolist()
        return ImageReceipt(
            row=self.row,
            span=(self.original.start, self.original.stop - self.original.start),
            layer=self.steps[-1][0],
            method=method.name,
            n_before=self.original.length,
            n_after=len(indices),
            indices=indices,
            order=kept.order.tolist(),
            coords=self.original.layout.coords[indices].tolist(),
            pivots=[] if kept.pivots is None else kept.pivots.tolist(),
            nearest=None if kept.nearest is None else kept.nearest.tolist(),
            offsets=None if self.original.offsets is None else self.original.offsets.tolist(),
            steps=[list(step) for step in self.steps],
            fit=fit(self.original.true_layout or self.original.layout) if fit else None,
        )


def plan(spans: list[list[VisualSpan]], method: Pruner, depth: int) -> list[ImageState]:
    """Images in order of row and position. A span with fewer tokens than its budget keeps all of them."""
    images = []
    stages, follow = len(method.layers(depth)), method.newlines == "of-kept-rows"
    for row, row_spans in enumerate(spans):
        if method.per_frame:
            row_spans = [frame for span in row_spans for frame in span.frames()]
        for number, span in enumerate(sorted(row_spans, key=lambda span: span.start)):
            tokens = counted(span, follow)
            if (number > 0 and method.released) or too_small(span, method) or not method.suits(span.layout):
                budgets = (tokens,) * stages
            else:
                budgets = method.budgets(tokens, depth, span.released.rounding)
            whole = span.as_released() if method.released else span
            images.append(ImageState(row, whole, budgets, whole, newlines_follow=follow))
    return images


def too_small(span: VisualSpan, method: Pruner) -> bool:
    """Whether the image has fewer tokens than `method` should keep."""
    follow = method.newlines == "of-kept-rows"
    return method.suits(span.layout) and method.keep_tokens is not None and method.keep_tokens > counted(span, follow)


def counted(span: VisualSpan, newlines_follow: bool) -> int:
    """Tokens of a span that count towards a budget: all, or all but newlines."""
    lines = span.layout.lines if newlines_follow else None
    return span.length - (0 if lines is None else int(lines.newlines.sum()))


def check_inside(images: list[ImageState], rows: int, length: int) -> None:
    """Raises PruningError if an image lies outside a batch of `rows` sequences of `length` tokens."""
    for image in images:
        if image.span is not None and (image.row >= rows or image.span.stop > length):
            raise PruningError(
                f"visual tokens {image.span.start}..{image.span.stop - 1} of row {image.row} lie outside the batch of "
                f"{rows} rows of {length} tokens; prefill the whole prompt in one forward call"
            )


def tokens_of(sequence: Tensor, span: VisualSpan) -> Tensor:
    """[N, ...]: the rows of `sequence` [T, ...] at a span's positions. Read-only: without gaps it is a view."""
    return sequence[span.index(sequence.device)]
