"""Synthetic prompts for timing: noise and random words with a requested number of visual tokens, for every family.

The content of a picture does not affect speed, but its number of tokens does, and each family allows different numbers.
The closest possible one is used; the workload states which.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Workload:
    """One batch of equal prompts. inputs: arguments of `generate`. visual, text: tokens of each row."""

    inputs: dict[str, Any]
    batch: int
    visual: int
    text: int


@dataclass(frozen=True)
class _PicturePrompt:
    """One synthetic picture.

    ids: its tokens in the prompt. visual: how many of them are visual. pixels: the model's arguments for a batch of it.
    """

    ids: list[int]
    visual: int
    pixels: Callable[[int], dict[str, Any]]


def make_workload(model: nn.Module, visual: int, text: int, batch: int, seed: int = 0) -> Workload:
    """Builds `batch` prompts of about `visual` visual tokens between `text` words.

    LLaVA-1.5 takes pictures of one size only; for another number of tokens its tower is resized, with untrained
    position embeddings. Raises ValueError for an unknown family.
    """
    config: Any = model.config
    if config.model_type not in _MAKERS:
        raise ValueError(
            f"no synthetic prompt for model type {config.model_type!r}; known: {', '.join(sorted(_MAKERS))}"
        )
    if visual < 1 or text < 2 or batch < 1:
        raise ValueError(f"visual={visual}, text={text}, batch={batch} must be at least 1, 2 and 1")
    generator = torch.Generator().manual_seed(seed)
    picture = _MAKERS[config.model_type](model, visual, generator)
    words = _words(config, text, generator)
    row = torch.tensor(words[: text // 2] + picture.ids + words[text // 2 :])
    device = next(model.parameters()).device
    ids = row.expand(batch, -1).contiguous().to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if _is_qwen(config):
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    inputs |= picture.pixels(batch)
    extra = len(picture.ids) - picture.visual if picture.ids != [_ORIGINAL_ID] else 0
    return Workload(inputs, batch, picture.visual, text + extra)


def _words(config: Any, count: int, generator: torch.Generator) -> list[int]:
    """Random ids of ordinary words, never of special tokens."""
    names = [name for name in vars(config) if name.endswith(("token_id", "token_index"))]
    special = {getattr(config, name) for name in names} | {0, 1, 2}
    ids = [id for id in range(min(config.get_text_config().vocab_size, 1000)) if id not in special]
    chosen = torch.randint(len(ids), (count,), generator=generator).tolist()
    return [ids[index] for index in chosen]


def _is_qwen(config: Any) -> bool:
    return bool(config.model_type.startswith("qwen"))


def _noise(model: nn.Module, generator: torch.Generator, *shape: int) -> Tensor:
    like = next(model.parameters())
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def _repeated(pixels: Tensor, **others: Tensor) -> Callable[[int], dict[str, Any]]:
    """Repeats one picture's arguments along their first axis."""
    given = {"pixel_values": pixels, **others}
    return lambda batch: {name: torch.cat([one] * batch) for name, one in given.items()}


# LLaVA-1.5, in transformers' and in the original layout: one square grid.

_ORIGINAL_ID = -200


def _llava(model: Any, visual: int, generator: torch.Generator) -> _PicturePrompt:
    side = max(1, round(math.sqrt(visual)))
    pixels = _square_pixels(model, model.model.vision_tower, side, generator)
    return _PicturePrompt([model.config.image_token_id] * side**2, side**2, _repeated(pixels))


def _llava_original(model: Any, visual: int, generator: torch.Generator) -> _PicturePrompt:
    side = max(1, round(math.sqrt(visual)))
    pixels = _square_pixels(model, model.model.vision_tower.vision_tower, side, generator)
    return _PicturePrompt([_ORIGINAL_ID], side**2, lambda batch: {"images": torch.cat([pixels] * batch)})


def _square_pixels(model: nn.Module, tower: Any, side: int, generator: torch.Generator) -> Tensor:
    pixels = side * tower.config.patch_size
    if pixels != tower.config.image_size:
        _resize(tower, side)
    return _noise(model, generator, 1, 3, pixels, pixels)


