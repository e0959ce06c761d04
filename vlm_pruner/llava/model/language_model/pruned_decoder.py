"""A decoder that owns a pruning method: the base of `VLMPruner(LlamaModel)` and `VLMPruner(Qwen2Model)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlm_pruner.decoder.owner import MethodOwner
from vlm_pruner.decoder.pruning import DecoderPruning
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner


class PrunedDecoder(MethodOwner, nn.Module):
    """Precedes a transformers decoder in a class's bases. With a `method` the decoder drops visual tokens.

        decoder.method = CentrifugalPruner(reduction_ratio=0.889)   # None: dense, the default
        decoder(inputs_embeds=..., visual_spans=[[VisualSpan(35, 576, TokenLayout.grid(24, 24))]], use_cache=True)
        decoder.receipts[-1]

    Pruning is on only while `forward` runs; between calls the decoder is unchanged.
    """

    def _prune_with(self, method: Pruner) -> DecoderPruning:
        pruning = DecoderPruning(self, method, fit=self.fit)
        self.check(method)
        return pruning

    def check(self, method: Pruner) -> None:
        """Raises PruningError if `method` cannot fit any picture. A decoder alone knows of none."""

    def fit(self, layout: TokenLayout) -> Fit | None:
        """How a picture with tokens at `layout` was laid on their grid; a decoder alone cannot tell."""
        return None

    def forward(
        self,
        *args: Any,
        visual_spans: list[list[VisualSpan]] | None = None,
        by_position: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The decoder's own `forward`; `visual_spans` gives, per batch row, the spans of a prefill's visual tokens.

        by_position: the name of an argument of the whole model that counts positions of the un-pruned sequence, such
        as labels. Raises PruningError if there is one and tokens are to be dropped.
        """
        if self._pruning is None:
            return super().forward(*args, **kwargs)
        return self._pruned_forward(self._pruning, visual_spans, by_position, args, kwargs)

    @torch.compiler.disable  # `generate` compiles decoding with a static cache, and would then pass hooks over
    def _pruned_forward(
        self,
        pruning: DecoderPruning,
        visual_spans: list[list[VisualSpan]] | None,
        by_position: str | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        with pruning.running():
            if visual_spans is not None:
                pruning.expect(visual_spans, by_position, kwargs)
            return super().forward(*args, **pruning.arguments(kwargs))
