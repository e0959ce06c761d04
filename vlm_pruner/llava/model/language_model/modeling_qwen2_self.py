"""Qwen2 with VLM-Pruner inside: a decoder that owns a pruning method."""

from __future__ import annotations

from transformers import Qwen2Model

from vlm_pruner.llava.model.language_model.pruned_decoder import PrunedDecoder


class VLMPruner(PrunedDecoder, Qwen2Model):
    """transformers' Qwen2; with a `method` it drops visual tokens before layer `method.layer`. See `PrunedDecoder`."""
