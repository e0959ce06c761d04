"""Selections of methods that replace some kept tokens by new rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_pruner.methods.base import Selection


@dataclass(frozen=True)
class MergedSelection(Selection):
    """merged: [c, d], rows that replace the last c tokens of `order`."""

    merged: Tensor | None = None

    def rows(self, hidden: Tensor) -> Tensor:
        """[R, d] in the order of `indices`: rows of `hidden` [N, d], with the merged ones in place of theirs."""
        rows = hidden[self.indices]
        if self.merged is not None and len(self.merged):
            replaced = self.order[-len(self.merged) :]
            rows[torch.searchsorted(self.indices, replaced)] = self.merged.to(rows.dtype)
        return rows


def places_of(order: Tensor, absorbers: Tensor) -> Tensor:
    """`Selection.into`, long [N]: the index of each token's absorber among the kept tokens `order` [R] sorted.

    absorbers: long [N], the kept token that each dropped token is merged into, or -1; a kept token is its own.
    """
    absorbers = absorbers.index_copy(0, order, order)
    return torch.where(absorbers < 0, -1, torch.searchsorted(order.sort().values, absorbers.clamp(min=0)))
