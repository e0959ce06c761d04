"""Ranks by score, the same on every device: among equal scores the lower index comes first."""

from __future__ import annotations

from torch import Tensor


def largest(scores: Tensor, count: int) -> Tensor:
    """Indices [..., count] of the largest of `scores` [..., N], in descending order."""
    return scores.argsort(descending=True, stable=True)[..., :count]
