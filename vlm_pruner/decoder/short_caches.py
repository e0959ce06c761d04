"""Key-value caches that hold fewer tokens from the pruned layer on, and what later calls must know about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from vlm_pruner.decoder.cache_names import cache_of
from vlm_pruner.decoder.calibration import KeySizes
from vlm_pruner.decoder.layer_call import tokens_in
from vlm_pruner.decoder.masks import Columns, LayerMask
from vlm_pruner.decoder.packing import Packing
from vlm_pruner.errors import CacheError


@dataclass(frozen=True)
class ShortCache:
    """A cache after a prefill that dropped tokens. Later tokens are appended to all layers alike.

    dropped:   tokens in the layers before the pruned one that those from it on lack.
    positions: long [B or 1, P], positions in the long sequence of the first P cached tokens; None if another context
               filled the cache, which leaves them unknown.
    valid:     bool [B, P], False for padding from packing; None if there is none.
    lost:      long [B], how far positions have moved, for methods that renumber.
    offset:    long [B or 1], for decoders whose positions have several axes: how far the next token's position lies
               behind its index in the long sequence. None for one axis, where it is 0.
    sizes:     what the cached tokens stand for, for methods that calibrate.
    """

    dropped: int
    positions: Tensor | None = None
    valid: Tensor | None = None
    lost: Tensor | None = None
    offset: Tensor | None = None
    sizes: KeySizes | None = None

    @property
    def rows(self) -> int | None:
        """The number of rows, if the state depends on them."""
        given = (self.valid, None if self.sizes is None else self.sizes.logs)
        return next((len(part) for part in given if part is not None and len(part) > 1), None)

    def next_positions(self, short_past: int, tokens: Tensor) -> Tensor:
        """Position ids [B or 1, n] of the next `tokens` [B, n, ...], after `short_past` cached ones."""
        start, (rows, new) = short_past + self.dropped, tokens.shape[:2]
        positions = torch.arange(start, start + new, device=tokens.device)[None]
        if self.offset is None:
            return positions
        if len(self.offset) not in (1, rows):
            raise _rows_changed(len(self.offset), rows)
        return positions + self.offset.to(positions.device)[:, None]

    def columns(self, short_past: int, device: torch.device) -> Columns:
        """The first `short_past` tokens in the pruned layers' cache."""
        if self.positions is None:
            return Columns(torch.arange(short_past, device=device)[None], None, short_past, unknown=True)
        positions = self.positions[:, :short_past]  # shorter after a rejected draft
        known = positions.shape[1]
        later = torch.arange(known, short_past, device=positions.device).expand(len(positions), -1) + self.dropped
        valid = None
        if self.valid is not None:
            valid = torch.cat(
                [self.valid[:, :short_past], self.valid.new_ones(len(self.valid), short_past - known)], dim=1
            )
        return Columns(torch.cat([positions, later], dim=1), valid, short_past)


@dataclass(frozen=True)
class Cached:
    """A cache at the start of a call of the pruned layers.

    state: None if all its layers hold the same tokens. long_past, short_past: tokens cached before this call, in the
    layers before the pruned one and from it on.
    """

    state: ShortCache | None
    long_past: int
    short_past: int

    def columns(self, packing: Packing | None, like: Tensor) -> Columns:
        """The keys that the pruned layers see, by position in the long sequence: cached ones, then the call's own.

        packing: which of the call's own tokens stay; None if all do. like: [B, T, ...], the call's own tokens.
        """
        rows, new = like.shape[:2]
        nothing_dropped = ShortCache(0, torch.arange(0, device=like.device)[None])
        past = (self.state or nothing_dropped).columns(self.short_past, like.device)
        index = torch.arange(new, device=like.device)[None] if packing is None else packing.index
        count = max(len(past.index), len(index))
        parts = [past.index.to(index.device).expand(count, -1), self.long_past + index.expand(count, -1)]
        valid = _join(past.valid, None if packing is None else packing.valid, rows, self.short_past, index.shape[1])
        return Columns(torch.cat(parts, dim=1), valid, self.short_past, past.unknown)

    def in_short(self, columns: Columns) -> Columns:
        """The same keys, counted as by a mask that covers only the remaining cached tokens (layer 0)."""
        past = torch.arange(self.short_past, device=columns.index.device).expand(len(columns.index), -1)
        own = columns.index[:, self.short_past :] - (self.long_past - self.short_past)
        return Columns(torch.cat([past, own], dim=1), columns.valid, self.short_past)

    def after(
        self, columns: Columns, dropped: int, *, lost: Tensor | None, offset: Tensor | None, sizes: KeySizes | None
    ) -> ShortCache:
        """The state for later calls, after this one dropped `dropped` more tokens of each row."""
        positions = None if columns.unknown else columns.index
        return ShortCache(self.long_past - self.short_past + dropped, positions, columns.valid, lost, offset, sizes)


