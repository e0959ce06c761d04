"""LLaVA-1.5 in transformers' classes: one square grid of visual tokens per image."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm_pruner.adapters.base import Adapter, encoded, grid_fit, lay_out, named_arguments
from vlm_pruner.adapters.clip_tower import ClipTower
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner


class LlavaAdapter(Adapter):
    """LlavaForConditionalGeneration, and the LlavaModel inside it. Placeholders in input_ids mark the images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        strategy = model.config.vision_feature_select_strategy
        if strategy != "default":
            raise PruningError(
                f"vision_feature_select_strategy={strategy!r} adds a token that has no position in the picture; "
                "pruning needs 'default'"
            )
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        self._layout = TokenLayout.grid(side, side)

    def check(self, method: Pruner) -> None:
        method.budget(len(self._layout))

    def tower(self) -> ClipTower:
        entry, layer = self.entry, self.model.config.vision_feature_layer
        return ClipTower.of(entry.vision_tower, layer, entry.multi_modal_projector)

    def fit(self, layout: TokenLayout) -> Fit:
        """Cropped, as by the processor of the published checkpoints."""
        return grid_fit(layout, "crop", self.model.config.vision_config.image_size)

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call = named_arguments(self.entry, args, kwargs)
        features = encoded(call, "image")
        pictures = call.get("pixel_values") if features is None else features
        layouts = [] if pictures is None else [self._layout] * len(pictures)
        return lay_out(call, {self.model.config.image_token_id: layouts})
