"""LLaVA on Qwen2: LLaVA-Video and LLaVA-OneVision as their authors published them."""

from __future__ import annotations

from transformers import Qwen2ForCausalLM, Qwen2PreTrainedModel

from vlm_pruner.llava.model.language_model.modeling_qwen2_self import VLMPruner
from vlm_pruner.llava.model.llava_arch import LlavaMetaModel
from vlm_pruner.llava.model.llava_causal import LlavaMetaForCausalLM
from vlm_pruner.llava.model.llava_config import LlavaQwenConfig

__all__ = ["LlavaQwenConfig", "LlavaQwenForCausalLM", "LlavaQwenModel"]


class LlavaQwenModel(LlavaMetaModel, VLMPruner):
    """The decoder with tower and projector as children, under the names of the original checkpoints."""

    config_class = LlavaQwenConfig


class LlavaQwenForCausalLM(LlavaMetaForCausalLM, Qwen2ForCausalLM):
    """LLaVA with a `VLMPruner` decoder in `model`. See `LlavaMetaForCausalLM` for the two ways to pass pictures."""

    config_class = LlavaQwenConfig
    _no_split_modules = ("Qwen2DecoderLayer", "SiglipEncoderLayer", "CLIPEncoderLayer")

    def __init__(self, config: LlavaQwenConfig) -> None:
        Qwen2PreTrainedModel.__init__(self, config)
        self.build(config, LlavaQwenModel(config))
