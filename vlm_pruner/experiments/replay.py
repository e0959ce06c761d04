"""Computes once what several prefills of a batch have in common.

Methods that prune before layer 2 run the same layers 0 and 1 on the same prompts. While `Replay` is open, a layer that
gets the input of its last long prefill again returns the recorded output: hidden states, and keys and values for the
cache. Answers are the same to the bit.

With `prefixes`, rows of a batch with a common beginning share it too, in every layer: questions about one picture share
the picture, and its remaining tokens if the same ones were kept. Answers then agree to float rounding. Masks are taken
to be causal, and may hide padding after the common beginning.

Replay compares inputs, so it needs to know nothing about methods, and computes any other input as usual. Times change,
so never time anything inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from vlm_pruner.decoder.cache_names import cache_of, with_cache

Phases = tuple[Tensor, ...]
Computed = tuple[Tensor, Tensor, Tensor]  # output [B, T, d]; keys and values [B, heads, T, head size]
Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class _Prefill:
    """A layer's input and what it made of it."""

    hidden: Tensor
    mask: Tensor | None
    phases: Phases
    computed: Computed

    def fits(self, hidden: Tensor, mask: Tensor | None, phases: Phases) -> bool:
        """By identity where it holds, because comparing reads every number."""
        pairs = [(self.hidden, hidden), *zip(self.phases, phases, strict=True)]
        if (self.mask is None) != (mask is None):
            return False
        if self.mask is not None and mask is not None:
            pairs.append((self.mask, mask))
        return all(mine is other or torch.equal(mine, other) for mine, other in pairs)


