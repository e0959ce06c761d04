"""Similarity-weighted aggregation (SWA): merges each dropped token into the kept token most similar to it."""

from __future__ import annotations

import numpy as np
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
    """Rows [R, d] of the kept tokens `indices` [R] after merging, in `hidden`'s dtype.

    H_j <- beta H_j + (1 - beta) E_j, where E_j is the mean of the dropped tokens assigned to j, weighted by their
    similarity. hidden: [N, d]. nearest: [N], position in `indices` of each token's kept token. similarity: [N], to it.
    negative_weights: use negative similarities unchanged, with the sum clamped at 1e-8 (the released code);
    otherwise their weight is 0. A kept token whose weights do not sum to more than zero stays unchanged.
    """
    groups = nearest.cpu().numpy()
    weight = _weights(indices.cpu().numpy(), groups, similarity.cpu().numpy(), self_weight, negative_weights)
    return _weighted_sums(hidden, groups, weight, len(indices)).to(hidden.dtype)


def _weights(
    indices: np.ndarray, groups: np.ndarray, similarity: np.ndarray, self_weight: float, negative_weights: bool
) -> np.ndarray:
    """[N], each token's weight in the merged row of its kept token. On the host, as in `expansion`."""
    weight = similarity.copy() if negative_weights else np.maximum(similarity, 0)
    weight[indices] = 0
    total = np.bincount(groups, weight, minlength=len(indices))
    some = total > 0  # otherwise the kept token stays unchanged
    share = (1 - self_weight) * some / np.maximum(total, 1e-8 if negative_weights else np.finfo(weight.dtype).tiny)
    weight *= share[groups]
    weight[indices] = np.where(some, self_weight, 1)
    return weight


def _weighted_sums(hidden: Tensor, groups: np.ndarray, weight: np.ndarray, count: int) -> Tensor:
    """[count, d], each group's sum of the rows of `hidden` [N, d] times `weight` [N], in `weight`'s dtype.

    embedding_bag reads each row once and makes no weighted copy. Columns go in blocks, so that 16-bit hidden states
    never exist in 32 bits all at once.
    """
    order = groups.argsort(kind="stable")
    ends = np.bincount(groups, minlength=count).cumsum()
    arrays = order, np.concatenate([[0], ends[:-1]]), weight[order]
    members, starts, weights = (torch.from_numpy(array).to(hidden.device) for array in arrays)
    width = hidden.shape[1] if hidden.dtype == weights.dtype else max(1, BLOCK_ELEMENTS // len(hidden))
    sums = [
        embedding_bag(members, block.to(weights.dtype), starts, mode="sum", per_sample_weights=weights)
        for block in hidden.split(width, dim=1)
    ]
    return sums[0] if len(sums) == 1 else torch.cat(sums, dim=1)
