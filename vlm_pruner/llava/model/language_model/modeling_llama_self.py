"""Llama with VLM-Pruner inside: a decoder that owns a pruning method."""

from __future__ import annotations

from transformers import LlamaModel

from vlm_pruner.llava.model.language_model.pruned_decoder import PrunedDecoder


class VLMPruner(PrunedDecoder, LlamaModel):
    """transformers' Llama; with a `method` it drops visual tokens before layer `method.layer`. See `PrunedDecoder`."""
