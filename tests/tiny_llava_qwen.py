"""A tiny LLaVA on Qwen2 made in code: SigLIP's square of 6 x 6 tokens, four decoder layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from llava_tiny import seeded, write_json
from safetensors.torch import save_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM

SIDE, TILE = 6, 85  # one pixel row and column more than 6 patches of 14 see
VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": 14,
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava",
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "image_aspect_ratio": "anyres_max_2",
    "image_grid_pinpoints": "(1x1),...,(3x3)",
    "image_token_index": 151646,
    "mm_hidden_size": 32,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "../siglip",
    "mm_spatial_pool_mode": "bilinear",
    "mm_newline_position": "grid",
    "tokenizer_model_max_length": 32768,
    "torch_dtype": "float32",
}


def model(**changes: Any) -> LlavaQwenForCausalLM:
    """A model with seeded weights, in float32."""
    own = {name: value for name, value in {**CONFIG, **changes}.items() if name not in ("model_type", "torch_dtype")}
    return seeded(LlavaQwenForCausalLM(LlavaQwenConfig(**own, mm_vision_config=VISION)).eval())


def write(
    folder: Path, *, with_tower: bool = True, model_changes: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """A checkpoint in the original layout in `folder`/llava and google's own tower in `folder`/siglip.

    The tower beside it has other weights, one layer more and a pooling head. with_tower: whether the checkpoint holds
    the tower as trained.
    """
    built = model(**(model_changes or {}))
    tensors = {}
    for name, tensor in built.state_dict().items():
        name = name.replace("vision_tower.vision_tower.", "vision_tower.vision_tower.vision_model.")
        tensors[name.replace("vision_model.vision_model.", "vision_model.")] = tensor.contiguous()
    tied = built.config.tie_word_embeddings
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if (with_tower or "vision_tower" not in name) and not (tied and name == "lm_head.weight")
    }
    checkpoint = folder / "llava"
    write_json(checkpoint / "config.json", {**CONFIG, **(model_changes or {}), **changes})
    save_file(own, checkpoint / "model.safetensors")
    write_tower(folder / "siglip")
    return checkpoint


def write_tower(folder: Path) -> None:
    torch.manual_seed(1)
    tower = SiglipVisionModel(SiglipVisionConfig(**VISION)).state_dict()
    named = {f"vision_model.{name.removeprefix('vision_model.')}": tensor.clone() for name, tensor in tower.items()}
    write_json(folder / "config.json", {"model_type": "siglip", "vision_config": VISION})
    save_file({**named, "logit_bias": torch.zeros(1)}, folder / "model.safetensors")


def film(frames: int = 3, seed: int = 0) -> torch.Tensor:
    """Pixel values [F, 3, side, side]."""
    return torch.randn(frames, 3, TILE, TILE, generator=torch.Generator().manual_seed(seed))


def ids(items: int = 1, seed: int = 0) -> torch.Tensor:
    """[1, T] ids with one -200 per item."""
    random = np.random.RandomState(200 + seed)
    row = random.randint(3, 60, 4).tolist()
    for _ in range(items):
        row += [-200, *random.randint(3, 60, 3).tolist()]
    return torch.tensor([row])
