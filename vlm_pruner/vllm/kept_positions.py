"""Kept tokens keep their positions.

vLLM numbers tokens 0, 1, 2, ..., unless a configuration says M-RoPE: then it asks the model once per request, before
the vision tower runs. Here text tokens get their positions in the un-pruned prompt, which follow from sizes, and all
tokens of a pruned picture get that of its first token. Each kept token's offset from there travels as extra channels of
its embedding: `embed_input_ids` takes the offsets off, and `forward` adds them. Nothing is remembered between steps, so
chunks of a prefill, preemption and cached prefixes need no special care.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlm_pruner.serving.placement import AXES, Item, Placement, place, split_offsets, with_offsets
from vlm_pruner.vllm.processing import has_wish
from vlm_pruner.vllm.refusals import check_engine

_ROOM = 256  # a step may be padded beyond the scheduler's limit


class KeptPositions:
    """A mixin: list it before a vLLM model class.

    Not derived from SupportsMRoPE: the `__init__` of a Protocol would take the place of the model's, and vLLM looks for
    the two members only. A subclass defines `whole_tokens` and, if its decoder has one axis, `unpruned_positions`.

    decoder_axes: of the positions that the decoder takes. vLLM brings three equal rows to a decoder with one axis.
    """

    supports_mrope = True
    decoder_axes = AXES

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        keeps = bool(vllm_config.model_config.uses_mrope)
        check_engine(vllm_config, keeps)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.keeps_positions = keeps
        self.hidden_size = int(vllm_config.model_config.get_inputs_embeds_size())
        if keeps:
            room = vllm_config.scheduler_config.max_num_batched_tokens + _ROOM
            # One buffer for all steps, so that a CUDA graph finds it again.
            self.offsets = torch.zeros(AXES, room, dtype=torch.int64, device=vllm_config.device_config.device)

    @property
    def row_width(self) -> int:
        """Channels of a picture's rows without offsets."""
        return self.hidden_size

    def whole_tokens(self, data: Any) -> int:
        """Tokens of an un-pruned picture, from its fields on the CPU."""
        raise NotImplementedError

    def unpruned_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        """Positions [3, T] of an un-pruned prompt, and how far beyond T the next position is."""
        return super().get_mrope_input_positions(tokens, features)  # type: ignore[misc]

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        items = [self._item(feature) for feature in features]
        placed = place(items, len(input_tokens))
        whole = [
            replace(feature, mm_position=replace(feature.mm_position, offset=start, length=item.whole))
            for feature, item, start in zip(features, items, placed.starts, strict=True)
        ]
        positions, delta = self.unpruned_positions(_unpruned(input_tokens, items, placed), whole)
        return positions[:, placed.index], delta + placed.length - len(input_tokens)

    def _item(self, feature: Any) -> Item:
        where = feature.mm_position
        pruned = feature.modality == "image" and has_wish(feature.data)
        return Item(where.offset, where.length, self.whole_tokens(feature.data) if pruned else where.length)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None, **more: Any
    ) -> Tensor:
        if self.keeps_positions:
            self.offsets.zero_()
            if multimodal_embeddings is not None and len(multimodal_embeddings) and is_multimodal is not None:
                multimodal_embeddings = self._without_offsets(multimodal_embeddings, is_multimodal)
        found: Tensor = super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal, **more
        )
        return found

    def _without_offsets(self, items: Iterable[Tensor], is_multimodal: Tensor) -> list[Tensor]:
        """Rows without their offsets, which go to the buffer, where `is_multimodal` [T] marks the step's tokens."""
        rows, offsets = zip(*(split_offsets(item, self.row_width) for item in items), strict=True)
        where = is_multimodal.to(self.offsets.device)
        self.offsets[:, : len(where)].masked_scatter_(where, torch.cat(offsets, dim=1).to(self.offsets))
        return list(rows)

    def with_offsets(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """rows [R, c], with offsets [R, 3] appended as channels if the engine keeps positions."""
        return with_offsets(rows, offsets) if self.keeps_positions else rows

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **more: Any,
    ) -> Any:
        if self.keeps_positions:
            positions = self._true_positions(positions)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **more)  # type: ignore[misc]

    def _true_positions(self, positions: Tensor) -> Tensor:
        """Of a step's tokens, as the decoder takes them: [3, T] or [T]. positions: [3, T], without offsets."""
        true = positions + self.offsets[:, : positions.shape[-1]]
        return true[0] if self.decoder_axes == 1 else true


def _unpruned(tokens: list[int], items: list[Item], placed: Placement) -> list[int]:
    """The un-pruned prompt: a pruned picture's placeholder as often as it has tokens."""
    found = [0] * placed.length
    for token, there in zip(tokens, placed.index, strict=True):
        found[there] = token
    for item, start in zip(items, placed.starts, strict=True):
        if item.kept < item.whole:
            found[start : start + item.whole] = [tokens[item.start]] * item.whole
    return found
