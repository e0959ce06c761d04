"""Qwen-VL models of transformers' own classes, small enough to build in code, and prompts with images and videos."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

LAYERS, VOCABULARY = 4, 100
PAD, IMAGE, VIDEO, START, END = 0, 90, 91, 92, 93
_PATCH, _MERGE = 4, 2
_PIXELS = 3 * 2 * _PATCH * _PATCH  # of a patch over two frames

_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
}
_PATCHES = {"depth": 3, "num_heads": 2, "patch_size": _PATCH, "spatial_merge_size": _MERGE, "temporal_patch_size": 2}
_TOWER = {**_PATCHES, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
_DEEPSTACK = {**_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

# Prefix of the family's classes in transformers, its tower's settings, further settings of its decoder.
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VL", {**_PATCHES, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}, {}),
    "qwen2_5_vl": ("Qwen2_5_VL", {**_TOWER, "window_size": 16, "fullatt_block_indexes": [1]}, {}),
    "qwen3_vl": ("Qwen3VL", _DEEPSTACK, {}),
    "qwen3_vl_moe": ("Qwen3VLMoe", _DEEPSTACK, _EXPERTS),
}


def config(family: str, attn_implementation: str = "sdpa") -> Any:
    prefix, vision, text = FAMILIES[family]
    built = getattr(transformers, f"{prefix}Config")(
        text_config={**_TEXT, **text}, vision_config=vision, tie_word_embeddings=False, **_IDS
    )
    built._attn_implementation = attn_implementation
    return built


def build(family: str, attn_implementation: str = "sdpa") -> Any:
    prefix = FAMILIES[family][0]
    return prepare(getattr(transformers, f"{prefix}ForConditionalGeneration")(config(family, attn_implementation)))


def prepare(model: Any) -> Any:
    """Weights that are the same on every machine: numpy's legacy generator is frozen by promise.

    They are large, so that attention is far from uniform and a wrong mask or phase shows in the logits.
    """
    random = np.random.RandomState(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            values = torch.from_numpy(random.standard_normal(tuple(weight.shape))).to(weight)
            fan_in = weight.shape[-1] if weight.ndim == 3 else weight[0].numel()
            wide = weight.ndim == 2 and "embed" in name
            scale = 0.1 if weight.ndim == 1 else 1.0 if wide else 1.5 * fan_in**-0.5
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(centre + values * scale)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]  # a trained model does not say them
    return model.eval()


model = cache(build)


@dataclass(frozen=True)
class Visual:
    """An image (t = 1) or a video, t x h x w visual tokens."""

    t: int
    h: int
    w: int
    seed: int = 0
    is_video: bool = False

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w

    @property
    def grid(self) -> list[int]:
        return [self.t, self.h * _MERGE, self.w * _MERGE]

    def pixels(self) -> Tensor:
        values = np.random.RandomState(self.seed).standard_normal((math.prod(self.grid), _PIXELS))
        return torch.from_numpy(values).float()


def image(h: int, w: int, seed: int = 0) -> Visual:
    return Visual(1, h, w, seed)


def video(t: int, h: int, w: int, seed: int = 0) -> Visual:
    return Visual(t, h, w, seed, is_video=True)


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.RandomState(1000 + seed).randint(1, 80, length).tolist()


Prompt = list[int | Visual]  # words, images and videos, in order


def _ids(family: str, prompt: Prompt) -> list[int]:
    ids: list[int] = []
    for part in prompt:
        if isinstance(part, int):
            ids.append(part)
        elif part.is_video and family.startswith("qwen3"):  # every frame by itself, after words that say its time
            for frame in range(part.t):
                ids += [81, 82 + frame, START, *[VIDEO] * (part.h * part.w), END]
        else:
            ids += [START, *[VIDEO if part.is_video else IMAGE] * part.tokens, END]
    return ids


def length(family: str, prompt: Prompt) -> int:
    return len(_ids(family, prompt))


def inputs(family: str, *prompts: Prompt) -> dict[str, Tensor]:
    """A batch as the family's processor makes it, padded on the left."""
    rows = [_ids(family, prompt) for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int(),
    }
    visuals = [part for prompt in prompts for part in prompt if isinstance(part, Visual)]
    for kind, pixels, is_video in (("image", "pixel_values", False), ("video", "pixel_values_videos", True)):
        own = [visual for visual in visuals if visual.is_video == is_video]
        if own:
            batch[pixels] = torch.cat([visual.pixels() for visual in own])
            batch[f"{kind}_grid_thw"] = torch.tensor([visual.grid for visual in own])
    return batch
