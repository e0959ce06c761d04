"""LLaVA's configuration: Llama's, the tower's, and how the two are joined."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

PATCH_MERGE_TYPES = ("flat", "spatial", "spatial_unpad")


class LlavaConfig(LlamaConfig):
    """`config.json` of a checkpoint in the original layout, with LLaVA's names and LLaVA-1.5's defaults.

    mm_vision_config is the tower's own configuration; the loader fills it in from the tower's folder.
    image_token_index is the placeholder id of transformers' convention; None where the vocabulary has none, and then
    -200 is the placeholder.
    """

    model_type = "llava_llama"

    mm_vision_tower: str | None = None
    mm_vision_config: dict[str, Any] | None = None
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_projector_type: str = "linear"
    mm_projector_bias: bool = True
    mm_hidden_size: int = 1024
    mm_patch_merge_type: str = "flat"
    image_aspect_ratio: str | None = None
    image_grid_pinpoints: list[list[int]] | str | None = None
    image_token_index: int | None = None
    tokenizer_padding_side: str = "right"
    tokenizer_model_max_length: int | None = None
