"""What all vision towers have in common: their sizes, and where their weights are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Tower(nn.Module):
    """Base of the towers. A subclass sets `config` and `vision_tower`, transformers' model."""

    config: Any
    vision_tower: Any

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_tower.device

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """N, without a class token."""
        return self.num_patches_per_side**2
