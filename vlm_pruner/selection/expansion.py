"""Centrifugal expansion: the kept set grows outwards from the pivots, near and dissimilar tokens first.

Two numbers per token are enough, and both are running quantities: its largest similarity to the kept set and its
smallest distance to it. The modulation (1 + lambda * distance) depends on the candidate alone, so the largest
modulated similarity is the modulated largest similarity. A step that keeps b tokens costs O(N * b * channels), and
nothing needs an N x N matrix.

Greedy as it is, the expansion need not look at all N tokens after every token it keeps. Candidates are judged in the
order that a round ranked them in, so it is enough to keep the next few up to date (`_Window`); what a window keeps is
then shown to all N tokens at once, by a product of matrices where one token at a time would stream the features from
memory again and again. A token batch of 1 so costs what one of 16 does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WINDOW = 64  # candidates that are judged before all N tokens see what was kept


@dataclass(frozen=True)
class Expansion:
    """order: long [R], kept tokens in order of selection, pivots first.
    nearest: long [N], the kept token that each token is most similar to; of equally similar ones the first selected.
    similarity: float [N], the un-modulated similarity to it.
    """

    order: Tensor
    nearest: Tensor
    similarity: Tensor


@dataclass(frozen=True)
class _Places:
    """Where tokens are. points: [n, 2], in units of the diagonal. frames: [n], or None if all are in one picture."""

    points: Tensor
    frames: Tensor | None

    @classmethod
    def of(cls, places: Tensor) -> _Places:
        """From [n, 2] or, of a video, [n, 3]."""
        return cls(places[:, -2:].contiguous(), places[:, 0] if places.shape[1] == 3 else None)

    def __getitem__(self, tokens: Tensor) -> _Places:
        return _Places(self.points[tokens], None if self.frames is None else self.frames[tokens])

    def distances(self, others: _Places) -> Tensor:
        """[others, n]: how far each of the others is from each token; infinite between frames."""
        apart = torch.cdist(others.points, self.points, compute_mode="donot_use_mm_for_euclid_dist")
        if self.frames is None or others.frames is None:
            return apart
        return apart.where(others.frames[:, None] == self.frames, torch.inf)


class _KeptSet:
    """The tokens kept so far, with the running similarity and distance of all N tokens to them."""

    def __init__(self, features: Tensor, places: Tensor, spatial_weight: float) -> None:
        self.features = features  # [N, q], unit rows
        self.places = _Places.of(places)
        self.spatial_weight = spatial_weight
        n = features.shape[0]
        self.similarity = features.new_full((n,), -torch.inf)
        self.distance = features.new_full((n,), torch.inf)
        self.nearest = torch.zeros(n, dtype=torch.long, device=features.device)
        self.free = torch.ones(n, dtype=torch.bool, device=features.device)
        self.order: list[Tensor] = []
        self.size = 0

    def add(self, tokens: Tensor) -> None:
        """Keep `tokens` [b], in this order."""
        similarity, first = (self.features[tokens] @ self.features.T).max(dim=0)
        self.nearest = torch.where(similarity > self.similarity, tokens[first], self.nearest)
        torch.maximum(self.similarity, similarity, out=self.similarity)
        torch.minimum(self.distance, self.places.distances(self.places[tokens]).amin(dim=0), out=self.distance)
        self.free[tokens] = False
        self.order.append(tokens)
        self.size += tokens.numel()

    def redundancy(self, tokens: Tensor) -> Tensor:
        """[n], max over kept j of Mt_ij = M_ij (1 + lambda dbar_i) for each of `tokens` [n]: low is worth keeping."""
        distance = self.distance[tokens]
        if self.places.frames is not None:  # nothing kept in the frame yet: content alone counts
            distance = distance.where(distance.isfinite(), 0)
        return self.similarity[tokens] * (1 + self.spatial_weight * distance)

    def possible(self, tokens: Tensor, threshold: float) -> Tensor:
        """Those of `tokens` [n] that may be below the threshold when all that this round will keep is kept.

        Similarity can only rise, and modulation adds to it: what is too similar before, whatever its distance, is out.
        """
        return tokens[self.similarity[tokens] < max(threshold, 0)]  # modulation takes from what is below 0

    def window(self, tokens: Tensor) -> _Window:
        """The candidates `tokens` [w], in the order in which they are to be judged."""
        features, places = self.features[tokens], self.places[tokens]
        return _Window(
            similarity=self.similarity[tokens].cpu().numpy(),
            spread=_spread(self.distance[tokens].cpu().numpy(), self.spatial_weight),
            gram=(features @ features.T).cpu().numpy(),
            spreads=_spread(places.distances(places).cpu().numpy(), self.spatial_weight),
            framed=places.frames is not None,
        )


def _spread(distance: np.ndarray, spatial_weight: float) -> np.ndarray:
    """1 + lambda * distance, infinite where the distance is. Of the smallest distance it is the smallest, exactly."""
    with np.errstate(invalid="ignore"):  # 0 * infinity
        return np.where(np.isinf(distance), np.inf, 1 + spatial_weight * distance)


@dataclass
class _Window:
    """A few candidates, kept up to date among themselves while they are judged.

    similarity: [w], the largest to the kept set; spread: [w], 1 + lambda times the smallest distance to it. gram,
    spreads: [w, w], the same between each other. framed: whether a spread may be infinite, between frames of a video.
    On the host, in NumPy: the arrays are so small that what counts is the cost of a call.
    """

    similarity: np.ndarray
    spread: np.ndarray
    gram: np.ndarray
    spreads: np.ndarray
    framed: bool

    def judge(self, threshold: float, token_batch: int, room: int) -> list[int]:
        """Positions of the tokens kept, at most `room`, in order of selection.

        Between two additions no score changes, so all batches up to the next candidate below the threshold are passed
        over at once: this costs as many steps as it keeps batches, whatever the batch size.
        """
        kept: list[int] = []
        start = 0
        while len(kept) < room and start < len(self.similarity):
            scores = self._redundancy(start)
            below = scores < threshold
            first = int(below.argmax())
            if not below[first]:
                break
            first -= first % token_batch
            batch = slice(first, first + token_batch)
            added = [start + first + place for place in _accept(scores[batch], below[batch], room - len(kept))]
            self._add(added)
            kept += added
            start += first + token_batch
        return kept

    def _redundancy(self, start: int) -> np.ndarray:
        """As _KeptSet.redundancy, for the candidates from `start` on."""
        spread = self.spread[start:]
        if self.framed:
            spread = np.where(np.isinf(spread), 1, spread)
        return self.similarity[start:] * spread

    def _add(self, positions: list[int]) -> None:
        for position in positions:
            np.maximum(self.similarity, self.gram[position], out=self.similarity)
            np.minimum(self.spread, self.spreads[position], out=self.spread)


def _accept(scores: np.ndarray, below: np.ndarray, room: int) -> list[int]:
    """Positions of a batch's tokens below the threshold; if they overflow the budget, of its `room` lowest scores."""
    if len(scores) == 1:  # the usual case, and the innermost loop
        return [0]
    accepted: list[int] = below.nonzero()[0].tolist()
    return accepted if len(accepted) <= room else scores.argsort(kind="stable")[:room].tolist()


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
    order = torch.cat(kept.order)
    nearest = kept.nearest
    nearest[order] = order  # rounding may make a duplicate look closer to a kept token than the token itself
    return Expansion(order=order, nearest=nearest, similarity=kept.similarity)


def _grow_one_round(kept: _KeptSet, budget: int, threshold: float, token_batch: int) -> float:
    """One round: candidates in order of redundancy, judged in batches against the kept set as it grows.

    Each window starts with the batch of the next candidate below the threshold, and so keeps at least one. That a
    round ends when its first batch adds nothing needs no rule: that batch has the lowest scores. Returns the lowest
    score at the round's start. Ties are broken by the lowest index.
    """
    candidates = kept.free.nonzero().squeeze(1)
    scores, ranking = kept.redundancy(candidates).sort(stable=True)
    candidates = candidates[ranking]
    lowest = float(scores[0])
    width = math.ceil(WINDOW / token_batch) * token_batch  # whole batches
    while kept.size < budget:
        if token_batch == 1:  # larger batches are of all candidates: who shares one with whom matters
            candidates = kept.possible(candidates, threshold)
        below = (kept.redundancy(candidates) < threshold).nonzero()
        if below.numel() == 0:
            break
        start = int(below[0]) // token_batch * token_batch
        window = candidates[start : start + width]
        kept.add(window[kept.window(window).judge(threshold, token_batch, budget - kept.size)])
        candidates = candidates[start + width :]
    return lowest
