"""Pivots: the few tokens that selection starts from, as dissimilar as possible in key space."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlm_pruner.selection.blocks import for_each_row


def choose_pivots(keys: Tensor, count: int) -> Tensor:
    """Indices [count] of the pivots among `keys` [N, k], in order of choice.

    The first is the key of largest L1 norm; each further one is the key whose nearest pivot is farthest (L2), so
    that min over chosen of ||K_j - K_j'|| is maximal. Ties go to the lowest index.
    """
    norms = for_each_row(keys, lambda block: block.abs().sum(dim=1))
    pivots = [int(norms.cpu().numpy().argmax())]
    nearest = np.full(len(keys), np.inf)  # [N], running distance to the nearest pivot
    for _ in range(1, count):
        np.minimum(nearest, _distances(keys, keys[pivots[-1]]).cpu().numpy(), out=nearest)
        nearest[pivots] = -1  # never choose a token twice, even among equal keys
        pivots.append(int(nearest.argmax()))
    return torch.from_numpy(np.array(pivots)).to(keys.device)


def _distances(keys: Tensor, pivot: Tensor) -> Tensor:
    """[N], L2 distances of `keys` [N, k] to the key `pivot` [k].

    Takes differences first: going through inner products cancels if keys share a large common part.
    """
    return for_each_row(keys, lambda block: torch.linalg.vector_norm(block - pivot, dim=1))
