"""Turns pictures and prompts into tensors as LLaVA's training and evaluation do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlm_pruner.geometry.anyres import (
    divide_to_patches,
    get_anyres_image_grid_shape,
    parse_pinpoints,
    resize_and_pad_image,
    select_best_resolution,
)
from vlm_pruner.llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX

__all__ = [
    "divide_to_patches",
    "expand2square",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "process_anyres_image",
    "process_images",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
]


def expand2square(picture: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """Centres the picture on a square of its longer side."""
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    square = Image.new(picture.mode, (side, side), background_color)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def process_images(
    images: Sequence[Image.Image], image_processor: Any, model_cfg: Any
) -> torch.Tensor | list[torch.Tensor]:
    """Pixel values of several pictures, shaped by `model_cfg.image_aspect_ratio`.

    "pad": squares filled with the processor's mean colour, [n, 3, side, side]. "anyres", "anyres_max_k": base tile and
    tiles, [n, tiles, 3, side, side], or a list when pictures have different numbers of tiles. Otherwise the processor's
    own scaling and centre crop, [n, 3, side, side].
    """
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if isinstance(aspect_ratio, str) and aspect_ratio.startswith("anyres"):
        tensors = [process_anyres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in images]
    elif aspect_ratio == "pad":
        color = tuple(int(channel * 255) for channel in image_processor.image_mean)
        tensors = [_pixels(expand2square(image.convert("RGB"), color), image_processor) for image in images]
    elif aspect_ratio in (None, "square"):
        tensors = [_pixels(image, image_processor) for image in images]
    else:
        raise ValueError(
            f"image_aspect_ratio is {aspect_ratio!r}; supported: 'pad', 'anyres', 'anyres_max_k', 'square' or none"
        )
    same_shape = len({tensor.shape for tensor in tensors}) == 1
    return torch.stack(tensors) if same_shape else tensors


def process_anyres_image(
    image: Image.Image, processor: Any, grid_pinpoints: str | Sequence[Sequence[int]]
) -> torch.Tensor:
    """Base tile and tiles of one picture, [1 + tiles, 3, side, side]."""
    side = processor.crop_size["height"]
    canvas = select_best_resolution(image.size, parse_pinpoints(grid_pinpoints, side))
    tiles = divide_to_patches(resize_and_pad_image(image.convert("RGB"), canvas), side)
    size = dict(processor.size)
    base_side = size.get("shortest_edge") or size.get("height") or side
    base = image.convert("RGB").resize((base_side, base_side))
    return torch.stack([_pixels(tile, processor) for tile in [base, *tiles]])


def tokenizer_image_token(
    prompt: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | torch.Tensor:
    """Tokenizes a prompt, with `image_token_index` for each literal `<image>`; [T] long with `return_tensors="pt"`.

    Tokenizes the text around pictures piece by piece, and keeps only the first of the begin-of-sequence tokens that the
    tokenizer puts before every piece.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors is {return_tensors!r}; supported: 'pt' or None")
    pieces = [tokenizer(piece).input_ids for piece in prompt.split(DEFAULT_IMAGE_TOKEN)]
    has_bos = bool(pieces[0]) and pieces[0][0] == tokenizer.bos_token_id
    ids = list(pieces[0])
    for piece in pieces[1:]:
        ids.append(image_token_index)
        ids.extend(piece[1:] if has_bos else piece)
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids


def get_model_name_from_path(model_path: str | Path) -> str:
    """The checkpoint's name: its last folder, prefixed by the parent for training's `checkpoint-N` folders."""
    parts = [part for part in str(model_path).strip("/").split("/") if part]
    if not parts:
        raise ValueError(f"model path {str(model_path)!r} contains no folder name")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


def _pixels(image: Image.Image, image_processor: Any) -> torch.Tensor:
    return image_processor(images=image, return_tensors="pt")["pixel_values"][0]
