"""Centrifugal expansion: the kept set grows outwards from the pivots, near and dissimilar tokens first.

Two numbers per token are enough, and both are running quantities: its largest similarity to the kept set and its
smallest distance to it. The modulation (1 + lambda * distance) depends on the candidate alone, so the largest
modulated similarity is the modulated largest similarity. A step that keeps b tokens costs O(N * b * channels), and
nothing needs an N x N matrix.

Greedy as it is, the expansion need not look at all N tokens after every token it keeps. Candidates are judged in the
order that a round ranked them in, so it is enough to keep the next few up to date (`_Window`); what a window keeps is
then shown to all N tokens at once, by a product of matrices where one token at a time would stream the features from
memory again and again. A token batch of 1 so costs what one of 16 does.

Products are made where the features are; all else is on the host, in NumPy: it is many operations on few numbers, right
after layers that have filled the processor's caches with other things, so that what counts is the cost of a call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

WINDOW = 64  # candidates that are judged before all N tokens see what was kept


class Expansion(NamedTuple):
    """What a Selection begins with.

    indices: long [R], the kept tokens, ascending. order: long [R], the same in order of selection, pivots first.
    nearest: long [N], position in `indices` of the kept token that each token is most similar to; of equally similar
    ones the first selected. similarity: float [N], the un-modulated similarity to it.
    """

    indices: Tensor
    order: Tensor
    nearest: Tensor
    similarity: Tensor


class _Distances:
    """Where the N tokens are: [N, 2] in units of the diagonal or, of a video, [N, 3] with the frame in column 0."""

    def __init__(self, coords: np.ndarray, spatial_weight: float) -> None:
        *time, self._x, self._y = coords.T.copy()
        self._spatial_weight = spatial_weight
        self._frames = time[0] if time and spatial_weight else None

    @property
    def framed(self) -> bool:
        """Whether a modulation may be infinite, between frames of a video."""
        return self._frames is not None

    def squares(self, tokens: np.ndarray, others: np.ndarray | slice) -> np.ndarray:
        """[tokens, others]: squared distances; infinite between frames."""
        squares = self._x[tokens, None] - self._x[others]
        squares *= squares
        across = self._y[tokens, None] - self._y[others]
        across *= across
        squares += across
        if self._frames is not None:
            squares[self._frames[tokens, None] != self._frames[others]] = np.inf
        return squares

    def modulation(self, squares: np.ndarray) -> np.ndarray:
        """1 + lambda * distance, infinite where that is. Of the smallest distance it is the smallest, exactly."""
        modulation = np.sqrt(squares)
        modulation *= self._spatial_weight
        modulation += 1
        return modulation


class _KeptSet:
    """The tokens kept so far, and what each of the N tokens has to do with them.

    similarity: [N], the largest to a kept token; nearest: [N], that token. modulation: [N], 1 + lambda times the
    smallest distance to a kept token. free: [N], whether the token is not kept itself.
    """

    def __init__(self, features: Tensor, coords: Tensor, pivots: Tensor, spatial_weight: float) -> None:
        self._features = features  # [N, q], unit rows
        self._distances = _Distances(coords.cpu().numpy(), spatial_weight)
        tokens = pivots.cpu().numpy()
        self.similarity, first = self._closest(tokens)
        self.nearest = tokens[first]
        self.modulation = self._modulation(tokens)
        self.free = np.ones(len(features), bool)
        self.free[tokens] = False
        self.order = [tokens]
        self.size = len(tokens)

    def add(self, tokens: np.ndarray) -> None:
        """Keep `tokens` [b], in this order."""
        similarity, first = self._closest(tokens)
        np.copyto(self.nearest, tokens[first], where=similarity > self.similarity)
        np.maximum(self.similarity, similarity, out=self.similarity)
        np.minimum(self.modulation, self._modulation(tokens), out=self.modulation)
        self.free[tokens] = False
        self.order.append(tokens)
        self.size += len(tokens)

    def _closest(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[N], each of the N tokens' largest similarity to one of `tokens` [b]; [N], the first of which that is."""
        similarity, first = (self._features @ self._rows(tokens).T).max(dim=1)
        return similarity.cpu().numpy(), first.cpu().numpy()

    def _modulation(self, tokens: np.ndarray) -> np.ndarray:
        """[N], 1 + lambda times each of the N tokens' smallest distance to one of `tokens` [b]."""
        return self._distances.modulation(self._distances.squares(tokens, slice(None)).min(axis=0))

    def redundancy(self, tokens: np.ndarray) -> np.ndarray:
        """[n], max over kept j of Mt_ij = M_ij (1 + lambda dbar_i) for each of `tokens` [n]: low is worth keeping."""
        return _redundancy(self.similarity[tokens], self.modulation[tokens], self._distances.framed)

    def possible(self, tokens: np.ndarray, threshold: float) -> np.ndarray:
        """Those of `tokens` [n] that may be below the threshold when all that this round will keep is kept.

        Similarity can only rise, and modulation adds to it: what is too similar before, whatever its distance, is out.
        """
        return tokens[self.similarity[tokens] < max(threshold, 0)]  # modulation takes from what is below 0

    def window(self, tokens: np.ndarray) -> _Window:
        """The candidates `tokens` [w], in the order in which they are to be judged."""
        rows = self._rows(tokens)
        return _Window(
            similarity=self.similarity[tokens],
            modulation=self.modulation[tokens],
            gram=(rows @ rows.T).cpu().numpy(),
            modulations=self._distances.modulation(self._distances.squares(tokens, tokens)),
            framed=self._distances.framed,
        )

    def _rows(self, tokens: np.ndarray) -> Tensor:
        return self._features.index_select(0, torch.from_numpy(tokens).to(self._features.device))


