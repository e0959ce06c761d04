"""Greedy choices by what the chosen tokens cover together, and by how little they repeat each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def maximise_coverage(rows: Tensor, count: int, weight: Tensor | None = None) -> Tensor:
    """Order [count] of greedy maximum coverage: each step takes the token j of largest gain, ties to the lowest index.

    rows: [M, N], how well each of N tokens covers each of M things; negative values cover nothing. The best chosen
    token counts: gain_j = weight_j sum_i max(0, rows_ij - covered_i). weight: [N], or None for equal weights. Time
    O(M N count), memory O(M N).
    """
    covered = rows.new_zeros(rows.shape[0], 1)
    free = torch.ones(rows.shape[1], dtype=torch.bool, device=rows.device)
    order = []
    for _ in range(count):
        gain = (rows - covered).clamp(min=0).sum(dim=0)
        gain = gain if weight is None else gain * weight
        chosen = gain.masked_fill(~free, -torch.inf).argmax()
        free[chosen] = False
        order.append(chosen)
        covered = torch.maximum(covered, rows[:, chosen, None])
    return torch.stack(order)


def marginal_relevance(features: Tensor, importance: Tensor, count: int, balance: float) -> Tensor:
    """Order [count] of maximal marginal relevance, ties to the lowest index.

    Each step takes the token of largest balance * importance - (1 - balance) * (largest cosine to a chosen token); the
    first one by importance alone. features: [N, d]. importance: [N]. Time O(N d count), memory O(N d).
    """
    unit = normalize(features, dim=1)
    free = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    nearest = unit.new_full((len(unit),), -torch.inf)  # running largest cosine to a chosen token
    score, order = importance, []
    for _ in range(count):
        chosen = score.masked_fill(~free, -torch.inf).argmax()
        free[chosen] = False
        order.append(chosen)
        nearest = torch.maximum(nearest, unit @ unit[chosen])
        score = balance * importance - (1 - balance) * nearest
    return torch.stack(order)
