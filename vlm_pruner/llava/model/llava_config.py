"""LLaVA's configurations: the language model's, the tower's, and how the two are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from transformers import LlamaConfig, Qwen2Config

PATCH_MERGE_TYPES = ("flat", "spatial", "spatial_unpad")


@dataclass(kw_only=True, init=False, repr=False, eq=False)
class MultimodalFields:
    """The fields of a config.json in the original layout beyond its language model's, with LLaVA-1.5's defaults.

    mm_vision_config is the tower's own configuration; the loader fills it in from the tower's folder.
    image_token_index is the placeholder id of transformers' convention; None where the vocabulary has none, and then
    -200 is the placeholder.
    unpad_rounds: whether AnyRes rounds to 7 digits before it truncates a picture's height or width in tokens, as
    transformers does; the original code does not.
    """

    takes_videos: ClassVar[bool] = False

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
    unpad_rounds: bool = False
    tokenizer_padding_side: str = "right"
    tokenizer_model_max_length: int | None = None

    @property
    def anyres(self) -> bool:
        """Whether pictures are cut into tiles, so that they differ in tokens."""
        return (self.image_aspect_ratio or "").startswith("anyres")


class LlavaConfig(MultimodalFields, LlamaConfig):
    """LLaVA on Llama: LLaVA-1.5 and 1.6."""

    model_type = "llava_llama"


class LlavaQwenConfig(MultimodalFields, Qwen2Config):
    """LLaVA on Qwen2: LLaVA-Video and LLaVA-OneVision.

    mm_spatial_pool_mode: how each frame of a video is shrunk to about half its side.
    mm_newline_position:  where newline tokens stand among a video's tokens.
    video_token_index:    the placeholder id of videos in transformers' convention.

    mm_spatial_pool_stride is not among the fields: the original code always pools by 2, whatever the file says.
    """

    model_type = "llava_qwen"
    takes_videos: ClassVar[bool] = True

    mm_spatial_pool_mode: str = "bilinear"
    mm_newline_position: str = "one_token"
    add_faster_video: bool = False
    video_token_index: int | None = None


AnyLlavaConfig: TypeAlias = LlavaConfig | LlavaQwenConfig
