"""The CLIP vision tower: turns pictures into one layer's patch features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlm_pruner.llava.model.multimodal_encoder.tower import Tower

FEATURES = ("patch", "cls_patch")


class CLIPVisionTower(Tower):
    """A CLIP vision model, the layer that supplies the features, and whether they include the class token.

    select_layer:   index into the tower's hidden states; 0 is the embeddings, -1 the last layer's output.
    select_feature: "patch" (N tokens) or "cls_patch" (class token first, N + 1 tokens).
    """

    def __init__(self, vision_config: dict[str, Any], select_layer: int, select_feature: str) -> None:
        super().__init__()
        if select_feature not in FEATURES:
            raise ValueError(
                f"mm_vision_select_feature is {select_feature!r}; supported: {', '.join(map(repr, FEATURES))}"
            )
        self.config = CLIPVisionConfig(**vision_config)
        states = self.config.num_hidden_layers + 1
        if not -states <= select_layer < states:
            raise ValueError(
                f"mm_vision_select_layer is {select_layer}, but the tower has {states} hidden states: "
                f"choose between {-states} and {states - 1}"
            )
        self.select_layer = select_layer
        self.select_feature = select_feature
        self.vision_tower = CLIPVisionModel(self.config)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Pixel values [B, 3, side, side] -> features [B, N, d]; no gradient: the tower is never trained here."""
        pixels = images.to(self.device, self.dtype)
        states = self.vision_tower(
            pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=self.interpolates
        ).hidden_states
        # transformers records each layer's output twice if the caller requests hidden states from the decoder that
        # contains the tower.
        copies = (len(states) - 1) // self.config.num_hidden_layers
        features = (states[0], *states[copies::copies])[self.select_layer]
        return features[:, 1:] if self.select_feature == "patch" else features
