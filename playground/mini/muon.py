"""Muon: momentum whose update is made orthogonal by Newton-Schulz steps.

Source: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon.

torch.optim.Muon exists; it walks matrices one by one, and on CPUs that costs more than the forward pass of a model
this small. Here matrices of one shape are orthogonalised in one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Coefficients of the quintic iteration, from the reference above: fast growth of small singular values.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(updates: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of `updates` [n, rows, cols], rows <= cols, towards 1."""
    a, b, c = QUINTIC
    x = updates.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(updates.dtype)


class Muon(torch.optim.Optimizer):
    """For 2-D weights of hidden layers only; give embeddings, heads, norms and biases to AdamW."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                buffer = state.setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"])
                by_shape[tuple(sorted(weight.shape))].append((weight, update))
            for members in by_shape.values():
                self._apply(members, group["lr"], group["weight_decay"])

    @staticmethod
    def _apply(members: list[tuple[nn.Parameter, Tensor]], lr: float, weight_decay: float) -> None:
        wide = torch.stack([u.mT if u.shape[0] > u.shape[1] else u for _, u in members])
        for (weight, update), direction in zip(members, orthogonalise(wide), strict=True):
            tall = update.shape[0] > update.shape[1]
            scale = (update.shape[0] / update.shape[1]) ** 0.5 if tall else 1.0
            weight.mul_(1 - lr * weight_decay)
            weight.add_(direction.mT if tall else direction, alpha=-lr * scale)


def step_all(optimisers: Iterable[tuple[torch.optim.Optimizer, float]], share: float) -> None:
    """Steps each (optimiser, peak rate) at `share` of its peak; AdamW's gradients are clipped to norm 1."""
    for optimiser, peak in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = peak * share
            if isinstance(optimiser, torch.optim.AdamW):
                nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimiser.step()
