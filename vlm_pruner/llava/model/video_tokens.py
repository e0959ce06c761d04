"""One video's tokens: pooled frames in order, the newline tokens among them, and their places (t, x, y)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vlm_pruner.geometry.videos import NEWLINE_POSITIONS, video_layout
from vlm_pruner.llava.model.image_tokens import ImageTokens, square_side
from vlm_pruner.llava.model.llava_config import LlavaQwenConfig

STRIDE = 2  # the original code reads no other, whatever mm_spatial_pool_stride is

POOL_MODES = ("bilinear", "average", "max")


def check_video_config(config: LlavaQwenConfig) -> None:
    """Raises `ValueError` for a configuration under which no video can be encoded."""
    if config.mm_spatial_pool_mode not in POOL_MODES:
        raise ValueError(
            f"mm_spatial_pool_mode is {config.mm_spatial_pool_mode!r}; supported: {', '.join(map(repr, POOL_MODES))}"
        )
    if config.mm_newline_position not in NEWLINE_POSITIONS:
        raise ValueError(
            f"mm_newline_position is {config.mm_newline_position!r}; "
            f"supported: {', '.join(map(repr, NEWLINE_POSITIONS))}"
        )
    if config.add_faster_video and config.mm_newline_position == "grid":
        raise ValueError(
            "add_faster_video is true: the two-speed frames that it asks for with mm_newline_position 'grid' are not "
            "supported (the published code stops there, too); set it to false to use every frame at one speed"
        )
    if config.mm_newline_position in ("grid", "frame") and config.mm_patch_merge_type != "spatial_unpad":
        raise ValueError(
            f"mm_newline_position is {config.mm_newline_position!r}, but with mm_patch_merge_type "
            f"{config.mm_patch_merge_type!r} the model has no image_newline embedding; use 'no_token'"
        )


def video_tokens(features: Tensor, config: LlavaQwenConfig, newline: Tensor | None) -> ImageTokens:
    """A video's projected features, [F, N, d] -> its tokens, pooled and with newlines."""
    pooled = pool_frames(features, config.mm_spatial_pool_mode)
    frames, side = pooled.shape[:2]
    position = config.mm_newline_position if newline is not None else "no_token"
    tokens = pooled if newline is None else _with_newlines(pooled, newline.to(pooled), position)
    return ImageTokens(tokens.reshape(-1, features.shape[-1]), video_layout(frames, side, position))


def count_video(frames: int, side: int, config: LlavaQwenConfig) -> int:
    """N of `video_tokens` for a video of `frames`; `side`: tokens along the tower's edge."""
    position = config.mm_newline_position if config.mm_patch_merge_type == "spatial_unpad" else "no_token"
    s = _pooled_side(side, config.mm_spatial_pool_mode)
    newlines = {"grid": frames * s, "frame": frames, "one_token": 1, "no_token": 0}[position]
    return frames * s**2 + newlines


def _pooled_side(side: int, mode: str) -> int:
    return math.ceil(side / STRIDE) if mode == "bilinear" else side // STRIDE


def pool_frames(features: Tensor, mode: str) -> Tensor:
    """[F, side * side, d] -> [F, s, s, d]: s = ceil(side / 2) for "bilinear", floor(side / 2) for the others."""
    side = square_side(features.shape[1])
    maps = features.transpose(1, 2).unflatten(2, (side, side))
    if mode == "bilinear":
        maps = functional.interpolate(maps, size=[_pooled_side(side, mode)] * 2, mode="bilinear")
    else:
        pool = functional.avg_pool2d if mode == "average" else functional.max_pool2d
        maps = pool(maps, STRIDE)
    return maps.permute(0, 2, 3, 1)


def _with_newlines(frames: Tensor, newline: Tensor, position: str) -> Tensor:
    """Frames [F, s, s, d] and the newline [d], row by row, as tokens whose last axis is d."""
    if position == "grid":
        return torch.cat([frames, newline.expand(*frames.shape[:2], 1, -1)], dim=2)
    if position == "frame":
        return torch.cat([frames.flatten(1, 2), newline.expand(frames.shape[0], 1, -1)], dim=1)
    tokens = frames.flatten(0, 2)
    return torch.cat([tokens, newline[None]]) if position == "one_token" else tokens
