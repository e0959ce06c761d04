"""What a kept token stands for: itself, and the dropped tokens that count towards it."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_kept(unit: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Long [N], position in `indices` [R] of the kept token most similar to each token; float [N], the similarity.

    unit: [N, q], unit rows. A kept token is nearest to itself, also where another one equals it.
    """
    similarity, nearest = (unit @ unit[indices].T).max(dim=1)
    nearest[indices] = torch.arange(len(indices), device=nearest.device)
    return nearest, similarity


def group_totals(group: Tensor, sizes: Tensor, count: int) -> Tensor:
    """[count], the sum of `sizes` [N] over each group. group: long [N], 0 .. count - 1, or -1 for tokens in none."""
    slot = torch.where(group < 0, count, group)
    return sizes.new_zeros(count + 1).index_add_(0, slot, sizes)[:count]
