"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL in vLLM: positions with three axes, pictures of any size. Videos stay whole."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.vllm.embeddings import PrunedEmbeddings
from vlm_pruner.vllm.processing import PruningInfo, PruningProcessor


class ThreeAxes(PrunedEmbeddings):
    """Positions in time, height and width. All pictures share one array of pixels; their grids tell its parts."""

    config: Any

    def _grid(self, thw: Tensor) -> tuple[int, int]:
        """(rows, columns) in tokens of a picture's patch grid (t, h, w)."""
        merge = self.config.vision_config.spatial_merge_size
        _, rows, columns = thw.flatten().tolist()
        return rows // merge, columns // merge

    def layouts(self, call: dict[str, Any]) -> list[TokenLayout]:
        return [TokenLayout.grid(*self._grid(thw)) for thw in call["image_grid_thw"]]

    def whole_tokens(self, data: Any) -> int:
        return math.prod(self._grid(data["image_grid_thw"].data))

    def part(self, call: dict[str, Any], pictures: slice) -> dict[str, Any]:
        grids = call["image_grid_thw"]
        ends = [0, *grids.prod(dim=-1).cumsum(0).tolist()]
        pixels = slice(ends[pictures.start], ends[pictures.stop])
        return {**call, "pixel_values": call["pixel_values"][pixels], "image_grid_thw": grids[pictures]}

    def offsets_of(self, layout: TokenLayout, indices: Tensor) -> Tensor:
        x, y = layout.coords.long().to(indices.device)[indices].T
        return torch.stack([torch.zeros_like(x), y, x], dim=1)


class PrunedQwen2VLInfo(PruningInfo, qwen2_vl.Qwen2VLProcessingInfo):
    pass


class PrunedQwen2VLProcessor(PruningProcessor, qwen2_vl.Qwen2VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen2VLProcessor, info=PrunedQwen2VLInfo, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class PrunedQwen2VL(ThreeAxes, qwen2_vl.Qwen2VLForConditionalGeneration):
    pass


class PrunedQwen2_5_VLInfo(PruningInfo, qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    pass


class PrunedQwen2_5_VLProcessor(PruningProcessor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen2_5_VLProcessor, info=PrunedQwen2_5_VLInfo, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen2_5_VL(ThreeAxes, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    pass


class PrunedQwen3VLInfo(PruningInfo, qwen3_vl.Qwen3VLProcessingInfo):
    pass


class PrunedQwen3VLProcessor(PruningProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen3VLProcessor, info=PrunedQwen3VLInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(ThreeAxes, qwen3_vl.Qwen3VLForConditionalGeneration):
    @property
    def row_width(self) -> int:
        """Behind a token's embedding are the rows that DeepStack adds in the first layers."""
        return int(self.visual_dim + (self.multiscale_dim if self.use_deepstack else 0))
