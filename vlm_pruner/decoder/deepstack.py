"""DeepStack (Qwen3-VL): features that a decoder adds to its visual tokens after each of the first layers.

The decoder adds them at the long sequence's positions. After a layer that runs on the short sequence, this module adds
them instead, to the remaining visual tokens.
"""

from __future__ import annotations

from torch import Tensor

from vlm_pruner.decoder.packing import Packing


class DeepStack:
    """Features due after the pruned layer and later ones, in order of layers.

    visual:   bool [B, T], marks the visual tokens in the long sequence.
    features: one [visual tokens, d] per layer; rows in the order of `visual`'s True entries.
    """

    def __init__(self, visual: Tensor, features: list[Tensor]) -> None:
        self._visual = visual
        self._pending = list(features)

    def shorten(self, packing: Packing) -> None:
        """Restricts mask and features to the tokens that `packing` keeps."""
        index = packing.index.to(self._visual.device)
        visual = self._visual.gather(1, index)
        if packing.valid is not None:
            visual &= packing.valid.to(visual.device)
        number = self._visual.flatten().cumsum(0).view_as(self._visual) - 1  # index of each visual token, from 0
        kept = number.gather(1, index)[visual]
        self._visual = visual
        self._pending = [features[kept.to(features.device)] for features in self._pending]

    def add(self, hidden: Tensor) -> Tensor:
        """Adds the features due after the next layer to its output `hidden` [B, L, d]."""
        if not self._pending:
            return hidden
        hidden = hidden.clone()
        hidden[self._visual.to(hidden.device)] += self._pending.pop(0).to(hidden)
        return hidden
