"""Single rows of a decoder layer's attention, recomputed: whichever kernel the model runs, no [T, T] map is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerCall:
    """A decoder layer and what it is about to run on.

    hidden: [B, T, d]. phases: cosine and sine of the rotary embedding, each [B or 1, T, head size].
    visible: bool [B, past + T], False for padding; None if there is none.
    """

    layer: nn.Module
    hidden: Tensor
    phases: tuple[Tensor, ...]
    visible: Tensor | None

    def queries(self, row: int, positions: Tensor) -> Tensor:
        """[heads, Q, head size] of the tokens at `positions` [Q] of one batch row, after rotary embedding."""
        return self._project("q", row, positions)

    def keys(self, row: int) -> Tensor:
        """[key heads, T, head size] of one batch row, after rotary embedding."""
        return self._project("k", row, torch.arange(self.hidden.shape[1]))

    def _project(self, which: str, row: int, positions: Tensor) -> Tensor:
        attention: Any = self.layer.self_attn
        normed = self.layer.get_submodule("input_layernorm")(self.hidden[row, positions.to(self.hidden.device)])
        heads = getattr(attention, f"{which}_proj")(normed).unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, f"{which}_norm"):  # as Qwen3 has
            heads = getattr(attention, f"{which}_norm")(heads)
        cosine, sine = (part.expand(self.hidden.shape[0], -1, -1)[row].to(heads.device) for part in self.phases)
        return _rotate(heads.transpose(0, 1), cosine[positions], sine[positions])

    def rows(self, row: int, positions: Tensor, keys: Tensor, past: int) -> Tensor:
        """Attention of the tokens at `positions` [Q] of one batch row to every key: float32 [heads, Q, past + T].

        keys: [key heads, >= past + T, head size], of that row; the first `past` are from the cache.
        """
        queries = self.queries(row, positions).float()
        total = past + self.hidden.shape[1]
        keys = keys[:, :total].to(queries).float()
        grouped = queries.unflatten(0, (keys.shape[0], -1))  # [key heads, heads per key head, Q, head size]
        scaling = self.layer.self_attn.scaling
        scores = (grouped @ keys[:, None].transpose(2, 3)).flatten(0, 1) * scaling
        unseen = torch.arange(total)[None, :] > past + positions.cpu()[:, None]
        if self.visible is not None:
            unseen = unseen | ~self.visible[row].cpu()
        return scores.masked_fill(unseen.to(scores.device), -torch.inf).softmax(dim=-1)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding in the half-split form. x: [heads, T, head size]; cosine, sine: [T, head size]."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
