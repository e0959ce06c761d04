"""DART (EMNLP 2025, arXiv 2502.11494): keeps the visual tokens least similar to a few pivots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.ranking import largest


def largest_keys(keys: Tensor, count: int) -> Tensor:
    """Indices [..., count] of the tokens of largest L1 norm of `keys` [..., N, k], in descending order."""
    return largest(keys.abs().sum(dim=-1), count)


def farthest_from_pivots(hidden: Tensor, pivots: Tensor, taken: Tensor, shares: list[int]) -> Tensor:
    """The visual tokens that the pivots choose, in order of choice: long [sum of shares].

    hidden: [N, d], visual tokens. pivots: [P, d], hidden states of the pivots, in order. taken: visual tokens already
    kept. Each pivot takes its share of the free tokens, those with the lowest cosine similarity to it.
    """
    free = torch.ones(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    free[taken] = False
    chosen = []
    for pivot, share in zip(pivots, shares, strict=True):
        apart = -cosine_similarity(hidden, pivot[None], dim=1)
        tokens = largest(apart.masked_fill(~free, -torch.inf), min(share, int(free.sum())))
        free[tokens] = False
        chosen.append(tokens)
    return torch.cat(chosen)


def set_order(image_pivots: list[int], text_pivots: list[int]) -> list[int]:
    """The order in which a CPython set yields the pivots, as positions in image_pivots + text_pivots.

    image_pivots, text_pivots: positions in the sequence, larger keys first. The order depends on how the set grew.
    """
    chosen = set(image_pivots)
    for pivot in text_pivots:
        chosen.add(pivot)
    given = image_pivots + text_pivots
    return [given.index(pivot) for pivot in chosen]


@register("dart", "DART", arxiv="2502.11494")
@dataclass(frozen=True)
class DartPruner(Pruner):
    """Keeps the visual tokens with the largest keys, and those least similar to them and to the text's largest keys.

    image_pivots, text_pivots: number of pivots, the tokens with the largest key norm (L1). Image pivots are kept, text
                               pivots only choose. Text means the tokens after the image.
    compat: "released" reproduces the public code: every pivot gets floor(N (1 - ratio) / pivots) tokens, so budgets of
            192, 128 and 64 keep 188, 124 and 60, and pivots choose in the order of a CPython set of their positions in
            the sequence. Otherwise the budget is met exactly (the first pivots take one token more), image pivots
            choose before text pivots, and larger keys before smaller ones.

    Similarity is measured on hidden states after the decoder's last normalisation, as published.
    """

    image_pivots: int = 4
    text_pivots: int = 4
    compat: Literal["released"] | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"text_hidden", "text_keys", "final_norm"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("compat", None, "released")
        if self.image_pivots < 0 or self.text_pivots < 0 or self.image_pivots + self.text_pivots < 1:
            raise PruningError(
                f"image_pivots={self.image_pivots} and text_pivots={self.text_pivots} must not be negative, and "
                "there must be at least one pivot"
            )
        if self.keep_tokens is not None and self.keep_tokens < self.least_tokens:
            raise PruningError(
                f"keep_tokens={self.keep_tokens} is less than image_pivots={self.image_pivots}, which are always kept; "
                "keep more tokens or lower image_pivots"
            )

    @property
    def least_tokens(self) -> int:
        return max(1, self.image_pivots)

    def _released_count(self, tokens: int, wanted: int) -> int:
        """Tokens kept by the released rule, which does not round the product of a ratio."""
        share = wanted if self.reduction_ratio is None else tokens * (1 - self.reduction_ratio)
        pivots = self.image_pivots + self.text_pivots
        return min(tokens, self.image_pivots + pivots * int(share / pivots))

    def budget(self, tokens: int, rounding: str = "round") -> int:
        wanted = super().budget(tokens, rounding)
        return wanted if self.compat is None else self._released_count(tokens, wanted)

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        image = largest_keys(view.keys.float(), min(self.image_pivots, view.budget))
        text = largest_keys(view.text_keys.float(), self.text_pivots)
        hidden, text_hidden = view.final_norm(view.hidden).float(), view.final_norm(view.text_hidden).float()
        pivots = torch.cat([hidden[image], text_hidden[text]])
        if self.compat:
            end = view.start + len(hidden)
            pivots = pivots[set_order((image + view.start).tolist(), (text + end).tolist())]
        if len(pivots) == 0:
            raise PruningError("DART has no pivot here: no text follows the image; use image_pivots=4")
        order = torch.cat([image, farthest_from_pivots(hidden, pivots, image, self._shares(view.budget, len(pivots)))])
        return Selection.of(order, pivots=image)

    def _shares(self, budget: int, pivots: int) -> list[int]:
        each, more = divmod(budget - min(self.image_pivots, budget), pivots)
        return [each + (turn < more) for turn in range(pivots)]
