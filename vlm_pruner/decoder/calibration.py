"""Calibration: keys that stand for several tokens get more attention, by terms added to the attention logits.

In the layers from the pruned one on, logit[q, k] gets

    size_power * log s_k              s_k: the tokens that key k stands for, 1 for text
    log(2 - D(m_q - m_k))             with "size+distance", for queries from the row's first pruned image on

m is the position by which a token's rotary phases turn, and D(x) the mean of cos(x * frequency) over the frequencies
(RESTORE, arXiv 2606.01711). The phases themselves give it, for every kind of rotary embedding: the inner product of two
tokens' cosines and sines is the sum of these cosines. A query before the first pruned image sees no pruned image, and
attends as in the dense model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from vlm_pruner.decoder.packing import Packing
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import VisualSpan
from vlm_pruner.methods.base import Pruner
from vlm_pruner.selection.standing import group_totals

_ADDITIVE = ("sdpa", "eager")  # kinds of attention that add their mask to the logits


@dataclass(frozen=True)
class Sizes:
    """What a call's own tokens stand for.

    tokens: float32 [B, T], the number of tokens that each stands for. behind: bool [B, T], whether a pruned image of
    the row starts at or before the token.
    """

    tokens: Tensor
    behind: Tensor

    @classmethod
    def ones(cls, like: Tensor) -> Sizes:
        """For tokens [B, T, ...] of which none was dropped."""
        rows, length = like.shape[:2]
        tokens = torch.ones(rows, length, dtype=torch.float32, device=like.device)
        return cls(tokens, torch.zeros_like(tokens, dtype=torch.bool))

    def copy(self) -> Sizes:
        return Sizes(self.tokens.clone(), self.behind.clone())

    def count(self, row: int, image: VisualSpan, indices: Tensor, group: Tensor) -> None:
        """Adds up, in place, what an image's kept tokens stand for.

        indices: long [R], the kept ones. group: long [N], the index in `indices` where each token counts, or -1.
        """
        sizes = self.tokens[row][image.index(self.tokens.device)]
        total = group_totals(group.to(sizes.device), sizes, len(indices))
        self.tokens[row].index_copy_(0, image.positions_of(indices).to(total.device), total)
        self.behind[row, image.start :] = True

    def packed(self, packing: Packing) -> Sizes:
        return Sizes(*(packing.gather(part[..., None])[..., 0] for part in (self.tokens, self.behind)))


@dataclass(frozen=True)
class KeySizes:
    """What the keys of a short sequence stand for.

    logs:   float32 [B, C], size_power * log s of each key. Later keys are text: 0.
    pruned: bool [B], whether an image of the row was pruned.
    """

    logs: Tensor
    pruned: Tensor

    def first(self, count: int) -> Tensor:
        """[B, count]: the logs of the first `count` keys, those of later text included."""
        return pad(self.logs[:, :count], (0, max(0, count - self.logs.shape[1])))

    def with_own(self, past: int, own: Sizes, power: float) -> KeySizes:
        """After `past` keys follow those of a call's own tokens."""
        logs = torch.cat([self.first(past).expand(len(own.tokens), -1), power * own.tokens.log()], dim=1)
        return KeySizes(logs, self.pruned | own.behind.any(dim=1))

    @classmethod
    def none(cls, like: Tensor) -> KeySizes:
        """For rows [B, ...] in which nothing was dropped."""
        rows = len(like)
        return cls(
            torch.zeros(rows, 0, device=like.device, dtype=torch.float32),
            torch.zeros(rows, device=like.device, dtype=torch.bool),
        )


def directions(phases: tuple[Tensor, ...], sections: list[int] | None) -> Tensor:
    """[B or 1, T, 2 c], unit vectors whose inner product is D of two tokens' distance, from their cosines and sines.

    phases: each [B or 1, T, c], or [3, B or 1, T, c] if the layers choose axes themselves, by `sections`.
    """
    parts = [_one_axis_each(phase, sections) for phase in phases]
    return normalize(torch.cat(parts, dim=-1).float(), dim=-1)


def _one_axis_each(phase: Tensor, sections: list[int] | None) -> Tensor:
    if phase.ndim == 3:
        return phase
    if phase.ndim != 4 or not sections or phase.shape[-1] % sum(sections):
        raise PruningError(
            f"calibrate='size+distance' cannot read rotary phases of shape {list(phase.shape)}; use calibrate='size'"
        )
    pieces = phase.split(sections * (phase.shape[-1] // sum(sections)), dim=-1)
    return torch.cat([piece[number % 3] for number, piece in enumerate(pieces)], dim=-1)


def distance_term(queries: Tensor, keys: Tensor, behind: Tensor) -> Tensor:
    """[B, L, C]: log(2 - D), 0 or more. queries, keys: directions [B or 1, L, 2 c] and [B or 1, C, 2 c].

    behind: bool [B, L], the queries that get it.
    """
    alike = (queries @ keys.transpose(1, 2)).clamp_(max=1)
    return torch.where(behind[..., None], (2 - alike).log_(), 0)


def added(mask: Tensor | None, terms: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask [B, heads or 1, L, width] with `terms` [B, L or 1, C] added to visible keys; floating-point.

    mask: boolean, additive, or None if every query sees every key. dtype: of the result, unless the mask has one.
    """
    least = torch.finfo(dtype).min
    if mask is None:
        return terms[:, None].to(dtype)
    terms = pad(terms[:, None], (0, mask.shape[-1] - terms.shape[-1])).to(mask.device)
    if mask.dtype == torch.bool:
        return torch.where(mask, terms.to(dtype), least)
    return mask + terms.to(mask.dtype)


def causal(past: int, like: Tensor, valid: Tensor | None, width: int) -> Tensor | None:
    """Bool [B or 1, 1, L, width]: what L new tokens [B, L, ...] see of `past` keys, of each other, and of unused room.

    valid: bool [B, past + L], False for padding; None if there is none. None if every query sees every key.
    """
    new = like.shape[1]
    total = past + new
    if new == 1 and valid is None and width <= total:
        return None
    keys, queries = (torch.arange(size, device=like.device) for size in (max(width, total), new))
    allowed = (keys <= past + queries[:, None])[None, None]
    if valid is not None:
        allowed = allowed & pad(valid, (0, len(keys) - total), value=False)[:, None, None]
    return allowed


def sections_of(config: Any) -> list[int] | None:
    """The rotary frequencies that each axis of three has."""
    return (getattr(config, "rope_parameters", None) or {}).get("mrope_section")


def check_additive(attention: str | None, method: Pruner) -> None:
    """Raises PruningError if a decoder's `attention` adds no mask to its logits."""
    if attention not in _ADDITIVE:
        raise PruningError(
            f"calibrate={method.calibrate!r} adds to the logits of attention, which "
            f"attn_implementation={attention!r} does not take; load the model with attn_implementation="
            f"{' or '.join(map(repr, _ADDITIVE))}, or leave calibrate out"
        )
