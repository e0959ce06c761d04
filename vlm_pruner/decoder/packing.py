"""Short sequences out of long ones: which positions stay, packed to the right, and the key masks that go with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_pruner.errors import PruningError


@dataclass(frozen=True)
class Packing:
    """B rows of T positions, of which each keeps some, packed to the right into L = the most that any row keeps.

    index: long [B, L], positions in the long sequence, ascending within the kept ones.
    valid: bool [B, L], False where a shorter row is padded on its left; None if no row is padded.
    """

    index: Tensor
    valid: Tensor | None

    @classmethod
    def of(cls, keep: Tensor, counts: list[int] | None = None) -> Packing:
        """From keep: bool [B, T]. counts: how many each row keeps, if that is known: then no GPU is waited for."""
        counts = keep.sum(dim=1).tolist() if counts is None else counts
        # A stable sort puts dropped positions before kept ones, each in order: the last L columns are the packed rows.
        index = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - max(counts) :]
        return cls(index, None if min(counts) == max(counts) else keep.gather(1, index))

    @property
    def length(self) -> int:
        return self.index.shape[1]

    def places(self, length: int) -> Tensor:
        """Long [B, length]: where each of the `length` long positions has gone; without meaning for dropped ones."""
        rows, columns = self.index.shape
        places = self.index.new_zeros(rows, length)
        here = torch.arange(columns, device=places.device).expand(rows, -1)
        return places.scatter_(1, self.index, here)

    def gather(self, tokens: Tensor) -> Tensor:
        """[..., B, L, c] from `tokens` [..., B or 1, T, c], on `tokens`' device."""
        rows, length = self.index.shape
        if rows == 1:  # copies whole rows, where gather looks up every number
            return tokens.index_select(-2, self.index[0].to(tokens.device))
        tokens = tokens.expand(*tokens.shape[:-3], rows, -1, -1)
        index = self.index.to(tokens.device)[..., None].expand(*tokens.shape[:-2], length, tokens.shape[-1])
        return tokens.gather(-2, index)


def visible_keys(mask: Tensor | None, rows: int, length: int) -> Tensor | None:
    """Which of the first `length` keys are not padding: bool [rows, length], or None if all are visible.

    mask: what a decoder layer is given: None, [B, keys] (FlashAttention) or [B or 1, heads or 1, T, keys], boolean or
    additive. The last query comes after every key, so only padding is hidden from it. It is read here, and not from
    the caller's two-dimensional mask, because with a static cache the caller's mask never reaches the decoder.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise PruningError(
            f"cannot prune under an attention mask of type {type(mask).__name__}; "
            'load the model with attn_implementation="sdpa", "eager" or "flash_attention_2"'
        )
    last = mask if mask.ndim == 2 else mask[:, 0, -1]
    last = last[:, :length]
    visible = last.bool() if mask.ndim == 2 or not last.is_floating_point() else last > torch.finfo(last.dtype).min / 2
    visible = visible.expand(rows, -1)
    return None if bool(visible.all()) else visible


def join_keys(past: Tensor | None, new: Tensor | None, rows: int, past_length: int, new_length: int) -> Tensor | None:
    """[rows, past_length + new_length], the visible keys of a cache and of what is added to it; None if all are."""
    if past is None and new is None:
        return None
    device = new.device if past is None and new is not None else past.device if past is not None else None
    past = torch.ones(rows, past_length, dtype=torch.bool, device=device) if past is None else past
    new = torch.ones(rows, new_length, dtype=torch.bool, device=device) if new is None else new
    return torch.cat([past, new.to(past.device)], dim=1)
