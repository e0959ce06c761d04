"""Builds the vision tower that a configuration describes."""

from __future__ import annotations

from typing import Any, TypeAlias

from vlm_pruner.llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from vlm_pruner.llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower

VisionTower: TypeAlias = CLIPVisionTower | SiglipVisionTower


def build_vision_tower(config: Any) -> VisionTower:
    """A tower with uninitialised weights from `config.mm_vision_config` (the tower's own config.json as a dict)."""
    vision = config.mm_vision_config
    if not vision:
        raise ValueError(
            f"the configuration has no mm_vision_config (mm_vision_tower is {config.mm_vision_tower!r}): "
            "load checkpoints with vlm_pruner.llava.model.builder.load_model, which reads the tower's configuration"
        )
    if vision.get("model_type") == "siglip_vision_model":
        return SiglipVisionTower(vision)
    return CLIPVisionTower(vision, config.mm_vision_select_layer, config.mm_vision_select_feature)
