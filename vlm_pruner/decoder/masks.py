"""Attention masks: which keys a layer's queries may attend to, in the form that the layer's attention takes.

A caller's mask may hide more than padding: a picture, another prompt packed into the same row, or anything else that a
4-D mask encodes. So the mask of a short sequence is the long one, gathered along queries and keys.
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
    """The keys of a short sequence, among those of the long one.

    index: long [B or 1, C], positions in the long sequence. valid: bool [B or 1, C], False for padding from
    packing; None if there is none. past: how many of the C were cached before this call.
    unknown: whether another context filled the cache, which leaves the positions of the cached keys unknown.
    """

    index: Tensor
    valid: Tensor | None
    past: int
    unknown: bool = False


@dataclass(frozen=True)
class LayerMask:
    """A decoder layer's attention_mask in a call of B rows of `new` tokens, after `past` cached ones.

    given: None (causal, nothing hidden), [B, keys] (FlashAttention) or [B or 1, heads or 1, new, keys], boolean or
    additive. There may be more columns than past + new: a static cache's unused room.
    prompts: long [new], the prompt that each token belongs to, if FlashAttention separates several in one row by their
    position ids, without a mask; None otherwise.
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
        """For every new token, on the CPU: whether any, and whether another, token attends to it. Bool [B, new]."""
        if self.given is None:
            return None
        if self.given.ndim == 2:
            shown = self.given[:, self.past : self.past + self.new].bool().expand(self.rows, -1).cpu()
            return shown, shown
        allowed = _allowed(self.given[..., self.past : self.past + self.new])
        allowed = _any(allowed, dim=1)  # by any head: [B or 1, new, new]
        itself = torch.eye(self.new, dtype=torch.bool, device=allowed.device)
        by_others = _any(allowed & ~itself, dim=1)
        looked_at = by_others | allowed.diagonal(dim1=1, dim2=2)
        found = torch.stack([looked_at, by_others]).expand(-1, self.rows, -1).cpu()
        return found[0], found[1]

    def shown(self, row: int) -> Tensor:
        """Bool [new], on the CPU: the row's new tokens that are neither padding nor hidden."""
        if self._counts is None:
            return torch.ones(self.new, dtype=torch.bool, device="cpu")
        return self._counts[0][row]

    def hidden_tokens(self, row: int) -> Tensor | None:
        """Bool [new], on the CPU: the row's new tokens that no other token attends to. None if there are none.

        Meant for visual tokens. The last token is an exception: no token follows it that could attend to it.
        """
        if self._counts is None:
            return None
        hidden = ~self._counts[1][row]
        hidden[-1] = not self._counts[0][row, -1]
        return hidden if bool(hidden.any()) else None

    def leading_padding(self) -> list[int]:
        """For every row, how many of its first new tokens no token attends to; at most all but one."""
        if self._counts is None:
            return [0] * self.rows
        shown = self._counts[0].int()
        first = torch.where(shown.any(dim=1), shown.argmax(dim=1), self.new)
        return first.clamp(max=self.new - 1).tolist()

    def allowed(self, row: int, positions: Tensor) -> Tensor:
        """Bool [heads or 1, Q, past + new]: keys that the row's new tokens at `positions`, long [Q], may attend to."""
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

    def terms(self, row: int, positions: Tensor) -> Tensor | None:
        """What the mask adds to the logits of allowed keys, [heads or 1, Q, past + new]; None for nothing."""
        if self.given is None or self.given.ndim == 2 or not self.given.is_floating_point():
            return None
        mask = self.given[row if len(self.given) > 1 else 0][:, positions.to(self.given.device), : self.past + self.new]
        return mask.masked_fill(~_allowed(mask), 0)

    def looking_at(self, row: int, positions: Tensor) -> Tensor:
        """Bool [new], on the CPU: the row's new tokens that may attend to one of those at `positions`, long [n].

        For tokens after all of these. Without a 4-D mask, all shown tokens may.
        """
        if self.prompts is not None:
            return (self.prompts[:, None] == self.prompts[positions]).any(dim=1)
        if self.given is None or self.given.ndim == 2:
            return self.shown(row)
        mask = self.given[row if len(self.given) > 1 else 0]
        looking = _allowed(mask[:, :, (self.past + positions).to(mask.device)]).any(dim=0).any(dim=1)
        return looking.cpu() & self.shown(row)

    def gathered(self, packing: Packing | None, columns: Columns, width: int) -> Tensor:
        """The mask of the short sequence, in the form of the long one. Only if there is a mask.

        packing: the new tokens that stay as queries; None if all do. width: number of columns, including unused room.
        Raises CacheError if the mask hides cached tokens whose positions are unknown.
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
    """Converts to booleans, True for visible keys."""
    return mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()


def _any(given: Tensor, dim: int) -> Tensor:
    """`given.any(dim)` of booleans, which on a CPU takes thirty times as long as a maximum of bytes."""
    return given.view(torch.uint8).amax(dim=dim).bool()


def _queries(mask: Tensor, packing: Packing) -> Tensor:
    """Gathers queries: [B or 1, heads, T, keys] to [B, heads, L, keys]."""
    index = packing.index.to(mask.device)
    if len(index) == 1:
        return mask.index_select(2, index[0])
    mask = mask.expand(len(index), -1, -1, -1)
    return mask.gather(2, index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))


def _keys(mask: Tensor, index: Tensor) -> Tensor:
    """Gathers keys: [B or 1, heads, Q, keys] to [B, heads, Q, C], at index [B or 1, C]."""
    if len(index) == 1:
        return mask.index_select(3, index[0])
    mask = mask.expand(len(index), -1, -1, -1)
    return mask.gather(3, index[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
