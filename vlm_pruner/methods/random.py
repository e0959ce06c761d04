"""Random tokens: the baseline that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.base import Pruner, Selection, register


@register("random")
@dataclass(frozen=True)
class RandomPruner(Pruner):
    """Keeps a uniform random subset that follows from `seed` and the number of tokens alone.

    Every picture with as many tokens keeps the same places, on every device and in every batch, so runs can be
    repeated exactly; average over seeds for an error bar of the choice itself.
    """

    seed: int = 0

    def select(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> Selection:
        generator = torch.Generator("cpu").manual_seed(self.seed)
        order = torch.randperm(hidden.shape[0], generator=generator, device="cpu")[:budget]
        return Selection.of(order.to(hidden.device))
