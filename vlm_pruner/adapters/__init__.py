"""Adapters, one file per model family. `find(model)` returns the one for a model's class."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from torch import nn

from vlm_pruner.errors import UnsupportedModelError

if TYPE_CHECKING:
    from vlm_pruner.adapters.base import Adapter

# Model class -> module and class of its adapter, by name, so that a lookup imports no model code.
_ADAPTERS = {
    "LlavaForConditionalGeneration": ("llava", "LlavaAdapter"),
    "LlavaModel": ("llava", "LlavaAdapter"),
    "LlavaNextForConditionalGeneration": ("llava_next", "LlavaNextAdapter"),
    "LlavaNextModel": ("llava_next", "LlavaNextAdapter"),
    "LlavaNextVideoForConditionalGeneration": ("llava_next_video", "LlavaNextVideoAdapter"),
    "LlavaNextVideoModel": ("llava_next_video", "LlavaNextVideoAdapter"),
    "LlavaOnevisionForConditionalGeneration": ("llava_onevision", "LlavaOnevisionAdapter"),
    "LlavaOnevisionModel": ("llava_onevision", "LlavaOnevisionAdapter"),
    "LlavaLlamaForCausalLM": ("llava_original", "LlavaOriginalAdapter"),
    "LlavaQwenForCausalLM": ("llava_original", "LlavaOriginalAdapter"),
    "InternVLForConditionalGeneration": ("internvl", "InternVLAdapter"),
    "InternVLModel": ("internvl", "InternVLAdapter"),
    "Mistral3ForConditionalGeneration": ("mistral3", "Mistral3Adapter"),
    "Mistral3Model": ("mistral3", "Mistral3Adapter"),
    "Qwen2VLForConditionalGeneration": ("qwen_vl", "QwenVLAdapter"),
    "Qwen2VLModel": ("qwen_vl", "QwenVLAdapter"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen_vl", "QwenVLAdapter"),
    "Qwen2_5_VLModel": ("qwen_vl", "QwenVLAdapter"),
    "Qwen3VLForConditionalGeneration": ("qwen_vl", "QwenVLAdapter"),
    "Qwen3VLModel": ("qwen_vl", "QwenVLAdapter"),
    "Qwen3VLMoeForConditionalGeneration": ("qwen_vl", "QwenVLAdapter"),
    "Qwen3VLMoeModel": ("qwen_vl", "QwenVLAdapter"),
}

# Wrapper classes, and where to find the model inside.
_WRAPPERS = {
    "OptimizedModule": "model._orig_mod, and run that: torch.compile does not look at hooks that come later",
    "PeftModel": "model.get_base_model()",
    "DistributedDataParallel": "model.module",
}


def find(model: nn.Module) -> Adapter:
    """The adapter for `model`, found by its class or a base class. Raises UnsupportedModelError if there is none."""
    for cls in type(model).__mro__:
        if cls.__name__ in _ADAPTERS:
            return of_class(cls.__name__)(model)
        if cls.__name__ in _WRAPPERS:
            raise UnsupportedModelError(
                f"{type(model).__name__} wraps a model; prune the one inside, {_WRAPPERS[cls.__name__]}"
            )
    return of_class(type(model).__name__)(model)  # raises


def of_class(name: str) -> type[Adapter]:
    """The adapter class for the model class called `name`. Raises UnsupportedModelError if there is none."""
    if name not in _ADAPTERS:
        raise UnsupportedModelError(
            f"{name} is not supported; supported model classes: {', '.join(sorted(_ADAPTERS))} "
            "(docs/adding_a_model.md explains how to add one)"
        )
    module, adapter = _ADAPTERS[name]
    found: type[Adapter] = getattr(import_module(f"vlm_pruner.adapters.{module}"), adapter)
    return found
