"""Centrifugal expansion: the kept set grows outwards from the pivots, near and dissimilar tokens first.

Two running quantities per token suffice: its largest similarity to the kept set and its
smallest distance to it. The modulation (1 + lambda * distance) depends on the candidate alone, so the largest
modulated similarity is the modulated largest similarity. A step that keeps b tokens costs O(N * b * channels), and
nothing needs an N x N matrix.

Although it is greedy, the expansion does not update all N tokens after every token it keeps. It judges candidates in
the order in which a round ranked them, so only the next few need exact values (`_Window`). What a window keeps then
updates all N tokens at once, by one matrix product, where one token at a time would stream the features from memory
repeatedly. A token batch of 1 therefore costs as much as one of 16.

Products run on the features' device. Everything else runs on the host in NumPy: many operations on few numbers, right
after layers that filled the processor's caches with other data, so that the cost of each call dominates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

WINDOW = 64  # candidates to judge before updating all N tokens


class Expansion(NamedTuple):
    """The expansion's result, which becomes a Selection.

    indices: long [R], the kept tokens, ascending. order: long [R], the same in order of selection, pivots first.
    nearest: long [N], position in `indices` of the kept token that each token is most similar to; among equally
    similar ones, the first selected. similarity: float [N], the un-modulated similarity to it.
    """

    indices: Tensor
    order: Tensor
    nearest: Tensor
    similarity: Tensor


class _Distances:
    """Coordinates of N tokens: [N, 2] in units of the diagonal; for a video [N, 3] with the frame in column 0."""

    def __init__(self, coords: np.ndarray, spatial_weight: float) -> None:
        *time, self._x, self._y = coords.T.copy()
        self._spatial_weight = spatial_weight
        self._frames = time[0] if time and spatial_weight else None

    @property
    def framed(self) -> bool:
        """Whether a modulation may be infinite, which happens between frames of a video."""
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
        """1 + lambda * distance, infinite between frames. The smallest distance gives exactly the smallest value."""
        modulation = np.sqrt(squares)
        modulation *= self._spatial_weight
        modulation += 1
        return modulation


class _KeptSet:
    """The tokens kept so far, and the running quantities of all N tokens.

    similarity: [N], the largest similarity to a kept token. nearest: [N], that token. modulation: [N], 1 + lambda times
    the smallest distance to a kept token. free: [N], whether the token is not kept yet.
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
        """Keeps `tokens` [b], in this order."""
        similarity, first = self._closest(tokens)
        np.copyto(self.nearest, tokens[first], where=similarity > self.similarity)
        np.maximum(self.similarity, similarity, out=self.similarity)
        np.minimum(self.modulation, self._modulation(tokens), out=self.modulation)
        self.free[tokens] = False
        self.order.append(tokens)
        self.size += len(tokens)

    def _closest(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[N], each token's largest similarity to one of `tokens` [b]; [N], the first of those with that similarity."""
        similarity, first = (self._features @ self._rows(tokens).T).max(dim=1)
        return similarity.cpu().numpy(), first.cpu().numpy()

    def _modulation(self, tokens: np.ndarray) -> np.ndarray:
        """[N], 1 + lambda times each token's smallest distance to one of `tokens` [b]."""
        return self._distances.modulation(self._distances.squares(tokens, slice(None)).min(axis=0))

    def redundancy(self, tokens: np.ndarray) -> np.ndarray:
        """[n], max over kept j of Mt_ij = M_ij (1 + lambda dbar_i) for each of `tokens` [n]; keep what is low."""
        return _redundancy(self.similarity[tokens], self.modulation[tokens], self._distances.framed)

    def possible(self, tokens: np.ndarray, threshold: float) -> np.ndarray:
        """Those of `tokens` [n] that may still be below the threshold after this round's additions.

        Similarity can only rise, and modulation increases it: a token that is too similar already, at any distance, is
        out.
        """
        return tokens[self.similarity[tokens] < max(threshold, 0)]  # modulation lowers negative values

    def window(self, tokens: np.ndarray) -> _Window:
        """A window of the candidates `tokens` [w], in the order in which to judge them."""
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
    """Modulated similarity. While a token's frame has no kept token, content alone counts."""
    return similarity * (np.where(np.isinf(modulation), 1, modulation) if framed else modulation)


@dataclass
class _Window:
    """A few candidates whose values stay exact while they are judged.

    similarity, modulation: [w], to the kept set. gram, modulations: [w, w], the same among the candidates. framed:
    whether a modulation may be infinite.
    """

    similarity: np.ndarray
    modulation: np.ndarray
    gram: np.ndarray
    modulations: np.ndarray
    framed: bool

    def judge(self, threshold: float, token_batch: int, room: int) -> list[int]:
        """Judges the candidates; returns the positions of those kept, at most `room`, in order of selection.

        Between two additions no score changes, so it skips all batches up to the next candidate below the threshold at
        once: the number of steps is the number of batches kept, whatever the batch size. It does not update candidates
        already judged.
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
            for position in [start + first + index for index in added]:
                kept.append(position)
                similarity = np.maximum(similarity, self.gram[position, start + end :])
                modulation = np.minimum(modulation, self.modulations[position, start + end :])
            start += end
        return kept


def _accept(scores: np.ndarray, below: np.ndarray, room: int) -> list[int]:
    """Positions of a batch's tokens below the threshold; if they exceed the budget, of the `room` lowest scores."""
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
    """Grows from `pivots` to `budget` tokens, in rounds of rising threshold.

    features: [N, q] unit rows. coords: [N, 2], coordinates divided by the diagonal, so that distances are dbar; for a
    video [N, 3] with the frame in column 0, and distances are measured within a frame.
    stop_when_stuck: stop below budget when a round adds nothing, as the released code does. Otherwise exactly
    `budget` tokens are kept. Raises ValueError if NaN or infinity in the features makes that impossible.
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
            # Nothing changes until the threshold passes the lowest score, so skip the rounds that cannot add anything.
            rounds = max(rounds, int((lowest - threshold) / threshold_step))
    order = np.concatenate(kept.order)
    kept.nearest[order] = order  # rounding may make a duplicate more similar to a kept token than the token itself
    indices = np.sort(order)
    found = indices, order, np.searchsorted(indices, kept.nearest), kept.similarity
    return Expansion(*(torch.from_numpy(array).to(features.device) for array in found))


def _grow_one_round(kept: _KeptSet, budget: int, threshold: float, token_batch: int) -> float:
    """Runs one round: judges candidates in order of redundancy, in batches, against the growing kept set.

    Each window starts with the batch of the next candidate below the threshold, and so keeps at least one. No rule is
    needed to end a round whose first batch adds nothing, because that batch has the lowest scores. Returns the lowest
    score at the round's start. Ties go to the lowest index.
    """
    candidates = kept.free.nonzero()[0]
    scores = kept.redundancy(candidates)
    ranking = scores.argsort(kind="stable")
    candidates, lowest = candidates[ranking], float(scores[ranking[0]])
    width = math.ceil(WINDOW / token_batch) * token_batch  # whole batches
    while kept.size < budget:
        if token_batch == 1:  # larger batches cover all candidates, because it matters which ones share a batch
            candidates = kept.possible(candidates, threshold)
        below = (kept.redundancy(candidates) < threshold).nonzero()[0]
        if not len(below):
            break
        start = int(below[0]) // token_batch * token_batch
        window = candidates[start : start + width]
        kept.add(window[kept.window(window).judge(threshold, token_batch, budget - kept.size)])
        candidates = candidates[start + width :]
    return lowest
