"""The first decoder layers of a batch, computed once for all methods that prune behind them.

Methods that prune before layer 2 run the same layers 0 and 1 on the same prompts, one after another. While `Replay` is
open, a layer that is given the input of its last long prefill again hands out what it made of it then: hidden states,
and keys and values for the cache. The input is compared, so that nothing has to be known of methods; whoever gives a
layer anything else gets it computed. Answers do not change by a bit. Times do: nothing that is timed belongs in here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.decoder.cache_names import cache_of, with_cache


@dataclass(frozen=True)
class _Prefill:
    """What a layer was given and what it made of it. keys, values: [B, heads, T, head size]."""

    hidden: Tensor
    mask: Tensor | None
    phases: tuple[Tensor, ...]
    output: Tensor
    keys: Tensor
    values: Tensor

    def fits(self, hidden: Tensor, mask: Tensor | None, phases: tuple[Tensor, ...]) -> bool:
        """By identity where it holds, because comparing costs a look at every number."""
        pairs = [(self.hidden, hidden), *zip(self.phases, phases, strict=True)]
        if (self.mask is None) != (mask is None):
            return False
        if self.mask is not None and mask is not None:
            pairs.append((self.mask, mask))
        return all(mine is other or torch.equal(mine, other) for mine, other in pairs)


class Replay:
    """Context manager around a decoder whose layers take transformers' arguments; `layers` of them remember.

    Call `forget` between batches: of each layer the longest prefill since then is kept.
    """

    def __init__(self, decoder: nn.Module, layers: int) -> None:
        self._layers: list[Any] = list(decoder.get_submodule("layers").children())[:layers]
        self._last: dict[int, _Prefill] = {}
        self.hits = 0

    def forget(self) -> None:
        self._last = {}

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

    def _remembering(self, number: int, layer: Any, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def remembering(hidden_states: Tensor, **kwargs: Any) -> Tensor:
            cache = cache_of(kwargs)
            if cache is None or cache.get_seq_length(layer.self_attn.layer_idx):
                return forward(hidden_states, **kwargs)
            mask, phases = kwargs.get("attention_mask"), kwargs["position_embeddings"]
            last = self._last.get(number)
            if last is not None and last.fits(hidden_states, mask, phases):
                self.hits += 1
                cache.update(last.keys, last.values, layer.self_attn.layer_idx)
                return last.output
            note = _Note(cache)
            output = forward(hidden_states, **with_cache(kwargs, note))
            if last is None or hidden_states.shape[1] >= last.hidden.shape[1]:
                self._last[number] = _Prefill(hidden_states, mask, tuple(phases), output, *note.added)
            return output

        return remembering


class _Note:
    """Stands in for a cache during one layer and notes what is added."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.added: tuple[Tensor, Tensor]

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.added = keys, values
        return self._cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
