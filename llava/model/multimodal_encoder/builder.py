"""The vision tower that a configuration asks for."""

from __future__ import annotations

from typing import Any

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


def build_vision_tower(config: Any) -> CLIPVisionTower:
    """A tower with uninitialised weights from `config.mm_vision_config` (the tower's own config.json as a dict)."""
    if not config.mm_vision_config:
        raise ValueError(
            f"the configuration has no mm_vision_config (mm_vision_tower is {config.mm_vision_tower!r}): "
            "load checkpoints with llava.model.builder.load_model, which reads the tower's configuration"
        )
    return CLIPVisionTower(config.mm_vision_config, config.mm_vision_select_layer, config.mm_vision_select_feature)
