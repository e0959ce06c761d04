"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL (with or without experts): images and videos of any size.

A video is one span with one budget, and its tokens have coordinates (t, x, y); one step of t is one step of the vision
tower, which is two frames of the file. `TokenLayout` defines how time counts in the selection.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from vlm_pruner.adapters.base import (
    Adapter,
    check_not_cut,
    encoded,
    named_arguments,
    placeholder_positions,
    placeholders,
    rows_without_spans,
    runs,
)
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import Released, TokenLayout, VisualSpan

_Shape = tuple[int, ...]  # (t, h, w) in tokens, or (n,) if only their number is known


class QwenVLAdapter(Adapter):
    """compat="released" treats these models as the released code treats Qwen2-VL, which has no videos."""

    released_rounding = "floor"

    videos = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config = model.config  # read once: each access to a transformers configuration takes microseconds
        self._merge: int = config.vision_config.spatial_merge_size
        self._placeholders = {"image": config.image_token_id, "video": config.video_token_id}

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call = named_arguments(self.entry, args, kwargs)
        spans = rows_without_spans(call)
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            shapes = self._shapes(call, kind, pixels)
            if not shapes:
                continue  # the model generated the placeholder as text
            where = placeholders(call, self._placeholders[kind])
            check_not_cut(call, where)
            by_row = placeholder_positions(where, [math.prod(shape) for shape in shapes])
            in_order = iter(shapes)
            for row, row_spans in enumerate(spans):
                row_spans += [self._span(own, next(in_order), call, row) for own in by_row[row]]
        return spans

    def _shapes(self, call: dict[str, Any], kind: str, pixels: str) -> list[_Shape]:
        """Shapes of the images (or videos) in this call. `generate` encodes them first and omits their grids."""
        merge, thw = self._merge, call.get(f"{kind}_grid_thw")
        grids: list[_Shape] = [] if thw is None else [(t, h // merge, w // merge) for t, h, w in thw.tolist()]
        features = encoded(call, kind)
        if features is None:
            return grids if call.get(pixels) is not None else []
        sizes = list(map(len, features))
        return grids if sizes == [math.prod(grid) for grid in grids] else [(size,) for size in sizes]

    def _span(self, where: list[int], shape: _Shape, call: dict[str, Any], row: int) -> VisualSpan:
        t, h, w = shape if len(shape) == 3 else _shape_of(where, call.get("position_ids"), row)
        return VisualSpan.at(where, *_layouts(t, h, w, self._merge))


@lru_cache(maxsize=64)  # a run has few picture sizes, and a prefill should not wait for coordinates
def _layouts(t: int, h: int, w: int, merge: int) -> tuple[TokenLayout, Released]:
    """The tokens' layout, and the released code's, which takes a row of tokens to be as long as a row of patches."""
    if t > 1:
        return TokenLayout.video(t, h, w), Released(rounding=QwenVLAdapter.released_rounding)
    patches = TokenLayout.grid(h * merge, w * merge)
    mistaken = TokenLayout(patches.coords[: h * w], patches.diagonal)
    return TokenLayout.grid(h, w), Released(mistaken, QwenVLAdapter.released_rounding)


def _shape_of(where: list[int], rotary: Tensor | None, row: int) -> _Shape:
    """(t, h, w) of the tokens at `where` [n], derived from their rotary positions, which count rows and columns."""
    n = len(where)
    if rotary is not None and rotary.ndim == 3:
        # Text separates a Qwen3-VL video's frames: the first one gives the shape.
        first = slice(where[0], where[0] + runs(where)[0])
        h, w = (int(axis.max() - axis.min()) + 1 for axis in rotary[-2:, row, first])
        if n % (h * w) == 0:
            return n // (h * w), h, w
    raise PruningError(
        f"the positions of {n} visual tokens do not form a grid; pass mm_token_type_ids, which the processor returns"
    )
