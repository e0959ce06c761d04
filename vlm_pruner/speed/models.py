"""Published models by name, at their true shapes with random weights: speed does not depend on the weights' values.

Sizes come from each model's config.json on the Hugging Face Hub, under the name in `source`. `tiny` and `small` are
ours: LLaVAs with 576 visual tokens that two CPU cores prefill in a fifth of a second and in a second and a half.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

IMAGE, VIDEO, VISION_START, VISION_END = 5, 6, 7, 8  # placeholder ids; any will do without a tokenizer

_CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_CLIP_TINY = _CLIP_L_336 | {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "projection_dim": 128,
}
_QWEN2_VISION = {
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN2_5_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
_TILES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _text(
    hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _qwen_text(hidden: int, intermediate: int, heads: int, key_value_heads: int, vocabulary: int) -> dict[str, Any]:
    rotary = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0}
    sizes = _text(hidden, intermediate, 28, heads, key_value_heads, vocabulary)
    return sizes | {"rope_parameters": rotary, "max_position_embeddings": 32768, "use_sliding_window": False}


@dataclass(frozen=True)
class Published:
    """kind: the family's class prefix in transformers. text, vision, more: settings of its configuration."""

    source: str
    kind: str
    text: dict[str, Any]
    vision: dict[str, Any]
    more: dict[str, Any]
    visual_tokens: int  # of one picture at the size that the model's paper uses

    def config(self, layers: int | None = None) -> Any:
        """Builds the transformers configuration. layers: decoder layers, if not the published number."""
        import transformers

        text = self.text | ({} if layers is None else {"num_hidden_layers": layers})
        make = getattr(transformers, f"{self.kind}Config")
        if self.kind.startswith("Qwen"):
            ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
            ids |= {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
            return make(text_config=text, vision_config=self.vision, **ids, **self.more)
        return make(
            text_config=transformers.LlamaConfig(**text),
            vision_config=transformers.CLIPVisionConfig(**self.vision),
            image_token_index=IMAGE,
            **self.more,
        )


_VICUNA_7B = _text(4096, 11008, 32, 32, 32, 32064) | {"max_position_embeddings": 4096}
_LLAVA = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "tie_word_embeddings": False}

PUBLISHED = {
    "tiny": Published(
        "ours", "Llava", _text(512, 1408, 8, 8, 8, 1000) | {"max_position_embeddings": 4096}, _CLIP_TINY, _LLAVA, 576
    ),
    "small": Published(
        "ours",
        "Llava",
        _text(1024, 2816, 12, 16, 16, 1000) | {"max_position_embeddings": 4096},
        _CLIP_TINY,
        _LLAVA,
        576,
    ),
    "llava-1.5-7b": Published("llava-hf/llava-1.5-7b-hf", "Llava", _VICUNA_7B, _CLIP_L_336, _LLAVA, 576),
    "llava-1.5-13b": Published(
        "llava-hf/llava-1.5-13b-hf",
        "Llava",
        _text(5120, 13824, 40, 40, 40, 32064) | {"max_position_embeddings": 4096},
        _CLIP_L_336,
        _LLAVA,
        576,
    ),
    "llava-next-7b": Published(
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        "LlavaNext",
        _VICUNA_7B,
        _CLIP_L_336,
        _LLAVA | {"image_grid_pinpoints": _TILES},
        2928,  # 672 x 672 pixels: 24 x 24 of the whole picture, 48 x 48 of four tiles, 48 newlines
    ),
    "qwen2-vl-2b": Published(
        "Qwen/Qwen2-VL-2B-Instruct",
        "Qwen2VL",
        _qwen_text(1536, 8960, 12, 2, 151936),
        _QWEN2_VISION | {"hidden_size": 1536},
        {"tie_word_embeddings": True},
        1296,
    ),
    "qwen2-vl-7b": Published(
        "Qwen/Qwen2-VL-7B-Instruct",
        "Qwen2VL",
        _qwen_text(3584, 18944, 28, 4, 152064),
        _QWEN2_VISION | {"hidden_size": 3584},
        {"tie_word_embeddings": False},
        1296,
    ),
    "qwen2.5-vl-7b": Published(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Qwen2_5_VL",
        _qwen_text(3584, 18944, 28, 4, 152064),
        _QWEN2_5_VISION,
        {"tie_word_embeddings": False},
        1296,
    ),
}
NAMES = tuple(PUBLISHED)


def build(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    layers: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Builds the model called `name` with random weights on `device` in `dtype`, in evaluation mode.

    attention: transformers' attn_implementation. layers: fewer decoder layers, for machines that cannot hold them all.
    Raises ValueError for an unknown name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"unknown model {name!r}; known by name: {', '.join(NAMES)}; or pass a checkpoint folder")
    import transformers

    config = PUBLISHED[name].config(layers)
    config._attn_implementation = attention
    make = getattr(transformers, f"{PUBLISHED[name].kind}ForConditionalGeneration")
    with torch.random.fork_rng(), _defaults(torch.device(device), dtype):
        torch.manual_seed(seed)
        model: nn.Module = make(config)
    return model.eval()


def load(path: str | Path, *, device: str | torch.device, dtype: torch.dtype, attention: str) -> nn.Module:
    """Loads a checkpoint folder, in transformers' or LLaVA's original layout, in evaluation mode.

    Raises ValueError if the folder holds no checkpoint.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} is neither a model known by name ({', '.join(NAMES)}) nor a folder with config.json")
    if "mm_vision_tower" in json.loads(file.read_text(encoding="utf-8")):
        from vlm_pruner.llava.model.builder import load_model

        return load_model(path, dtype=dtype, device=device, attn_implementation=attention).eval()
    from vlm_pruner.asking import weights

    return weights.load_model(path, dtype=dtype, attn_implementation=attention).to(device)


@contextmanager
def _defaults(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Creates new tensors on `device` in `dtype`: a 7B model in float32 would not fit into most hosts' memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
