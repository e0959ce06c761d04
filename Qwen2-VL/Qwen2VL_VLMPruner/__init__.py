"""Qwen2-VL with VLM-Pruner inside, under the name that the paper's README gives it."""

from Qwen2VL_VLMPruner.modeling_qwen2_vl_self import VLMPruner, VLMPrunerForConditionalGeneration

__all__ = ["VLMPruner", "VLMPrunerForConditionalGeneration"]
