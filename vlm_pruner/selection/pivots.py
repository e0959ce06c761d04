"""Pivots: the few tokens that selection starts from, as unlike each other as possible in key space."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_pruner.selection.blocks import row_blocks


def choose_pivots(keys: Tensor, count: int) -> Tensor:
    """Indices [count] of the pivots among `keys` [N, k], in order of choice.

    The first is the key of largest L1 norm; each further one is the key whose nearest pivot is farthest (L2), so
    that min over chosen of ||K_j - K_j'|| is maximal. Ties go to the lowest index.
    """
    pivots = torch.cat([block.abs().sum(dim=1) for block in row_blocks(keys)]).argmax().reshape(1)
    nearest = None  # [N], distance to the nearest pivot, kept up to date
    for _ in range(1, count):
        distance = _distances(keys, pivots[-1:])
        nearest = distance if nearest is None else torch.minimum(nearest, distance)
        nearest[pivots] = -1.0  # of tokens with equal keys, none is chosen twice
        pivots = torch.cat([pivots, nearest.argmax().reshape(1)])
    return pivots


def _distances(keys: Tensor, pivot: Tensor) -> Tensor:
    """[N], L2 distances of `keys` [N, k] to the key of `pivot` [1].

    Differences first: a shortcut through inner products cancels when keys share a large common part.
    """
    centre = keys[pivot]
    return torch.cat([torch.linalg.vector_norm(block - centre, dim=1) for block in row_blocks(keys)])