def _resize(tower: Any, side: int) -> None:
    """Resizes a CLIP tower to pictures of `side` x `side` patches."""
    tower = getattr(tower, "vision_model", tower)
    config, embeddings = tower.config, tower.embeddings
    old = embeddings.position_embedding.weight
    positions = side**2 + 1
    config.image_size = embeddings.image_size = side * config.patch_size
    embeddings.num_patches, embeddings.num_positions = side**2, positions
    embeddings.position_embedding = nn.Embedding(positions, old.shape[1], device=old.device, dtype=old.dtype)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
    embeddings.position_ids = torch.arange(positions, device=old.device)[None]


# Tiles with a square grid each, plus the whole picture.


def _tiled(model: Any, visual: int, generator: torch.Generator) -> _PicturePrompt:
    """A picture that fills the canvas of the configuration whose number of tokens is closest to `visual`."""
    config = model.config
    side = config.vision_config.image_size
    choices = {tuple(size): len(_tiled_features(model, size, generator)) for size in config.image_grid_pinpoints}
    size = min(choices, key=lambda one: (abs(choices[one] - visual), one))
    pixels, sizes = _tiles(model, size, side, generator)
    count = choices[size]
    return _PicturePrompt([config.image_token_id] * count, count, _repeated(pixels, image_sizes=sizes))


def _tiles(model: nn.Module, size: tuple[int, ...], side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    number = 1 + math.prod(-(-pixels // side) for pixels in size)
    return _noise(model, generator, 1, number, 3, side, side), torch.tensor([size])


@torch.no_grad()
def _tiled_features(model: Any, size: Any, generator: torch.Generator) -> Tensor:
    """The model's features for a picture of that size: its own arithmetic decides how many tokens that takes."""
    pixels, sizes = _tiles(model, tuple(size), model.config.vision_config.image_size, generator)
    features: Tensor = model.get_image_features(pixels, sizes, return_dict=True).pooler_output[0]
    return features


def _internvl(model: Any, visual: int, generator: torch.Generator) -> _PicturePrompt:
    config = model.config
    height, width = config.vision_config.image_size
    patch = config.vision_config.patch_size[0]
    each = int(height // patch * config.downsample_ratio) * int(width // patch * config.downsample_ratio)
    tiles = max(1, round(visual / each))
    pixels = _noise(model, generator, tiles, 3, height, width)
    return _PicturePrompt([config.image_token_id] * (each * tiles), each * tiles, _repeated(pixels))


# Grids of any size.


def _grid(visual: int) -> tuple[int, int]:
    """(height, width) of a nearly square grid of about `visual` tokens."""
    height = max(1, math.isqrt(visual))
    return height, max(1, round(visual / height))


def _qwen(model: Any, visual: int, generator: torch.Generator) -> _PicturePrompt:
    config, vision = model.config, model.config.vision_config
    height, width = _grid(visual)
    merge = vision.spatial_merge_size
    channels = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    pixels = _noise(model, generator, height * width * merge**2, channels)
    grid = torch.tensor([[1, height * merge, width * merge]], device=pixels.device)
    ids = [config.vision_start_token_id, *[config.image_token_id] * (height * width), config.vision_end_token_id]
    return _PicturePrompt(ids, height * width, _repeated(pixels, image_grid_thw=grid))


def _mistral3(model: Any, visual: int, generator: torch.Generator) -> _PicturePrompt:
    """Each row ends with a newline token; any word will do for it."""
    config = model.config
    height, width = _grid(visual)
    pixel = config.vision_config.patch_size * config.spatial_merge_size
    pixels = _noise(model, generator, 1, 3, height * pixel, width * pixel)
    ids = [*[config.image_token_id] * width, 3] * height
    sizes = torch.tensor([[height * pixel, width * pixel]])
    return _PicturePrompt(ids, height * width, _repeated(pixels, image_sizes=sizes))


_MAKERS: dict[str, Callable[[Any, int, torch.Generator], _PicturePrompt]] = {
    "llava": _llava,
    "llava_llama": _llava_original,
    "llava_next": _tiled,
    "llava_next_video": _tiled,
    "llava_onevision": _tiled,
    "internvl": _internvl,
    "mistral3": _mistral3,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
}
