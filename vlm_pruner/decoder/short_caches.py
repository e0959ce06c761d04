"""Key-value caches that hold fewer tokens from the pruned layer on: what decoding must know about each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vlm_pruner.errors import CacheError


@dataclass(frozen=True)
class ShortCache:
    """visible: bool [B, tokens held by the pruned layers], False for padding; None if there is no padding.
    gap: tokens that the layers before hold and the pruned layers do not.
    lost: long [B], visual tokens that each row has lost, for methods that give the others consecutive positions.
    """

    visible: Tensor | None
    gap: int
    lost: Tensor | None = None


class ShortCaches:
    """The shortened caches seen so far, for as long as their owners keep them alive."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, ShortCache] = WeakKeyDictionary()

    def remember(self, cache: Any, state: ShortCache) -> None:
        if cache is not None:
            self._known[cache] = state

    def get(self, cache: Any) -> ShortCache | None:
        """What was last noted of `cache`."""
        return None if cache is None else self._known.get(cache)

    def recall(self, cache: Any, *, rows: int, full: int, held: int) -> ShortCache | None:
        """State of `cache`, or None if all its layers hold the same tokens.

        full, held: tokens in the layers before the pruned one and from it on. Raises CacheError if the cache was
        changed in a way that leaves unknown which tokens its layers hold.
        """
        if cache is None or full == held == 0:
            return None
        state = self._known.get(cache)
        if state is None:
            return _adopt(rows, full, held)
        if state.gap != full - held:
            raise CacheError(
                f"the cache was changed since it was pruned: its layers now differ by {full - held} tokens instead of "
                f"{state.gap}; start again with a fresh cache"
            )
        if state.visible is None:
            return state
        if state.visible.shape[0] != rows or state.visible.shape[1] < held:
            raise CacheError(
                f"the cache was changed since it was pruned: {list(state.visible.shape)} rows and tokens became "
                f"{[rows, held]}; start again with a fresh cache"
            )
        return replace(state, visible=state.visible[:, :held])  # shorter after a rejected draft was taken back


def long_arguments(kwargs: dict[str, Any], state: ShortCache, held: int) -> dict[str, Tensor]:
    """Position ids and mask of a decoder call whose cache holds `held` tokens in its first layer, and lost `state.gap`.

    Positions go on from the long sequence, padding is that of the short one. Raises CacheError if it
    shows that other tokens are fed than those after the cached ones: `generate` counts them by the first layer too.
    """
    tokens = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
    (rows, new), long = tokens.shape[:2], held + state.gap
    changed: dict[str, Tensor] = {}
    positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if positions is None:
        changed["position_ids"] = torch.arange(long, long + new, device=tokens.device)[None]
    elif mask is None and new > 1 and int(positions[0, 0]) != long:
        _refuse(int(positions[0, 0]), long)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        if mask.shape[1] != long + new:
            _refuse(mask.shape[1] - new, long)
        past = mask.new_ones(rows, held) if state.visible is None else state.visible[:, :held].to(mask)
        changed["attention_mask"] = torch.cat([past, mask[:, -new:]], dim=1)
    return changed


def _refuse(start: int, long: int) -> None:
    raise CacheError(
        f"tokens from position {start} on are fed to a cache that stands for {long} tokens: one that was pruned at the "
        "input (layer=0) must be continued by hand, with the new tokens only, or use layer=1"
    )


def _adopt(rows: int, full: int, held: int) -> ShortCache | None:
    """A cache that someone else filled. One row without padding explains itself; several rows do not."""
    if full == held:
        return None
    if rows == 1:
        return ShortCache(None, full - held)
    raise CacheError(
        f"this cache of {rows} rows was pruned elsewhere ({full} tokens in the first layers, {held} in the last): "
        "which are padding is unknown; generate inside the context that pruned it, or start with a fresh cache"
    )
