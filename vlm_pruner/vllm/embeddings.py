"""In the worker: chooses and merges each picture's tokens after vision tower and projector, which run unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods import View
from vlm_pruner.serving.placement import batches
from vlm_pruner.serving.wish import Wish
from vlm_pruner.vllm.kept_positions import KeptPositions
from vlm_pruner.vllm.processing import FIELD, wish_of


class PrunedEmbeddings(KeptPositions):
    """A mixin: list it before a vLLM model class."""

    fixed_size = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.tower_tokens = int(vllm_config.scheduler_config.max_num_encoder_input_tokens)

    def layouts(self, call: dict[str, Any]) -> list[TokenLayout]:
        """The layout of each picture of a call of `embed_multimodal`."""
        raise NotImplementedError

    def part(self, call: dict[str, Any], pictures: slice) -> dict[str, Any]:
        """The call for some of its pictures."""
        return {name: values[pictures] for name, values in call.items()}

    def offsets_of(self, layout: TokenLayout, indices: Tensor) -> Tensor:
        """Positions of kept tokens `indices` [R], from that of the picture's first token: long [R, 3]."""
        return indices[:, None].expand(-1, 3)

    def embed_multimodal(self, **call: Any) -> Any:
        fields = call.pop(FIELD, None)
        wishes = [] if fields is None else [wish_of(field) for field in fields]
        if not any(wishes):
            return super().embed_multimodal(**call)  # type: ignore[misc]
        layouts = self.layouts(call)
        # vLLM's budget for the tower counts the tokens that stay; memory was profiled for the tokens that enter.
        runs = batches([len(layout) for layout in layouts], self.tower_tokens)
        pruned: list[Tensor] = []
        for run in runs:
            rows, seen = self._encode(self.part(call, run), wishes[run])
            pruned += [self._prune(*one) for one in zip(rows, layouts[run], wishes[run], seen, strict=True)]
        return tuple(pruned)

    def _encode(self, call: dict[str, Any], wishes: Sequence[Wish | None]) -> tuple[Any, Sequence[dict[str, Tensor]]]:
        """Each picture's rows, and further fields of its View."""
        return super().embed_multimodal(**call), [{}] * len(wishes)  # type: ignore[misc]

    @torch.inference_mode()
    def _prune(self, rows: Tensor, layout: TokenLayout, wish: Wish | None, seen: dict[str, Tensor]) -> Tensor:
        """[R, c] of a picture's rows [N, c], of which the first `hidden_size` channels enter the decoder.

        Qwen3-VL appends what later layers add (DeepStack): kept tokens keep theirs unmerged.
        """
        if wish is None:
            return rows
        if len(rows) != len(layout):
            raise RuntimeError(
                f"a picture has {len(rows)} tokens, its layout {len(layout)}: VLM-Pruner does not fit it"
            )
        kept = wish.budget(len(rows), fixed_size=self.fixed_size)
        if kept == len(rows):
            return rows
        tokens = rows[:, : self.hidden_size]
        selection = wish.method.choose(View(tokens, tokens, layout, kept, embeddings=tokens, **seen))
        merged = wish.method.merge(tokens, selection)
        short = torch.cat([merged, rows[selection.indices, self.hidden_size :]], dim=1)
        return self.with_offsets(short, self.offsets_of(layout, selection.indices))