def _redundancy(similarity: np.ndarray, modulation: np.ndarray, framed: bool) -> np.ndarray:
    """Modulated similarity. Where nothing is kept in a token's frame yet, content alone counts."""
    return similarity * (np.where(np.isinf(modulation), 1, modulation) if framed else modulation)


@dataclass
class _Window:
    """A few candidates, kept up to date among themselves while they are judged.

    similarity, modulation: [w], to the kept set. gram, modulations: [w, w], the same between each other. framed:
    whether a modulation may be infinite.
    """

    similarity: np.ndarray
    modulation: np.ndarray
    gram: np.ndarray
    modulations: np.ndarray
    framed: bool

    def judge(self, threshold: float, token_batch: int, room: int) -> list[int]:
        """Positions of the tokens kept, at most `room`, in order of selection.

        Between two additions no score changes, so all batches up to the next candidate below the threshold are passed
        over at once: this costs as many steps as it keeps batches, whatever the batch size. Nothing is kept up to date
        of candidates that have been judged.
        """
        kept: list[int] = []
        similarity, modulation = self.similarity, self.modulation
        start = 0
        while len(kept) < room and len(similarity):
            scores = _redundancy(similarity, modulation, self.framed)
            below = scores < threshold
            first = int(below.argmax())
            if not below[first]:
                break
            first -= first % token_batch
            end = first + token_batch
            added = _accept(scores[first:end], below[first:end], room - len(kept))
            similarity, modulation = similarity[end:], modulation[end:]
            for position in [start + first + place for place in added]:
                kept.append(position)
                similarity = np.maximum(similarity, self.gram[position, start + end :])
                modulation = np.minimum(modulation, self.modulations[position, start + end :])
            start += end
        return kept


def _accept(scores: np.ndarray, below: np.ndarray, room: int) -> list[int]:
    """Positions of a batch's tokens below the threshold; if they overflow the budget, of its `room` lowest scores."""
    if len(scores) == 1:  # the usual case, and the innermost loop
        return [0]
    accepted: list[int] = below.nonzero()[0].tolist()
    return accepted if len(accepted) <= room else scores.argsort(kind="stable")[:room].tolist()


def expand(
    features: Tensor,
    coords: Tensor,
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

    features: [N, q] unit rows. coords: [N, 2], coordinates divided by the diagonal, so that distances are dbar; of a
    video [N, 3], with what tells frames apart in column 0: distances are then taken within a frame.
    stop_when_stuck: end under budget when a round adds nothing, as the released code does. Otherwise exactly
    `budget` tokens are kept. Raises ValueError if that is impossible because the features hold NaN or infinity.
    """
    kept = _KeptSet(features, coords, pivots, spatial_weight)
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
    order = np.concatenate(kept.order)
    kept.nearest[order] = order  # rounding may make a duplicate look closer to a kept token than the token itself
    indices = np.sort(order)
    found = indices, order, np.searchsorted(indices, kept.nearest), kept.similarity
    return Expansion(*(torch.from_numpy(array).to(features.device) for array in found))


def _grow_one_round(kept: _KeptSet, budget: int, threshold: float, token_batch: int) -> float:
    """One round: candidates in order of redundancy, judged in batches against the kept set as it grows.

    Each window starts with the batch of the next candidate below the threshold, and so keeps at least one. That a
    round ends when its first batch adds nothing needs no rule: that batch has the lowest scores. Returns the lowest
    score at the round's start. Ties are broken by the lowest index.
    """
    candidates = kept.free.nonzero()[0]
    scores = kept.redundancy(candidates)
    ranking = scores.argsort(kind="stable")
    candidates, lowest = candidates[ranking], float(scores[ranking[0]])
    width = math.ceil(WINDOW / token_batch) * token_batch  # whole batches
    while kept.size < budget:
        if token_batch == 1:  # larger batches are of all candidates: who shares one with whom matters
            candidates = kept.possible(candidates, threshold)
        below = (kept.redundancy(candidates) < threshold).nonzero()[0]
        if not len(below):
            break
        start = int(below[0]) // token_batch * token_batch
        window = candidates[start : start + width]
        kept.add(window[kept.window(window).judge(threshold, token_batch, budget - kept.size)])
        candidates = candidates[start + width :]
    return lowest
