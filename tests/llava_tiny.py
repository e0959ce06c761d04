"""A tiny LLaVA checkpoint made in code, the same on every machine: numpy's legacy generator is frozen by promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 84,
    "patch_size": 14,
    "projection_dim": 32,
}
GRID = 6  # visual tokens per side

CONFIG: dict[str, Any] = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava_llama",
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_vision_tower": "../clip",
    "tokenizer_model_max_length": 256,
    "torch_dtype": "float16",
}

PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 84, "width": 84},
    "size": {"shortest_edge": 84},
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

Tensors = dict[str, torch.Tensor]
Model = TypeVar("Model", bound=torch.nn.Module)


def model(**changes: Any) -> LlavaLlamaForCausalLM:
    """A model with seeded weights, in float32."""
    return seeded(LlavaLlamaForCausalLM(LlavaConfig(**{**CONFIG, "mm_vision_config": VISION, **changes})).eval())


def seeded(built: Model) -> Model:
    """The model with weights drawn in order of their names."""
    random = np.random.RandomState(0)
    with torch.no_grad():
        for name, weight in sorted(built.named_parameters()):
            fan_in = weight.shape[-1] if weight.ndim > 1 else 1
            values = torch.from_numpy(random.standard_normal(tuple(weight.shape))).to(weight)
            scale = 1.0 if "embed" in name else 1.5 * fan_in**-0.5
            weight.copy_(1 + 0.1 * values if "norm" in name and name.endswith("weight") else values * scale)
    return built


def original_tensors(built: LlavaLlamaForCausalLM) -> tuple[Tensors, Tensors]:
    """(the checkpoint's own tensors, the tower's) under the names of the published files, in float16."""
    own: Tensors = {}
    tower: Tensors = {}
    for name, tensor in built.state_dict().items():
        value = tensor.half().contiguous()
        if name.startswith("model.vision_tower."):
            bare = name.removeprefix("model.vision_tower.vision_tower.").removeprefix("vision_model.")
            tower["vision_model." + bare] = value
        else:
            own[name] = value
    return own, tower


def transformers_tensors(built: LlavaLlamaForCausalLM) -> Tensors:
    """The tensors under the names of the files that transformers' LLaVA is published with."""
    own, tower = original_tensors(built)
    renamed: Tensors = {"vision_tower." + name: value for name, value in tower.items()}
    for name, value in own.items():
        name = name.replace("model.mm_projector.0.", "multi_modal_projector.linear_1.")
        name = name.replace("model.mm_projector.2.", "multi_modal_projector.linear_2.")
        renamed[name if name.startswith("multi_modal") else "language_model." + name] = value
    return renamed


def transformers_config() -> dict[str, Any]:
    text = {key: value for key, value in CONFIG.items() if not key.startswith(("mm_", "image_", "tokenizer_"))}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 63,
        "text_config": {**text, "model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "vision_config": VISION,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_original(folder: Path, **changes: Any) -> Path:
    """A checkpoint in the original layout in `folder`/llava with its tower in `folder`/clip; returns the former."""
    own, tower = original_tensors(model())
    checkpoint = folder / "llava"
    write_json(checkpoint / "config.json", {**CONFIG, **changes})
    save_file(own, checkpoint / "model.safetensors")
    write_json(folder / "clip" / "config.json", VISION)
    write_json(folder / "clip" / "preprocessor_config.json", PREPROCESSOR)
    save_file(tower, folder / "clip" / "model.safetensors")
    return checkpoint


def write_transformers(folder: Path, **changes: Any) -> Path:
    """The same model in transformers' layout."""
    write_json(folder / "config.json", {**transformers_config(), **changes})
    save_file(transformers_tensors(model()), folder / "model.safetensors")
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    return folder


def write_tokenizer(folder: Path) -> None:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(40))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)


def picture(seed: int = 0, size: tuple[int, int] = (84, 84)) -> Image.Image:
    """Coloured blocks with some noise."""
    random = np.random.RandomState(seed)
    blocks = random.randint(0, 256, (4, 4, 3)).astype(np.uint8)
    large = np.asarray(Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)).astype(np.int64)
    noisy = (large + random.randint(-20, 21, large.shape)).clip(0, 255)
    return Image.fromarray(noisy.astype(np.uint8))


def pixels(*seeds: int) -> torch.Tensor:
    """Pixel values [B, 3, 84, 84]."""
    arrays = [np.asarray(picture(seed)).astype(np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 64.0 - 2.0


def prompt_ids(seed: int = 0, before: int = 5, after: int = 7) -> torch.Tensor:
    """[1, before + 1 + after] ids with -200 for the picture."""
    random = np.random.RandomState(100 + seed)
    text = random.randint(3, 60, before + after)
    return torch.tensor([[*text[:before], -200, *text[before:]]])
