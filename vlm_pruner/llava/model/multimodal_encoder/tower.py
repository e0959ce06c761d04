"""The base of all vision towers: their sizes, dtype and device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Tower(nn.Module):
    """Base of the towers. A subclass sets `config` and `vision_tower`, transformers' model.

    interpolates: whether pictures may have other sizes than the tower was trained on; see `any_size`.
    """

    config: Any
    vision_tower: Any
    interpolates: bool = False

    @contextmanager
    def any_size(self) -> Iterator[None]:
        """Inside it, pictures of any size are read, with position embeddings interpolated to their grid."""
        self.interpolates = True
        try:
            yield
        finally:
            self.interpolates = False

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, columns) of patches of pixel values [..., height, width]."""
        return pixels.shape[-2] // self.config.patch_size, pixels.shape[-1] // self.config.patch_size

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_tower.device

    @property
    def num_patches_per_side(self) -> int:
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """N, without a class token."""
        return self.num_patches_per_side**2