def _join(past: Tensor | None, new: Tensor | None, rows: int, past_length: int, new_length: int) -> Tensor | None:
    """Bool [rows, past_length + new_length]; a part that is None counts as all True. None if both are."""
    if past is None and new is None:
        return None
    device = (past if new is None else new).device  # type: ignore[union-attr]
    past = torch.ones(rows, past_length, dtype=torch.bool, device=device) if past is None else past.to(device)
    new = torch.ones(rows, new_length, dtype=torch.bool, device=device) if new is None else new
    return torch.cat([past, new], dim=1)


_FILLED_BY: WeakKeyDictionary[Any, object] = WeakKeyDictionary()  # cache -> the context that pruned it last
_CALIBRATED: WeakSet[Any] = WeakSet()  # caches whose keys stand for several tokens, whatever the context


class ShortCaches:
    """The caches that one stage of one context has shortened, while their owners keep them alive.

    calibrate: whether it must know what cached tokens stand for.
    """

    def __init__(self, context: object, calibrate: bool = False) -> None:
        self._known: WeakKeyDictionary[Any, ShortCache] = WeakKeyDictionary()
        self._directions: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()
        self._context = context
        self._calibrate = calibrate

    def remember(self, cache: Any, state: ShortCache) -> None:
        if cache is not None:
            self._known[cache] = state
            _FILLED_BY[cache] = self._context
            if state.sizes is not None:
                _CALIBRATED.add(cache)

    def forget(self, cache: Any) -> None:
        """Forgets a cache that is empty."""
        if cache is not None:
            self._known.pop(cache, None)
            self._directions.pop(cache, None)
            _CALIBRATED.discard(cache)

    def with_directions(self, cache: Any, count: int, own: Tensor) -> Tensor:
        """[B or 1, count + L, 2 c]: rotary directions of the `count` cached keys and, after them, a call's `own`.

        Records them for the next call. Raises CacheError if those of cached keys are unknown.
        """
        if cache is None:
            return own
        if count:
            past = self._directions.get(cache)
            if past is None or past.shape[1] < count or not {len(past), len(own)} <= {1, max(len(past), len(own))}:
                raise CacheError(
                    f"calibrate='size+distance' needs the positions of all {count} cached tokens, and some were cached "
                    "elsewhere; start with a fresh cache inside the context, or use calibrate='size'"
                )
            rows = max(len(past), len(own))
            own = torch.cat([part.expand(rows, -1, -1) for part in (past[:, :count].to(own.device), own)], dim=1)
        self._directions[cache] = own
        return own

    def get(self, cache: Any) -> ShortCache | None:
        """The last state of `cache`, unless another context has pruned it since."""
        if cache is None or _FILLED_BY.get(cache) is not self._context:
            return None
        return self._known.get(cache)

    def recall(self, cache: Any, *, rows: int, long_past: int, short_past: int) -> ShortCache | None:
        """State of `cache`, or None if all its layers hold the same tokens.

        long_past, short_past: see `Cached`. Raises CacheError if a change to the cache leaves unknown which tokens its
        layers hold.
        """
        if cache is None or long_past == short_past == 0:
            self.forget(cache)
            return None
        state = self.get(cache)
        if state is None:
            elsewhere = cache in _CALIBRATED and _FILLED_BY.get(cache) is not self._context
            if elsewhere or (self._calibrate and long_past != short_past):
                raise CacheError(
                    f"this cache was pruned elsewhere ({long_past} tokens in the first layers, {short_past} in the "
                    "last), and calibration needs to know what its tokens stand for; generate inside the context that "
                    "pruned it, or start with a fresh cache"
                )
            return _adopt(rows, long_past, short_past)
        if state.dropped != long_past - short_past:
            raise CacheError(
                f"the cache was changed since it was pruned: its layers now differ by {long_past - short_past} tokens "
                f"instead of {state.dropped}; start again with a fresh cache"
            )
        if state.rows is not None and state.rows != rows:
            raise _rows_changed(state.rows, rows)
        return state


