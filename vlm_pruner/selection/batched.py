"""The mathematics for several images of one size, one at a time: the counterpart of one launch of the GPU kernels.

The first dimension of every tensor, I, counts the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_pruner.selection import aggregation, expansion, pivots, screening
from vlm_pruner.selection.expansion import Expansion


def screen_channels(hidden: Tensor, channels: int) -> Tensor:
    """Unit rows [I, N, q] of `hidden` [I, N, d], each image on its own channels."""
    return stack([screening.screen_channels(image, channels) for image in hidden])


def choose_pivots(keys: Tensor, count: int) -> Tensor:
    """Long [I, count], of `keys` [I, N, k]."""
    return stack([pivots.choose_pivots(image, count) for image in keys])


def expand(features: Tensor, coords: Tensor, pivots: Tensor, budget: int, **settings: Any) -> Expansion:
    """features: [I, N, q]. coords: [I, N, 2 or 3]. pivots: long [I, P]. Each field of the result has I rows."""
    images = zip(features, coords, pivots, strict=True)
    grown = [expansion.expand(*image, budget, **settings) for image in images]
    return Expansion(*(stack(parts) for parts in zip(*grown, strict=True)))


def fold(
    hidden: Tensor, indices: Tensor, nearest: Tensor, similarity: Tensor, self_weight: float, **settings: Any
) -> Tensor:
    """[I, R, d], of hidden [I, N, d], indices [I, R], nearest and similarity [I, N]."""
    images = zip(hidden, indices, nearest, similarity, strict=True)
    return stack([aggregation.fold(*image, self_weight, **settings) for image in images])


def stack(parts: Sequence[Tensor]) -> Tensor:
    """Stacks to [I, ...]. A single part is not copied."""
    return parts[0][None] if len(parts) == 1 else torch.stack(list(parts))
