"""Centrifugal expansion: the kept set grows outwards from the pivots, near and dissimilar tokens first.

Two numbers per token are enough, and both are running quantities: its largest similarity to the kept set and its
smallest distance to it. The modulation (1 + lambda * distance) depends on the candidate alone, so the largest
modulated similarity is the modulated largest similarity. A step that keeps b tokens costs O(N * b * channels), and
nothing needs an N x N matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Expansion:
    """order: long [R], kept tokens in order of selection, pivots first.
    nearest: long [N], the kept token that each token is most similar to; of equally similar ones the first selected.
    similarity: float [N], the un-modulated similarity to it.
    """

    order: Tensor
    nearest: Tensor
    similarity: Tensor


class _KeptSet:
    """The tokens kept so far, with the running similarity and distance of all N tokens to them."""

    def __init__(self, features: Tensor, places: Tensor, spatial_weight: float) -> None:
        self.features = features  # [N, q], unit rows
        self.frames = places[:, 0] if places.shape[1] == 3 else None
        self.places = places[:, -2:]  # [N, 2], coordinates in units of the diagonal
        self.spatial_weight = spatial_weight
        n = features.shape[0]
        self.similarity = features.new_full((n,), -torch.inf)
        self.distance = places.new_full((n,), torch.inf)
        self.nearest = torch.zeros(n, dtype=torch.long, device=features.device)
        self.free = torch.ones(n, dtype=torch.bool, device=features.device)
        self.order: list[Tensor] = []
        self.size = 0

    def add(self, tokens: Tensor) -> None:
        """Keep `tokens` [b], in this order."""
        similarity, first = (self.features @ self.features[tokens].T).max(dim=1)
        distance = torch.cdist(self.places, self.places[tokens], compute_mode="donot_use_mm_for_euclid_dist")
        self.nearest = torch.where(similarity > self.similarity, tokens[first], self.nearest)
        self.similarity = torch.maximum(self.similarity, similarity)
        if self.frames is not None:
            distance = distance.where(self.frames[:, None] == self.frames[tokens], torch.inf)
        self.distance = torch.minimum(self.distance, distance.amin(dim=1))
        self.free[tokens] = False
        self.order.append(tokens)
        self.size += tokens.numel()

    def redundancy(self) -> Tensor:
        """[N], max over kept j of Mt_ij = M_ij (1 + lambda dbar_i), the modulated similarity: low is worth keeping."""
        distance = self.distance
        if self.frames is not None:  # nothing kept in the frame yet: content alone counts
            distance = distance.where(distance.isfinite(), 0)
        return self.similarity * (1 + self.spatial_weight * distance)


def expand(
    features: Tensor,
    places: Tensor,
    pivots: Tensor,
    budget: int,
    *,
    threshold: float,
    threshold_step: float,
    token_batch: int,
    spatial_weight: float,
    stop_when_stuck: bool = False,
) -> Expansion:
    """Grow from `pivots` to `budget` tokens, in rounds of rising threshold.

    features: [N, q] unit rows. places: [N, 2], coordinates divided by the diagonal, so that distances are dbar; of a
    video [N, 3], with what tells frames apart in column 0: distances are then taken within a frame.
    stop_when_stuck: end under budget when a round adds nothing, as the released code does. Otherwise exactly
    `budget` tokens are kept. Raises ValueError if that is impossible because the features hold NaN or infinity.
    """
    kept = _KeptSet(features, places, spatial_weight)
    kept.add(pivots)
    rounds = 0
    while kept.size < budget:
        before = kept.size
        lowest = _grow_one_round(kept, budget, threshold + rounds * threshold_step, token_batch)
        rounds += 1
        if kept.size == before:
            if stop_when_stuck:
                break
            if not math.isfinite(lowest):
                raise ValueError("cannot select visual tokens: their hidden states or keys contain NaN or infinity")
            # Nothing changes until the threshold passes the lowest score: skip the rounds that cannot add anything.
            rounds = max(rounds, int((lowest - threshold) / threshold_step))
    similarity = kept.similarity
    nearest = kept.nearest
    order = torch.cat(kept.order)
    nearest[order] = order  # rounding may make a duplicate look closer to a kept token than the token itself
    return Expansion(order=order, nearest=nearest, similarity=similarity)


def _grow_one_round(kept: _KeptSet, budget: int, threshold: float, token_batch: int) -> float:
    """One round: candidates in order of redundancy, judged in batches against the kept set as it grows.

    Between two additions no score changes, so all batches up to the next candidate below the threshold are passed
    over at once: a round costs as many steps as it keeps batches, whatever the batch size. That a round ends when
    its first batch adds nothing needs no rule: that batch has the lowest scores. Returns the lowest score at the
    round's start. Ties are broken by the lowest index.
    """
    candidates = kept.free.nonzero().squeeze(1)
    ranked, order = kept.redundancy()[candidates].sort(stable=True)
    candidates = candidates[order]
    lowest = float(ranked[0])
    start, scores = 0, ranked
    while kept.size < budget:
        below = (scores < threshold).nonzero()
        if below.numel() == 0:
            break
        batch_start = start + int(below[0]) // token_batch * token_batch
        batch = slice(batch_start - start, batch_start - start + token_batch)
        kept.add(_accept(candidates[batch], scores[batch], threshold, budget - kept.size))
        start = batch_start + token_batch
        candidates = candidates[batch.stop :]
        scores = kept.redundancy()[candidates]
    return lowest


def _accept(tokens: Tensor, scores: Tensor, threshold: float, room: int) -> Tensor:
    """The batch's tokens below the threshold; if they overflow the budget, the `room` lowest scores of the batch."""
    accepted = tokens[scores < threshold]
    if accepted.numel() <= room:
        return accepted
    return tokens[scores.argsort(stable=True)[:room]]
