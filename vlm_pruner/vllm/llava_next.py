"""LLaVA-NeXT (1.6) in vLLM: base, tiles and newlines, as in transformers."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models import llava, llava_next
from vllm.multimodal import MULTIMODAL_REGISTRY

from vlm_pruner.adapters.llava_next import unpadded_grid
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.geometry.tiles import unpadded_layout
from vlm_pruner.vllm.llava import OneAxis, not_one_token_a_patch
from vlm_pruner.vllm.processing import PruningInfo, PruningProcessor


class PrunedLlavaNextInfo(PruningInfo, llava_next.LlavaNextProcessingInfo):
    def unsupported(self) -> str:
        return not_one_token_a_patch(self.get_hf_config())


class PrunedLlavaNextProcessor(PruningProcessor, llava_next.LlavaNextMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaNextProcessor, info=PrunedLlavaNextInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class PrunedLlavaNext(OneAxis, llava_next.LlavaNextForConditionalGeneration):
    def layouts(self, call: dict[str, Any]) -> list[TokenLayout]:
        return [self._layout(*size.tolist()) for size in call["image_sizes"]]

    def whole_tokens(self, data: Any) -> int:
        return len(self._layout(*data["image_sizes"].data.tolist()))

    def _layout(self, height: int, width: int) -> TokenLayout:
        pinpoints, pixels = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        return unpadded_layout(self.side, *unpadded_grid(height, width, pinpoints, pixels, self.side))
