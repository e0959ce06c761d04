"""Pivots: the few tokens that selection starts from, as unlike each other as possible in key space."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_pivots(keys: Tensor, count: int) -> Tensor:
    """Indices [count] of the pivots among `keys` [N, k], in order of choice.

    The first is the key of largest L1 norm; each further one is the key whose nearest pivot is farthest (L2), so
    that min over chosen of ||K_j - K_j'|| is maximal. Ties go to the lowest index.
    """
    pivots = keys.abs().sum(dim=1).argmax().reshape(1)
    nearest = keys.new_full((keys.shape[0],), torch.inf)  # distance to the nearest pivot, kept up to date
    for _ in range(1, count):
        # Differences first: cdist's shortcut through inner products cancels when keys share a large common part.
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(keys - keys[pivots[-1]], dim=1))
        nearest[pivots] = -1.0  # of tokens with equal keys, none is chosen twice
        pivots = torch.cat([pivots, nearest.argmax().reshape(1)])
    return pivots
