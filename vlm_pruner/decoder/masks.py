"""Attention masks: which keys a layer's queries may look at, in whichever form the attention at hand takes it.

The caller's mask may hide more than padding: a picture, another prompt packed into the same row, or whatever a mask of
four dimensions says. So the mask of a shortened sequence is the long one, gathered along queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlm_pruner.decoder.packing import Packing
from vlm_pruner.errors import CacheError, PruningError


@dataclass(frozen=True)
class Columns:
    """The keys that a short sequence has, among those of the long one.

    index: long [B or 1, C], positions in the long sequence. valid: bool [B or 1, C], False for padding that packing
    made; None if there is none. past: how many of the C were cached before this call.
    unknown: whether another context filled the cache, so that nobody knows which positions the cached ones had.
    """

    index: Tensor
    valid: Tensor | None
    past: int
    unknown: bool = False


@dataclass(frozen=True)
class LayerMask:
    """What a decoder layer is given as attention_mask in a call of B rows of `new` tokens, after `past` cached ones.

    given: None (causal, nothing hidden), [B, keys] (FlashAttention) or [B or 1, heads or 1, new, keys], boolean or
    additive. There may be more columns than past + new: a static cache's unused room.
    prompts: long [new], which prompt each token belongs to, where FlashAttention tells several in one row apart by
    their position ids and without a mask; None otherwise.
    """

    given: Tensor | None
    rows: int
    past: int
    new: int
    prompts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.given is not None and (not isinstance(self.given, Tensor) or self.given.ndim not in (2, 4)):
            raise PruningError(
                f"cannot prune under an attention mask of type {type(self.given).__name__}; "
                'load the model with attn_implementation="sdpa", "eager" or "flash_attention_2"'
            )

    @cached_property
    def _counts(self) -> tuple[Tensor, Tensor] | None:
        """For every new token, on the CPU: does any token look at it; does another one. Bool [B, new] each."""
        if self.given is None:
            return None
        if self.given.ndim == 2:
            shown = self.given[:, self.past : self.past + self.new].bool().expand(self.rows, -1).cpu()
            return shown, shown
        allowed = _allowed(self.given[..., self.past : self.past + self.new]).any(dim=1)  # [B or 1, new, new]
        looked_at = allowed.sum(dim=1)
        by_others = looked_at - allowed.diagonal(dim1=1, dim2=2).long()
        found = torch.stack([looked_at > 0, by_others > 0]).expand(-1, self.rows, -1).cpu()
        return found[0], found[1]

    def shown(self, row: int) -> Tensor:
        """Bool [new], on the CPU: the row's new tokens that are neither padding nor hidden."""
        if self._counts is None:
            return torch.ones(self.new, dtype=torch.bool, device="cpu")
        return self._counts[0][row]

    def hidden_tokens(self, row: int) -> Tensor | None:
        """Bool [new], on the CPU: the row's new tokens that no other token looks at. None if there are no such tokens.

        Of use for visual tokens. The last token is the exception: nothing comes after it that could look.
        """
        if self._counts is None:
            return None
        hidden = ~self._counts[1][row]
        hidden[-1] = not self._counts[0][row, -1]
        return hidden if bool(hidden.any()) else None

    def leading_padding(self) -> list[int]:
        """For every row, how many of its first new tokens nobody looks at; at most all but one."""
        if self._counts is None:
            return [0] * self.rows
        shown = self._counts[0].int()
        first = torch.where(shown.any(dim=1), shown.argmax(dim=1), self.new)
        return first.clamp(max=self.new - 1).tolist()

    def allowed(self, row: int, positions: Tensor) -> Tensor:
        """Bool [heads or 1, Q, past + new]: what the row's new tokens at `positions`, long [Q], may look at."""
        total = self.past + self.new
        device = positions.device if self.given is None else self.given.device
        positions = positions.to(device)
        if self.given is not None and self.given.ndim == 4:
            mask = self.given[row if len(self.given) > 1 else 0]
            return _allowed(mask[:, positions, :total])
        causal = torch.arange(total, device=device)[None] <= self.past + positions[:, None]
        if self.given is not None:
            causal = causal & self.given[row, :total].bool()
        if self.prompts is not None:
            prompts = self.prompts.to(device)
            causal = causal & (prompts[positions, None] == prompts)
        return causal[None]

    def looking_at(self, row: int, positions: Tensor) -> Tensor:
        """Bool [new], on the CPU: the row's new tokens that may look at one of those at `positions`, long [n].

        For tokens after all of these; without a mask of four dimensions all that are shown may.
        """
        if self.prompts is not None:
            return (self.prompts[:, None] == self.prompts[positions]).any(dim=1)
        if self.given is None or self.given.ndim == 2:
            return self.shown(row)
        mask = self.given[row if len(self.given) > 1 else 0]
        looking = _allowed(mask[:, :, (self.past + positions).to(mask.device)]).any(dim=0).any(dim=1)
        return looking.cpu() & self.shown(row)

    def gathered(self, packing: Packing | None, columns: Columns, width: int) -> Tensor:
        """The mask of the short sequence, in the form of the long one. Only for a mask that is given.

        packing: which new tokens stay as queries; None if all do. width: columns to be made, with unused room.
        Raises CacheError if the mask hides cached tokens of which nobody knows where they are.
        """
        assert self.given is not None
        if columns.unknown:
            self._check_past_is_shown()
        index = columns.index.to(self.given.device)
        valid = None if columns.valid is None else columns.valid.to(self.given.device)
        if self.given.ndim == 2:
            mask = self.given.expand(self.rows, -1).gather(1, index.expand(self.rows, -1))
            return mask if valid is None else mask & valid.to(mask.dtype)
        mask = self.given if packing is None else _queries(self.given, packing)
        mask = _keys(mask, index)
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        if valid is not None:
            mask = mask.masked_fill(~valid[:, None, None], hidden)
        return pad(mask, (0, max(0, width - mask.shape[-1])), value=hidden)

    def _check_past_is_shown(self) -> None:
        assert self.given is not None
        if not bool(_allowed(self.given[..., : self.past]).all()):
            raise CacheError(
                "the attention mask hides cached tokens of a cache that was pruned elsewhere, so it is unknown which; "
                "generate inside the context that pruned it, or start with a fresh cache"
            )


def _allowed(mask: Tensor) -> Tensor:
    """As booleans, True where a key may be looked at."""
    return mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()


def _queries(mask: Tensor, packing: Packing) -> Tensor:
    """[B, heads, L, keys] of [B or 1, heads, T, keys]."""
    index = packing.index.to(mask.device)
    if len(index) == 1:
        return mask.index_select(2, index[0])
    mask = mask.expand(len(index), -1, -1, -1)
    return mask.gather(2, index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))


def _keys(mask: Tensor, index: Tensor) -> Tensor:
    """[B, heads, Q, C] of [B or 1, heads, Q, keys], at index [B or 1, C]."""
    if len(index) == 1:
        return mask.index_select(3, index[0])
    mask = mask.expand(len(index), -1, -1, -1)
    return mask.gather(3, index[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
