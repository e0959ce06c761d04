"""Packs long sequences into short ones: the positions that stay move to the right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """B rows of T positions; each keeps some, packed to the right into L, the most that any row keeps.

    index: long [B, L], positions in the long sequence, ascending within the kept ones.
    valid: bool [B, L], False where a shorter row is padded on its left; None if no row is padded.
    """

    index: Tensor
    valid: Tensor | None

    @classmethod
    def of(cls, keep: Tensor, counts: list[int]) -> Packing:
        """keep: bool [B, T]. counts: how many each row keeps, known on the host, which avoids waiting for a GPU."""
        # A stable sort moves dropped positions before kept ones, each in order: the last L columns are the packed rows.
        index = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - max(counts) :]
        return cls(index, None if min(counts) == max(counts) else keep.gather(1, index))

    def new_positions(self, length: int) -> Tensor:
        """Long [B, length]: the new position of each of `length` long ones; meaningless for dropped ones."""
        rows, columns = self.index.shape
        positions = self.index.new_zeros(rows, length)
        here = torch.arange(columns, device=positions.device).expand(rows, -1)
        return positions.scatter_(1, self.index, here)

    def gather(self, tokens: Tensor) -> Tensor:
        """[..., B, L, c] from `tokens` [..., B or 1, T, c], on `tokens`' device."""
        rows, length = self.index.shape
        if rows == 1:  # copies whole rows; gather would look up every number
            return tokens.index_select(-2, self.index[0].to(tokens.device))
        tokens = tokens.expand(*tokens.shape[:-3], rows, -1, -1)
        index = self.index.to(tokens.device)[..., None].expand(*tokens.shape[:-2], length, tokens.shape[-1])
        return tokens.gather(-2, index)
