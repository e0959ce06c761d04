"""Newline tokens that follow their lines: not chosen, not counted, and kept where their line keeps a token.

For methods with `newlines="of-kept-rows"`. The method sees the other tokens only, and merges those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlm_pruner.decoder.image_states import ImageState
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.methods.view import View


@dataclass(frozen=True)
class WithNewlines(Selection):
    """A choice among `content`, long [n], the tokens that are no newlines, and the newlines that go with it.

    chosen: the method's own selection, counted within `content`.
    """

    content: Tensor = field(kw_only=True)
    chosen: Selection = field(kw_only=True)


def choose_all(method: Pruner, images: Sequence[ImageState], view: Callable[[ImageState], View]) -> list[Selection]:
    """For each image, or what is left of it, the tokens that stay. view: what the method sees of an image."""
    contents = [_content(image) for image in images]
    pairs = list(zip(images, contents, strict=True))
    chosen = method.choose_all([view(image if content is None else _only(image, content)) for image, content in pairs])
    return [
        selection if content is None else _with_newlines(image, content, selection)
        for (image, content), selection in zip(pairs, chosen, strict=True)
    ]


def _content(image: ImageState) -> Tensor | None:
    """Long [n], the tokens that are no newlines; None if newlines are like other tokens."""
    if not image.newlines_follow or image.span is None or image.span.layout.lines is None:
        return None
    return (~image.span.layout.lines.newlines).nonzero().squeeze(1)


def _only(image: ImageState, content: Tensor) -> ImageState:
    """The image without its newlines."""
    assert image.span is not None and image.original.layout.lines is not None
    shown = torch.arange(image.original.length, device="cpu") if image.shown is None else image.shown
    shown = shown[~image.original.layout.lines.newlines[shown]]
    return replace(image, span=image.span.part(content), shown=shown)


def _with_newlines(image: ImageState, content: Tensor, chosen: Selection) -> WithNewlines:
    """A choice among `content`, and the newlines of the lines that keep a token."""
    assert image.span is not None and image.span.layout.lines is not None
    lines, device = image.span.layout.lines, chosen.indices.device
    content, newlines, rows = content.to(device), lines.newlines.to(device), lines.rows.to(device)
    kept = content[chosen.indices]
    ends = (newlines & torch.isin(rows, rows[kept])).nonzero().squeeze(1)
    order = torch.cat([content[chosen.order], ends])
    pivots = None if chosen.pivots is None else content[chosen.pivots]
    return WithNewlines(order.sort().values, order, pivots=pivots, content=content, chosen=chosen)


def merge(method: Pruner, tokens: Tensor, selection: Selection) -> Tensor:
    """[R, d], what stays of an image's `tokens` [N, d], merged by the method; newlines as they are."""
    if not isinstance(selection, WithNewlines):
        return method.merge(tokens, selection)
    merged = tokens[selection.indices]
    slots = torch.searchsorted(selection.indices, selection.content[selection.chosen.indices])
    return merged.index_copy(0, slots, method.merge(tokens[selection.content], selection.chosen).to(merged))


def assigned(method: Pruner, tokens: Tensor, selection: Selection) -> Tensor:
    """Long [N], where in `selection.indices` each of an image's `tokens` [N, d] counts, or -1; see Pruner.assigned."""
    if not isinstance(selection, WithNewlines):
        return method.assigned(tokens, selection)
    own = method.assigned(tokens[selection.content], selection.chosen)
    slots = torch.searchsorted(selection.indices, selection.content[selection.chosen.indices])
    group = own.new_full((len(tokens),), -1)
    group[selection.content] = torch.where(own < 0, -1, slots[own.clamp(min=0)])
    group[selection.indices] = torch.arange(len(selection.indices), device=group.device)
    return group
