"""The processes that share a step of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """One process among `size`. One alone needs no group."""

    rank: int = 0
    size: int = 1

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        if self.size == 1:
            return tensors
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([t.numel() for t in tensors])
        return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]

    def send(self, tensors: list[Tensor], rank: int) -> None:
        """Overwrite `tensors` everywhere with those of `rank`."""
        if self.size == 1:
            return
        flat = torch.cat([t.detach().flatten() for t in tensors])
        dist.broadcast(flat, rank)
        for tensor, new in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.data.copy_(new.view_as(tensor))

    def everyones(self, thing: object) -> list:
        if self.size == 1:
            return [thing]
        out: list = [None] * self.size
        dist.all_gather_object(out, thing)
        return out


ALONE = Team()
