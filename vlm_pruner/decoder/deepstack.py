"""DeepStack (Qwen3-VL): features that a decoder adds to its visual tokens after each of the first layers.

The decoder adds them by the long sequence's positions. Those due after a layer that runs on the short sequence are
taken out of its hands, and added here, to the visual tokens that are left.
"""

from __future__ import annotations

from torch import Tensor

from vlm_pruner.decoder.packing import Packing


class DeepStack:
    """The features due after the pruned layer and the layers behind it, in the order of layers.

    visual:   bool [B, T], where the visual tokens are in the long sequence.
    features: one [visual tokens, d] per layer; rows in the order of `visual`'s True entries.
    """

    def __init__(self, visual: Tensor, features: list[Tensor]) -> None:
        self._visual = visual
        self._pending = list(features)

    def shorten(self, packing: Packing) -> None:
        """Compact mask and features to the tokens that `packing` keeps."""
        index = packing.index.to(self._visual.device)
        visual = self._visual.gather(1, index)
        if packing.valid is not None:
            visual &= packing.valid.to(visual.device)
        number = self._visual.flatten().cumsum(0).view_as(self._visual) - 1  # of each visual token, counted from 0
        kept = number.gather(1, index)[visual]
        self._visual = visual
        self._pending = [features[kept.to(features.device)] for features in self._pending]

    def add(self, hidden: Tensor) -> Tensor:
        """`hidden` [B, L, d], the output of the next layer, with what is due after it."""
        if not self._pending:
            return hidden
        hidden = hidden.clone()
        hidden[self._visual.to(hidden.device)] += self._pending.pop(0).to(hidden)
        return hidden
