"""Similarity-weighted aggregation (SWA): what is dropped is folded into the kept token most similar to it."""

from __future__ import annotations

import torch
from torch import Tensor


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
    kept = hidden[indices]
    dropped = torch.ones(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    dropped[indices] = False
    target, rows = nearest[dropped], hidden[dropped].to(similarity.dtype)
    weight = similarity[dropped] if negative_weights else similarity[dropped].clamp(min=0)
    total = similarity.new_zeros(indices.numel()).index_add_(0, target, weight)
    share = weight / total.clamp(min=1e-8 if negative_weights else torch.finfo(total.dtype).tiny)[target]
    mean = rows.new_zeros(kept.shape).index_add_(0, target, rows.mul_(share[:, None]))
    folded = self_weight * kept.to(mean.dtype) + (1 - self_weight) * mean
    return torch.where(total[:, None] > 0, folded.to(hidden.dtype), kept)
