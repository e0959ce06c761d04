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


def absorber_positions(order: Tensor, absorbers: Tensor) -> Tensor:
    """Long [N], position among the kept tokens `order` [R], sorted, of each token's absorber; -1 for a lost token.

    absorbers: long [N], the kept token that each dropped token is merged into, or -1; a kept token is its own.
    """
    absorbers = absorbers.index_copy(0, order, order)
    return torch.where(absorbers < 0, -1, torch.searchsorted(order.sort().values, absorbers.clamp(min=0)))


def group_means(rows: Tensor, group: Tensor, count: int) -> Tensor:
    """[count, d], the mean of each group's `rows` [N, d]; zeros for an empty one. group: long [N], 0 .. count - 1."""
    sizes = torch.bincount(group, minlength=count).clamp(min=1)
    return rows.new_zeros(count, rows.shape[1]).index_add_(0, group, rows) / sizes[:, None]


def group_totals(group: Tensor, sizes: Tensor, count: int) -> Tensor:
    """[count], the sum of `sizes` [N] over each group. group: long [N], 0 .. count - 1, or -1 for tokens in none."""
    slot = torch.where(group < 0, count, group)
    return sizes.new_zeros(count + 1).index_add_(0, slot, sizes)[:count]
