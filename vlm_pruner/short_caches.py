"""Key-value caches that hold fewer tokens from the pruned layer on: what decoding must know about each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from vlm_pruner.errors import CacheError


@dataclass(frozen=True)
class ShortCache:
    """visible: bool [B, tokens held by the pruned layers], False for padding; None if there is no padding.
    gap: tokens that the layers before hold and the pruned layers do not.
    """

    visible: Tensor | None
    gap: int


class ShortCaches:
    """The shortened caches seen so far, for as long as their owners keep them alive."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, ShortCache] = WeakKeyDictionary()

    def remember(self, cache: Any, state: ShortCache) -> None:
        if cache is not None:
            self._known[cache] = state

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
        return ShortCache(state.visible[:, :held], state.gap)  # shorter after a rejected draft was taken back


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
