"""Random tokens: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.base import Pruner, Selection, register


@register("random")
@dataclass(frozen=True)
class RandomPruner(Pruner):
    """Keeps a uniform random subset that depends only on `seed` and the number of tokens.

    All pictures with the same number of tokens keep the same positions, on every device and in every batch, so runs are
    exactly repeatable; average over seeds for an error bar of the choice itself.
    """

    seed: int = 0

    def select(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> Selection:
        generator = torch.Generator("cpu").manual_seed(self.seed)
        order = torch.randperm(hidden.shape[0], generator=generator, device="cpu")[:budget]
        return Selection.of(order.to(hidden.device))