class Replay:
    """Context manager around a decoder whose layers take transformers' arguments; the first `layers` remember.

    Call `forget` between batches: each layer keeps its longest prefill since then.
    """

    def __init__(self, decoder: nn.Module, layers: int, prefixes: bool = False) -> None:
        every: list[Any] = list(decoder.get_submodule("layers").children())
        self._layers = every if prefixes else every[:layers]
        self._remember, self._prefixes = layers, prefixes
        self.hits = 0
        self.forget()

    def forget(self) -> None:
        self._last: dict[int, _Prefill] = {}
        self._before: tuple[Tensor | None, Tensor | None, _Prefixes | None] = None, None, None  # of the layer before

    def __enter__(self) -> Replay:
        for number, layer in enumerate(self._layers):
            layer.forward = self._remembering(number, layer, layer.forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self._layers:
            del layer.forward  # the class's own shows again
        self.forget()

    def _remembering(self, number: int, layer: Any, forward: Forward) -> Forward:
        @wraps(forward)  # so that its signature is the layer's own
        def remembering(hidden_states: Tensor, **kwargs: Any) -> Tensor:
            cache = cache_of(kwargs)
            if cache is None or cache.get_seq_length(layer.self_attn.layer_idx):
                return forward(hidden_states, **kwargs)
            output, keys, values = self._computed(number, forward, hidden_states, kwargs)
            cached, layers = layer.self_attn.layer_idx, cache.layers
            if cached < len(layers) and type(layers[cached]) is DynamicLayer:
                layers[cached] = _WithRoom()
            cache.update(keys, values, cached)
            return output

        return remembering

    def _computed(self, number: int, forward: Forward, hidden: Tensor, kwargs: dict[str, Any]) -> Computed:
        mask, phases = kwargs.get("attention_mask"), tuple(kwargs["position_embeddings"])
        last = self._last.get(number)
        if last is not None and last.fits(hidden, mask, phases):
            self.hits += 1
            return last.computed
        prefixes = self._common(hidden, phases, mask) if self._prefixes else None
        if prefixes is None:
            computed = _through(forward, hidden, kwargs, _States())
        else:
            computed = prefixes.through(forward, hidden, phases, kwargs)
        self._before = computed[0], mask, prefixes
        if number < self._remember and (last is None or hidden.shape[1] >= last.hidden.shape[1]):
            self._last[number] = _Prefill(hidden, mask, phases, computed)
        return computed

    def _common(self, hidden: Tensor, phases: Phases, mask: Tensor | None) -> _Prefixes | None:
        """What rows have in common. A layer keeps that, so the next one need not compare its input."""
        output, own, prefixes = self._before
        return prefixes if output is hidden and own is mask else _Prefixes.of(hidden, phases, mask)


@dataclass(frozen=True)
class _Prefixes:
    """Rows of a batch in groups that begin with the same `length` tokens.

    firsts: long [G], the first row of each group. group: long [B], the group of each row.
    """

    length: int
    firsts: Tensor
    group: Tensor

    @classmethod
    def of(cls, hidden: Tensor, phases: Phases, mask: Tensor | None = None) -> _Prefixes | None:
        """None where no neighbouring rows of `hidden` [B, T, d] share at least half, or the mask hides that."""
        rows, tokens = hidden.shape[:2]
        same = torch.ones(rows - 1, tokens, dtype=torch.bool, device=hidden.device)
        for part in (hidden, *(phase for phase in phases if phase.shape[0] == rows)):
            same &= (part[1:] == part[:-1]).all(dim=-1)
        lengths = same.long().cumprod(dim=1).sum(dim=1)
        joined = 2 * lengths >= tokens
        if not joined.any():
            return None
        starts = torch.cat([joined.new_ones(1), ~joined])
        length = min(int(lengths[joined].min()), tokens - 1)
        if mask is not None:
            length = min(length, _shown(mask))
        if length == 0:
            return None
        return cls(length, starts.nonzero()[:, 0], starts.long().cumsum(dim=0) - 1)

    def through(self, forward: Forward, hidden: Tensor, phases: Phases, kwargs: dict[str, Any]) -> Computed:
        """One layer: the beginnings once per group, then the rest of every row behind them."""
        rows, cut = hidden.shape[0], self.length

        def part(phase: Tensor, of: Tensor | slice, tokens: slice) -> Tensor:
            return phase[of, tokens] if phase.shape[0] == rows else phase[:, tokens]

        mask = kwargs.get("attention_mask")
        begun = {**kwargs, "attention_mask": None}
        begun["position_embeddings"] = tuple(part(p, self.firsts, slice(cut)) for p in phases)
        first, keys, values = _through(forward, hidden[self.firsts, :cut], _without_positions(begun), _States())
        rest = hidden[:, cut:]
        follow = {**kwargs, "position_embeddings": tuple(part(p, slice(None), slice(cut, None)) for p in phases)}
        follow["attention_mask"] = _causal_behind(cut, rest) if mask is None else mask[:, :, cut:]
        past = _States(keys[self.group], values[self.group])
        last, keys, values = _through(forward, rest, _without_positions(follow), past)
        return torch.cat([first[self.group], last], dim=1), keys, values


def _without_positions(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positions are in the rotary phases; ids of the whole row would not fit a part of it."""
    return {**kwargs, **({"position_ids": None} if "position_ids" in kwargs else {})}


def _shown(mask: Tensor) -> int:
    """How many tokens from the first on a mask [B, 1, T, T] shows to every row's last one; 0 for other masks."""
    if mask.ndim != 4 or mask.shape[2] != mask.shape[3]:
        return 0
    last = mask[:, 0, -1]
    return int((last if last.dtype == torch.bool else last == 0).all(dim=0).long().cumprod(dim=0).sum())


def _causal_behind(before: int, hidden: Tensor) -> Tensor:
    """[1, 1, T, P + T], added to scores: those of `hidden` [B, T, d] see P = `before` more, and causally the rest."""
    length = hidden.shape[1]
    least = torch.finfo(hidden.dtype).min
    future = torch.full((length, length), least, dtype=hidden.dtype, device=hidden.device).triu(1)
    return torch.cat([future.new_zeros(length, before), future], dim=1)[None, None]


def _through(forward: Forward, hidden: Tensor, kwargs: dict[str, Any], states: _States) -> Computed:
    output = forward(hidden, **with_cache(kwargs, states))
    assert states.keys is not None and states.values is not None
    return output, states.keys, states.values


class _WithRoom(DynamicLayer):
    """A cache layer with room for an answer: a step writes its token there, where others copy the whole cache."""

    ROOM = 16  # tokens; longer answers are cached as usual, and so are rows that beam search has put in a new order

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._stores = [_roomy(part, self.ROOM) for part in (key_states, value_states)]
        elif stop > self._stores[0].shape[-2] or self.keys.data_ptr() != self._stores[0].data_ptr():
            grown: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return grown
        for store, part in zip(self._stores, (key_states, value_states), strict=True):
            store[..., start:stop, :] = part
        self.keys, self.values = (store[..., :stop, :] for store in self._stores)
        return self.keys, self.values


def _roomy(part: Tensor, room: int) -> Tensor:
    """Uninitialised, [B, heads, T + room, head size] for `part` [B, heads, T, head size]."""
    rows, heads, tokens, size = part.shape
    return part.new_empty(rows, heads, tokens + room, size)


class _States:
    """Stands in for a cache during one layer, and appends new keys and values to those it has."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
        else:
            self.keys, self.values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        return self.keys, self.values
