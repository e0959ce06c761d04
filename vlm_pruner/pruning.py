"""What happens inside a running decoder. The only code that prunes one, whichever door it is reached through."""

from __future__ import annotations

from torch import nn

from vlm_pruner.layout import VisualSpan
from vlm_pruner.methods.base import Pruner
from vlm_pruner.receipts import Receipt


class DecoderPruning:
    """Context manager: while it is open, a transformers decoder drops visual tokens before layer `method.layer`.

    Announce each prefill's visual tokens with `expect`; `receipts` then says what was kept. May be closed and opened
    again around single forward calls (also from inside the decoder's own forward): what decoding needs to know about
    a pruned cache is kept by this object, keyed by the cache.
    """

    def __init__(self, decoder: nn.Module, method: Pruner, *, released_rounding: str = "round") -> None:
        self.decoder = decoder
        self.method = method
        self.released_rounding = released_rounding
        self.receipts: list[Receipt] = []

    def expect(self, spans: list[list[VisualSpan]]) -> None:
        """Visual spans of the next forward call: one list per batch row. Raises before the model runs."""
        raise NotImplementedError

    def __enter__(self) -> DecoderPruning:
        raise NotImplementedError

    def __exit__(self, *exception: object) -> None:
        raise NotImplementedError


class Pruning:
    """What `prune` gives: use it as a context manager."""

    def __init__(self, model: nn.Module, method: Pruner) -> None:
        self.model = model
        self.method = method

    @property
    def receipts(self) -> list[Receipt]:
        """One receipt per prefill, oldest first."""
        raise NotImplementedError

    def __enter__(self) -> Pruning:
        raise NotImplementedError

    def __exit__(self, *exception: object) -> None:
        raise NotImplementedError


def prune(model: nn.Module, method: Pruner) -> Pruning:
    """Prune `model`, a supported transformers vision-language model, while the returned context is open."""
    return Pruning(model, method)
