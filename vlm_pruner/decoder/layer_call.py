"""A decoder layer with the arguments that it is about to run on, and a stand-in cache that records its keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from vlm_pruner.decoder.cache_names import cache_of, with_cache
from vlm_pruner.decoder.masks import LayerMask


@dataclass(frozen=True)
class LayerCall:
    """The layer numbered `index`, as a pre-hook meets it."""

    layer: nn.Module
    index: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Tensor:
        """[B, T, d]."""
        hidden: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return hidden

    @property
    def phases(self) -> tuple[Tensor, ...]:
        """Cosine and sine of the rotary embedding, each [..., B or 1, T, head size]."""
        phases: tuple[Tensor, ...] = self.kwargs["position_embeddings"]
        return phases

    @property
    def cache(self) -> Any:
        return cache_of(self.kwargs)

    def mask(self, past: int, prompts: Tensor | None = None) -> LayerMask:
        """The layer's mask. past: keys that precede this call's in it. prompts: see LayerMask."""
        rows, new = self.hidden.shape[:2]
        return LayerMask(self.kwargs.get("attention_mask"), rows, past, new, prompts)

    def with_hidden(self, hidden: Tensor) -> LayerCall:
        """The same call with other hidden states, positional or by name."""
        if self.args:
            return replace(self, args=(hidden, *self.args[1:]))
        return replace(self, kwargs={**self.kwargs, "hidden_states": hidden})

    def with_cache(self, cache: Any) -> LayerCall:
        return replace(self, kwargs=with_cache(self.kwargs, cache))

    def updated(self, arguments: dict[str, Any]) -> LayerCall:
        """The same call with other arguments by name."""
        return replace(self, kwargs={**self.kwargs, **arguments})


def tokens_in(call: dict[str, Any]) -> Tensor:
    """The tokens of a call, [B, n] as ids or [B, n, d] as embeddings."""
    ids = call.get("input_ids")
    tokens: Tensor = call["inputs_embeds"] if ids is None else ids
    return tokens


class KeyTap:
    """Stands in for a cache (or for none) during one layer, and records the keys that the layer adds.

    These are the cache's entries (after rotary embedding), complete and in order for every kind of cache, static or
    quantised, and even without a cache.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.keys: Tensor | None = None  # [B, key heads, T, head size]
        self.all_keys: Tensor | None = None  # the same, after those of earlier calls; unused room may follow

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys = keys
        cached = (keys, values) if self._cache is None else self._cache.update(keys, values, *args, **kwargs)
        self.all_keys = cached[0]
        return cached

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
