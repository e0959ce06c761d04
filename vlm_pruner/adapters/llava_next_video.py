"""LLaVA-NeXT-Video in transformers' classes: pictures as in LLaVA-NeXT, and videos of pooled frames.

A video is one span with one budget, and its tokens have coordinates (t, x, y). `TokenLayout` defines how time counts in
the selection.
"""

from __future__ import annotations

from typing import Any

from vlm_pruner.adapters.base import encoded, grid_fit, lay_out, named_arguments
from vlm_pruner.adapters.llava_next import LlavaNextAdapter
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """LlavaNextVideoForConditionalGeneration, and the LlavaNextVideoModel inside it."""

    videos = True

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call = named_arguments(self.entry, args, kwargs)
        videos = lay_out(call, {self.model.config.video_token_id: self._videos(call)})
        return [own + more for own, more in zip(super().spans(args, kwargs), videos, strict=True)]

    def fit(self, layout: TokenLayout) -> Fit:
        if layout.coords.shape[1] == 2:
            return super().fit(layout)
        return grid_fit(layout, "crop", self.model.config.vision_config.image_size)

    def _videos(self, call: dict[str, Any]) -> list[TokenLayout]:
        """Layouts of the call's videos, whose frames all have one size."""
        features, pixels = encoded(call, "video"), call.get("pixel_values_videos")
        if features is not None:
            side = self._frame_side()
            return [self._video(len(tokens) // side**2) for tokens in features]
        return [] if pixels is None else [self._video(len(frames)) for frames in pixels]

    def _frame_side(self) -> int:
        """Rows of a frame's tokens, which equal its columns."""
        side: int = self._side // self.model.config.spatial_pool_stride
        return side

    def _video(self, frames: int) -> TokenLayout:
        return TokenLayout.video(frames, self._frame_side(), self._frame_side())
