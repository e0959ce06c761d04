"""Chooses dissimilar tokens: farthest-point sampling, and greedy search for the largest determinant."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

_BLOCK = 256  # rows compared with all others at once: never N x N in memory


def sample_farthest(features: Tensor, count: int) -> Tensor:
    """Order [count] of farthest-point sampling under the distance 1 - cosine of the rows of `features` [N, d].

    The first token is the one whose nearest other token is farthest; each further one is the token whose nearest
    chosen one is farthest. Ties go to the lowest index. Time O(N * (N + count) * d), memory O(N * d).
    """
    unit = normalize(features, dim=1)
    order = [_most_isolated(unit)]
    nearest = unit.new_full((unit.shape[0],), torch.inf)  # running distance to the nearest chosen token
    for _ in range(1, count):
        nearest = torch.minimum(nearest, 1 - unit @ unit[order[-1]])
        nearest[torch.stack(order)] = -torch.inf  # never choose a token twice, whatever its duplicates, NaN included
        order.append(nearest.argmax())
    return torch.stack(order)


def _most_isolated(unit: Tensor) -> Tensor:
    """Index [] of the token whose largest cosine to another token is smallest. unit: [N, d], unit rows."""
    closest = []
    for start in range(0, unit.shape[0], _BLOCK):
        similarity = unit[start : start + _BLOCK] @ unit.T
        similarity.diagonal(offset=start).fill_(-torch.inf)
        closest.append(similarity.amax(dim=1))
    return torch.cat(closest).argmin()


def maximise_determinant(features: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Order [count] of greedy MAP inference of a determinantal point process, by Cholesky updates.

    The kernel is L_ij = r_i cos(f_i, f_j) r_j with `features` [N, d] and `relevance` r [N]; each step takes the token
    that most increases the determinant of the chosen tokens' kernel. It computes only the chosen tokens' columns of the
    kernel: time O(N * count * (d + count)), memory O(N * (d + count)).
    """
    unit = normalize(features, dim=1)
    rows = unit.new_zeros(count, unit.shape[0])  # of the Cholesky factor
    gain = relevance.square() * unit.square().sum(dim=1)
    order: list[Tensor] = []
    for step in range(count):
        chosen = gain.argmax()
        order.append(chosen)
        column = relevance * (unit @ unit[chosen]) * relevance[chosen]
        rows[step] = (column - rows[:step, chosen] @ rows[:step]) / gain[chosen].sqrt()
        gain = gain - rows[step].square()
        gain[torch.stack(order)] = -torch.inf
    return torch.stack(order)
