"""The embedded model's class with its tokenizer, but tiny and random: 4 x 4 visual tokens, three decoder layers."""

from __future__ import annotations

from typing import Any

import torch


def parts(**settings: Any) -> tuple[Any, Any, Any]:
    """(tokenizer, model, image processor); `settings` go into the model's configuration."""
    from transformers import CLIPImageProcessorPil

    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from playground.mini.tokenizer import build

    torch.manual_seed(0)
    tokenizer = build()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        mm_vision_config={**vision, "image_size": 56, "patch_size": 14},
        mm_vision_select_layer=-1,
        mm_projector_type="mlp2x_gelu",
        mm_hidden_size=16,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **settings,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    return tokenizer, LlavaLlamaForCausalLM(config).eval(), processor
