"""LLaVA-OneVision in transformers' classes: pictures of any resolution, pictures side by side, and videos.

A single picture in a prompt becomes base, tiles and newlines, as in LLaVA-NeXT (see `vlm_pruner.geometry.tiles`), but a
large one gets a shrunk grid of tile tokens. One of several pictures is its base alone, and a video its pooled frames;
each ends with one newline, one step to the right of the last token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vlm_pruner.adapters.base import encoded, grid_fit
from vlm_pruner.adapters.llava_next import pairs
from vlm_pruner.adapters.llava_next_video import LlavaNextVideoAdapter
from vlm_pruner.geometry.anyres import limited_grid
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.geometry.videos import video_layout


class LlavaOnevisionAdapter(LlavaNextVideoAdapter):
    """LlavaOnevisionForConditionalGeneration, and the LlavaOnevisionModel inside it."""

    def fit(self, layout: TokenLayout) -> Fit:
        without_newline = TokenLayout(layout.coords[:-1], layout.diagonal)
        if layout.coords.shape[1] == 3:
            return grid_fit(without_newline)  # frames are scaled to a square
        return grid_fit(without_newline, "pad") if len(layout) == self._side**2 + 1 else super().fit(layout)

    def _layouts(self, call: dict[str, Any]) -> list[TokenLayout]:
        counts = call.get("batch_num_images")
        if encoded(call, "image") is not None or call.get("pixel_values") is None or counts is None:
            return super()._layouts(call)
        alone = [count == 1 for count in torch.as_tensor(counts).tolist() for _ in range(count)]
        sizes = zip(pairs(call["image_sizes"]), alone, strict=True)
        return [self._from_size(*size) if tiled else self._base_alone() for size, tiled in sizes]

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = super()._grid(height, width)
        return limited_grid(rows, columns, self._side, self.model.config.vision_aspect_ratio)

    def _read_off(self, features: Tensor) -> TokenLayout:
        return self._base_alone() if len(features) == self._side**2 + 1 else super()._read_off(features)

    def _base_alone(self) -> TokenLayout:
        return TokenLayout.grid(self._side, self._side).with_newlines(self._side**2)

    def _frame_side(self) -> int:
        return math.ceil(self._side / 2)

    def _video(self, frames: int) -> TokenLayout:
        return video_layout(frames, self._frame_side(), "one_token")