def _rows_changed(before: int, now: int) -> CacheError:
    return CacheError(
        f"the cache was changed since it was pruned: its {before} rows became {now}; start again with a fresh cache"
    )


def _adopt(rows: int, long_past: int, short_past: int) -> ShortCache | None:
    """Adopts a cache that another context filled: one row without padding is unambiguous, several rows are not."""
    if long_past == short_past:
        return None
    if rows == 1:
        return ShortCache(long_past - short_past)
    raise CacheError(
        f"this cache of {rows} rows was pruned elsewhere ({long_past} tokens in the first layers, {short_past} in the "
        "last): which are padding is unknown; generate inside the context that pruned it, or start with a fresh cache"
    )


def long_arguments(kwargs: dict[str, Any], state: ShortCache, short_past: int) -> dict[str, Tensor]:
    """Position ids and mask for a decoder whose first layer's cache holds `short_past` tokens after some were dropped.

    Positions continue the long sequence; the mask is cut to the cached tokens. Raises CacheError if the new tokens are
    not those after the cached ones: `generate` counts them by the first layer too.
    """
    tokens = tokens_in(kwargs)
    new, long_past = tokens.shape[1], short_past + state.dropped
    changed: dict[str, Tensor] = {}
    positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if positions is None:
        changed["position_ids"] = state.next_positions(short_past, tokens)
    elif mask is None and new > 1:
        start = _first_place(positions, state)
        if start != long_past:
            _refuse(start, long_past)
    static = getattr(cache_of(kwargs), "is_compileable", False)
    if isinstance(mask, dict):  # by kind of attention, from `generate` with a static cache
        changed["attention_mask"] = {
            kind: _mask_of_cached(own, state, short_past, new, static) for kind, own in mask.items()
        }
    elif mask is not None:
        changed["attention_mask"] = _mask_of_cached(mask, state, short_past, new, static)
    return changed


def _mask_of_cached(mask: Any, state: ShortCache, short_past: int, new: int, static: bool) -> Any:
    """The caller's mask, cut to cached and new tokens. static: whether the cache has unused room."""
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return mask
    if mask.ndim == 4 and static:  # `generate` builds it before the decoder runs, with the long sequence's padding
        return _static_mask(mask, state, short_past, new)
    long_past = short_past + state.dropped
    if mask.shape[-1] != long_past + new:
        _refuse(mask.shape[-1] - new, long_past)
    return _cached_columns(mask, state, long_past, short_past, new)


def _first_place(positions: Tensor, state: ShortCache) -> int:
    """Place in the long sequence of the first token of a call. positions: [B or 1, n] or [axes, B or 1, n]."""
    last_axis = positions if positions.ndim == 2 else positions[-1]
    return int(last_axis[0, 0]) - (0 if state.offset is None else int(state.offset[0]))


def _cached_columns(mask: Tensor, state: ShortCache, long_past: int, short_past: int, new: int) -> Tensor:
    """The columns of a mask [..., long_past + new] that belong to cached and new tokens."""
    tokens = torch.empty(mask.shape[0], new, device=mask.device)
    columns = Cached(state, long_past, short_past).columns(None, tokens)
    return LayerMask(mask, mask.shape[0], long_past, new).gathered(None, columns, 0)


def _static_mask(mask: Tensor, state: ShortCache, short_past: int, new: int) -> Tensor:
    """A causal mask like `mask` [B, heads, new, room], for `short_past` tokens in a static cache and `new` ones."""
    columns, queries = (torch.arange(size, device=mask.device) for size in (mask.shape[-1], new))
    allowed = (columns <= short_past + queries[:, None]).expand(len(mask), 1, -1, -1).clone()
    valid = state.columns(short_past, mask.device).valid
    if valid is not None:
        allowed[..., :short_past] &= valid[:, None, None].to(mask.device)
    if not mask.is_floating_point():
        return allowed
    return torch.zeros_like(allowed, dtype=mask.dtype).masked_fill(~allowed, torch.finfo(mask.dtype).min)


def _refuse(start: int, long: int) -> None:
    raise CacheError(
        f"tokens from position {start} on are fed to a cache that stands for {long} tokens: one that was pruned at the "
        "input (layer=0) must be continued by hand, with the new tokens only, or use layer=1"
    )
