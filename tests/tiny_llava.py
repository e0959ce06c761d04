"""A LLaVA-1.5 of transformers' classes, small enough to build in code: 4 decoder layers, 5 x 5 visual tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE, SIDE, N, LAYERS = 90, 5, 25, 4


def tiny_llava(attn_implementation: str = "sdpa", seed: int = 0) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=14 * SIDE,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        # Large weights, so that attention is far from uniform and a wrong mask or phase shows in the logits.
        initializer_range=0.25,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, pad_token_id=0)
    config._attn_implementation = attn_implementation
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


def image(seed: int) -> Tensor:
    """One picture, [1, 3, height, width]."""
    return torch.randn(1, 3, 14 * SIDE, 14 * SIDE, generator=torch.Generator().manual_seed(seed))


def text(length: int, seed: int) -> list[int]:
    return torch.randint(2, 80, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def prompt(before: int = 4, after: int = 6, seed: int = 0) -> list[int]:
    return [1, *text(before, seed), *[IMAGE] * N, *text(after, seed + 100)]


def inputs(*prompts: list[int], images: list[int]) -> dict[str, Tensor]:
    """A batch, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.cat([image(seed) for seed in images])}
