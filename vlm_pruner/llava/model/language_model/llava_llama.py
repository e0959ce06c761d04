"""LLaVA on Llama: LLaVA-1.5 and 1.6."""

from __future__ import annotations

from transformers import LlamaForCausalLM, LlamaPreTrainedModel

from vlm_pruner.llava.model.language_model.modeling_llama_self import VLMPruner
from vlm_pruner.llava.model.llava_arch import LlavaMetaModel
from vlm_pruner.llava.model.llava_causal import LlavaMetaForCausalLM
from vlm_pruner.llava.model.llava_config import LlavaConfig

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaLlamaModel"]


class LlavaLlamaModel(LlavaMetaModel, VLMPruner):
    """The decoder with tower and projector as children, under the names of the original checkpoints."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """LLaVA with a `VLMPruner` decoder in `model`. See `LlavaMetaForCausalLM` for the two ways to give pictures."""

    config_class = LlavaConfig
    _no_split_modules = ("LlamaDecoderLayer", "CLIPEncoderLayer")

    def __init__(self, config: LlavaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.build(config, LlavaLlamaModel(config))
