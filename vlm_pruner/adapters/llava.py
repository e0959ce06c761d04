"""LLaVA-1.5 in transformers' classes: one square grid of visual tokens per image; with Pixtral's tower, of any size."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm_pruner.adapters.base import (
    Adapter,
    check_one_token_a_patch,
    grid_fit,
    has_class_token,
    lay_out,
    lay_out_rows,
    named_arguments,
    picture_count,
    tokens_by_size,
)
from vlm_pruner.adapters.clip_tower import ClipTower
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner


class LlavaAdapter(Adapter):
    """LlavaForConditionalGeneration, and the LlavaModel inside it. Placeholders in input_ids tell where images are.

    Its tower may be CLIP (LLaVA-1.5), SigLIP (llava-interleave) or Pixtral, whose pictures have any size.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        tower = self.entry.vision_tower
        check_one_token_a_patch(model, tower)
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        self._layout = None if vision.model_type == "pixtral" else TokenLayout.grid(side, side)
        self._cropped = has_class_token(tower)  # CLIP's processors crop, SigLIP's scale

    def check(self, method: Pruner) -> None:
        if self._layout is not None:
            method.budget(len(self._layout))

    def tower(self) -> ClipTower:
        entry, layer = self.entry, self.model.config.vision_feature_layer
        return ClipTower.of(entry.vision_tower, layer, entry.multi_modal_projector)

    def fit(self, layout: TokenLayout) -> Fit:
        """As the processor of the published checkpoints does."""
        if self._cropped:
            return grid_fit(layout, "crop", self.model.config.vision_config.image_size)
        return grid_fit(layout)

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call, token_id = named_arguments(self.entry, args, kwargs), self.model.config.image_token_id
        if self._layout is None:
            return lay_out_rows(call, token_id, tokens_by_size(call, self.model.config.vision_config.patch_size))
        return lay_out(call, {token_id: [self._layout] * picture_count(call)})
