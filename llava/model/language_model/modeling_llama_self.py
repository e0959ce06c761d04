"""Llama with VLM-Pruner inside: a decoder that owns a pruning method."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaModel

from vlm_pruner.fit import Fit
from vlm_pruner.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner
from vlm_pruner.pruning import DecoderPruning
from vlm_pruner.receipts import Receipt


class VLMPruner(LlamaModel):
    """transformers' Llama; with a `method` it drops visual tokens before layer `method.layer`.

        decoder.method = CentrifugalPruner(reduction_ratio=0.889)   # None: dense, the default
        decoder(inputs_embeds=..., visual_spans=[[VisualSpan(35, 576, TokenLayout.grid(24, 24))]], use_cache=True)
        decoder.receipts[-1]

    Pruning is on only while `forward` runs, so nothing is left behind in the decoder between calls.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self._pruning: DecoderPruning | None = None

    @property
    def method(self) -> Pruner | None:
        """The pruning method, or None for the dense model."""
        return self._pruning.method if self._pruning else None

    @method.setter
    def method(self, method: Pruner | None) -> None:
        self._pruning = None if method is None else DecoderPruning(self, method, fit=self.fit)

    @property
    def receipts(self) -> list[Receipt]:
        """What was kept: one receipt per prefill since the method was set."""
        return self._pruning.receipts if self._pruning else []

    def fit(self, layout: TokenLayout) -> Fit | None:
        """How a picture with tokens at `layout` was laid on their grid; a decoder alone cannot tell."""
        return None

    def forward(self, *args: Any, visual_spans: list[list[VisualSpan]] | None = None, **kwargs: Any) -> Any:
        """As `LlamaModel.forward`; `visual_spans` says, per batch row, where a prefill's visual tokens are."""
        if self._pruning is None:
            return super().forward(*args, **kwargs)
        with self._pruning as pruning:
            if visual_spans is not None:
                pruning.expect(visual_spans)
            return super().forward(*args, **pruning.arguments(kwargs))
