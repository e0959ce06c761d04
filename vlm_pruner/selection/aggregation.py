"""Similarity-weighted aggregation (SWA): what is dropped is folded into the kept token most similar to it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vlm_pruner.selection.blocks import BLOCK_ELEMENTS


def fold(
    hidden: Tensor,
    indices: Tensor,
    nearest: Tensor,
    similarity: Tensor,
    self_weight: float,
    *,
    negative_weights: bool = False,
) -> Tensor:
    """Rows [R, d] of the kept tokens `indices` [R] after folding, in `hidden`'s dtype.

    H_j <- beta H_j + (1 - beta) E_j, where E_j is the mean of the dropped tokens assigned to j, weighted by their
    similarity. hidden: [N, d]. nearest: [N], position in `indices` of each token's kept token. similarity: [N], to it.
    negative_weights: negative similarities count as they are, the sum clamped at 1e-8 (the released code);
    otherwise they weigh nothing. A kept token whose weights do not sum to more than zero stays as it is.
    """
    share, total = _shares(indices, nearest, similarity, negative_weights)
    kept = hidden[indices]
    mean = _weighted_sums(hidden, nearest, share, indices.numel())
    folded = self_weight * kept.to(mean.dtype) + (1 - self_weight) * mean
    return torch.where(total[:, None] > 0, folded.to(hidden.dtype), kept)


def _shares(indices: Tensor, nearest: Tensor, similarity: Tensor, negative_weights: bool) -> tuple[Tensor, Tensor]:
    """[N], what share of its kept token's mean each token is: 0 for kept ones. [R], the sum that shares are of."""
    weight = similarity if negative_weights else similarity.clamp(min=0)
    weight = weight.index_fill(0, indices, 0)
    total = weight.new_zeros(indices.numel()).index_add_(0, nearest, weight)
    least = 1e-8 if negative_weights else torch.finfo(total.dtype).tiny
    return weight / total.clamp(min=least)[nearest], total


def _weighted_sums(hidden: Tensor, groups: Tensor, weight: Tensor, count: int) -> Tensor:
    """[count, d], for each group the sum of its rows of `hidden` [N, d] times `weight` [N], in `weight`'s dtype.

    embedding_bag reads each row once and makes no weighted copy; columns go in blocks, so that hidden states of
    16 bits are never held in 32 all at once.
    """
    members = groups.argsort(stable=True)
    starts = torch.searchsorted(groups[members], torch.arange(count, device=groups.device))
    width = hidden.shape[1] if hidden.dtype == weight.dtype else max(1, BLOCK_ELEMENTS // hidden.shape[0])
    sums = [
        embedding_bag(members, block.to(weight.dtype), starts, mode="sum", per_sample_weights=weight[members])
        for block in hidden.split(width, dim=1)
    ]
    return sums[0] if len(sums) == 1 else torch.cat(sums, dim=1)
