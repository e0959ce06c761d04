"""One video's tokens: pooled frames in order, the newline tokens among them, and their coordinates (t, x, y)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vlm_pruner.geometry.videos import NEWLINE_POSITIONS, POOL_MODES, newline_run, video_layout
from vlm_pruner.llava.model.image_tokens import ImageTokens, square_side
from vlm_pruner.llava.model.llava_config import LlavaQwenConfig

STRIDE = 2  # the original code ignores mm_spatial_pool_stride


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
    if newline is not None and (run := newline_run(frames, side, position)):
        runs = pooled.reshape(-1, run, pooled.shape[-1])
        pooled = torch.cat([runs, newline.to(runs).expand(len(runs), 1, -1)], dim=1)
    return ImageTokens(pooled.reshape(-1, features.shape[-1]), video_layout(frames, side, position))


def count_video(frames: int, side: int, config: LlavaQwenConfig) -> int:
    """N of `video_tokens` for a video of `frames`; `side`: tokens along the tower's edge."""
    position = config.mm_newline_position if config.mm_patch_merge_type == "spatial_unpad" else "no_token"
    s = _pooled_side(side, config.mm_spatial_pool_mode)
    run = newline_run(frames, s, position)
    return frames * s**2 + (frames * s**2 // run if run else 0)


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
