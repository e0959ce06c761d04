"""LLaVA-1.5 in vLLM. Checkpoints of the same class with Pixtral's tower run dense and refuse wishes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, PixtralVisionConfig
from vllm.model_executor.models import llava
from vllm.multimodal import MULTIMODAL_REGISTRY

from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.serving.wish import AT_INPUT, FROM_CLIP, Wish
from vlm_pruner.vllm.class_token import ClassToken
from vlm_pruner.vllm.embeddings import PrunedEmbeddings
from vlm_pruner.vllm.processing import PruningInfo, PruningProcessor


def not_one_token_a_patch(config: Any) -> str:
    """Why a LLaVA's tower gives no token per patch of a square grid; empty if it does."""
    vision = config.vision_config
    if isinstance(vision, PixtralVisionConfig):
        return "checkpoints with Pixtral's tower are not supported"
    wanted = "default" if isinstance(vision, CLIPVisionConfig) else "full"
    found = config.vision_feature_select_strategy
    return "" if found == wanted else f"vision_feature_select_strategy={found!r} is not one token per patch"


class PrunedLlavaInfo(PruningInfo, llava.LlavaProcessingInfo):
    fixed_size = True

    @property
    def gives(self) -> frozenset[str]:  # type: ignore[override]
        of_clip = isinstance(self.get_hf_config().vision_config, CLIPVisionConfig)
        return AT_INPUT | FROM_CLIP if of_clip else AT_INPUT

    def unsupported(self) -> str:
        return not_one_token_a_patch(self.get_hf_config())


class PixtralInfo(PruningInfo, llava.PixtralHFProcessingInfo):
    def unsupported(self) -> str:
        return not_one_token_a_patch(self.get_hf_config())


class PrunedLlavaProcessor(PruningProcessor, llava.LlavaMultiModalProcessor):
    pass


class PixtralProcessor(PruningProcessor, llava.PixtralHFMultiModalProcessor):
    pass


def _info(ctx: Any) -> Any:
    pixtral = isinstance(ctx.get_hf_config().vision_config, PixtralVisionConfig)
    return PixtralInfo(ctx) if pixtral else PrunedLlavaInfo(ctx)


def _processor(info: Any, dummy_inputs: Any) -> Any:
    return (PixtralProcessor if isinstance(info, PixtralInfo) else PrunedLlavaProcessor)(info, dummy_inputs)


class OneAxis(PrunedEmbeddings):
    """A decoder whose positions have one axis."""

    config: Any
    decoder_axes = 1

    @property
    def side(self) -> int:
        """Tokens along a picture, or a tile."""
        return int(self.config.vision_config.image_size // self.config.vision_config.patch_size)

    def unpruned_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        return torch.arange(len(tokens)).expand(3, -1), 0


@MULTIMODAL_REGISTRY.register_processor(_processor, info=_info, dummy_inputs=llava.LlavaDummyInputsBuilder)
class PrunedLlava(OneAxis, llava.LlavaForConditionalGeneration):
    fixed_size = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        of_clip = isinstance(self.config.vision_config, CLIPVisionConfig)
        self.class_token = ClassToken(self.vision_tower, self.multi_modal_projector) if of_clip else None

    def _encode(self, call: dict[str, Any], wishes: Sequence[Wish | None]) -> tuple[Any, Sequence[dict[str, Tensor]]]:
        if self.class_token is None or not any(wish and wish.method.needs & FROM_CLIP for wish in wishes):
            return super()._encode(call, wishes)
        with self.class_token.watching() as seen:
            rows, _ = super()._encode(call, wishes)
        return rows, seen

    def layouts(self, call: dict[str, Any]) -> list[TokenLayout]:
        return [TokenLayout.grid(self.side, self.side)] * len(call["pixel_values"])

    def whole_tokens(self, data: Any) -> int:
        return self.side**2
