"""Ideas for choosing better than exact greedy VLM-Pruner at equal tokens. Experimental: none of them is a method.

Those that proved better became methods, in vlm_pruner/methods; docs/ideas.md lists the others. `benchmarks/ideas.py`
runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.methods import CentrifugalPruner, Selection, View
from vlm_pruner.selection import choose_pivots, screen_channels
from vlm_pruner.selection.diversity import maximise_determinant


def screen(hidden: Tensor, channels: int) -> Tensor:
    """[N, q]: the channels of highest variance, not normalised."""
    spread = hidden.var(dim=0)
    return hidden[:, spread.argsort(descending=True, stable=True)[:channels]]


def finish(order: Tensor, similarity: Tensor) -> Selection:
    """Merges each dropped token into the most similar kept one. similarity: [N, R], to the tokens `order`."""
    best, place = similarity.max(dim=1)
    indices = order.sort().values
    nearest = order[place]
    nearest[order] = order
    return Selection(indices, order, torch.searchsorted(indices, nearest), best)


@dataclass(frozen=True)
class Candidate(CentrifugalPruner):
    """A different choice with VLM-Pruner's aggregation. centred: compare states minus the picture's mean state."""

    centred: bool = False

    def features(self, hidden: Tensor) -> Tensor:
        hidden = hidden.float()
        return normalize(screen(hidden - hidden.mean(dim=0) if self.centred else hidden, self.channels), dim=1)

    def choose_order(self, features: Tensor, view: View) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        features = self.features(view.hidden)
        order = self.choose_order(features, view)
        plain = screen_channels(view.hidden.float(), self.channels)
        return finish(order, plain @ plain[order].T)


def farthest(
    features: Tensor, places: Tensor, start: Tensor, budget: int, weights: list[float], bonus: Tensor | None = None
) -> Tensor:
    """Order [budget]: each step takes the least redundant token, at that step's spatial weight."""
    order = list(start)
    similarity = (features @ features[start].T).amax(dim=1)
    distance = torch.cdist(places, places[start]).amin(dim=1)
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    taken[start] = True
    for step in range(len(start), budget):
        score = similarity * (1 + weights[step] * distance)
        if bonus is not None:
            score = score - bonus
        token = score.masked_fill(taken, torch.inf).argmin()
        taken[token] = True
        order.append(token)
        similarity = torch.maximum(similarity, features @ features[token])
        distance = torch.minimum(distance, (places - places[token]).norm(dim=1))
    return torch.stack(order)


@dataclass(frozen=True)
class Farthest(Candidate):
    """Takes the least redundant token each time, without rounds or threshold.

    spatial_weight: at the first token; last_weight: at the last, linear in between. saliency: how much a token's
    distance from the mean state (0 to 1 over the picture) lowers its redundancy.
    """

    last_weight: float | None = None
    saliency: float = 0.0

    def choose_order(self, features: Tensor, view: View) -> Tensor:
        last = self.spatial_weight if self.last_weight is None else self.last_weight
        weights = torch.linspace(self.spatial_weight, last, view.budget, device="cpu").tolist()
        pivots = choose_pivots(view.keys.float(), min(self.pivots, view.budget))
        bonus = self.saliency * salience(view.hidden.float()) if self.saliency else None
        return farthest(features, view.layout.normalised(features), pivots, view.budget, weights, bonus)


def salience(hidden: Tensor) -> Tensor:
    """[N]: distance from the mean state, 0 to 1 over the picture."""
    apart = (hidden - hidden.mean(dim=0)).norm(dim=1)
    low, high = apart.aminmax()
    return (apart - low) / (high - low)


@dataclass(frozen=True)
class Coverage(Candidate):
    """Facility location: each step takes the token that most increases the sum of all tokens' maximum similarity."""

    power: float = 1.0

    def choose_order(self, features: Tensor, view: View) -> Tensor:
        kernel = (features @ features.T).clamp(min=0) ** self.power
        covered = kernel.new_zeros(len(kernel))
        order = []
        for _ in range(view.budget):
            gain = (kernel - covered[:, None]).clamp(min=0).sum(dim=0)
            gain[torch.tensor(order, dtype=torch.long, device=features.device)] = -1
            token = int(gain.argmax())
            order.append(token)
            covered = torch.maximum(covered, kernel[:, token])
        return torch.tensor(order, device=kernel.device)


@dataclass(frozen=True)
class Residual(Candidate):
    """Each step takes the token whose centred state the kept ones explain least (pivoted QR)."""

    damp: float = 1.0  # 1: remove all that a kept token explains; below 1: leave part of it
    flatten: float = 0.0  # divide states by their norm to this power; 1: only the direction counts
    seeded: bool = False  # whether the pivots come first

    def choose_order(self, features: Tensor, view: View) -> Tensor:
        hidden = view.hidden.float()
        rest = screen(hidden - hidden.mean(dim=0), self.channels)
        rest = rest / rest.norm(dim=1, keepdim=True).clamp(min=1e-6) ** self.flatten
        order: list[int] = (
            choose_pivots(view.keys.float(), min(self.pivots, view.budget)).tolist() if self.seeded else []
        )
        for token in order:
            direction = normalize(rest[token], dim=0)
            rest = rest - self.damp * (rest @ direction)[:, None] * direction
        for _ in range(view.budget - len(order)):
            size = rest.square().sum(dim=1)
            size[torch.tensor(order, dtype=torch.long, device=features.device)] = -1
            token = int(size.argmax())
            order.append(token)
            direction = normalize(rest[token], dim=0)
            rest = rest - self.damp * (rest @ direction)[:, None] * direction
        return torch.tensor(order, device=rest.device)


@dataclass(frozen=True)
class Determinant(Candidate):
    """Greedy determinantal choice, with tokens weighted by their saliency to the power `power`."""

    power: float = 0.0

    def choose_order(self, features: Tensor, view: View) -> Tensor:
        weight = (salience(view.hidden.float()) + 0.05) ** self.power
        return maximise_determinant(features, weight, view.budget)


@dataclass(frozen=True)
class Packing(Candidate):
    """Fits the threshold to the picture: the lowest at which one pass over the candidates still fills the budget."""

    saliency: float = 0.0

    def choose_order(self, features: Tensor, view: View) -> Tensor:
        return _fitted(self, features, view, self.saliency * salience(view.hidden.float()))


def _fitted(method: Candidate, features: Tensor, view: View, bonus: Tensor) -> Tensor:
    """The order at the lowest threshold, found by halving, at which one pass still fills the budget."""
    places = view.layout.normalised(features)
    pivots = choose_pivots(view.keys.float(), min(method.pivots, view.budget))
    low, high, best = -1.5, 1.5, pivots
    for _ in range(12):
        middle = (low + high) / 2
        one_pass = _first_round(features, places, pivots, view.budget, middle, method.spatial_weight, bonus)
        if len(one_pass) == view.budget:
            best, high = one_pass, middle
        else:
            low = middle
    return best


def _first_round(
    features: Tensor, places: Tensor, pivots: Tensor, budget: int, threshold: float, weight: float, bonus: Tensor
) -> Tensor:
    """Visits candidates once, least redundant first; each joins if its redundancy is then below the threshold."""
    order = list(pivots)
    similarity = (features @ features[pivots].T).amax(dim=1)
    distance = torch.cdist(places, places[pivots]).amin(dim=1)
    ranked = (similarity * (1 + weight * distance) - bonus).argsort(stable=True)
    taken = set(pivots.tolist())
    for token in ranked.tolist():
        if len(order) == budget:
            break
        if token not in taken and similarity[token] * (1 + weight * distance[token]) - bonus[token] < threshold:
            order.append(torch.tensor(token, device=pivots.device))
            similarity = torch.maximum(similarity, features @ features[token])
            distance = torch.minimum(distance, (places - places[token]).norm(dim=1))
    return torch.stack(order)


@dataclass(frozen=True)
class Aggregation(CentrifugalPruner):
    """VLM-Pruner's choice with a different aggregation.

    power: weights are similarity to this power. cutoff: tokens less similar than this are not merged.
    reach: nor are those farther away than this many tokens (0: any). adaptive: a kept token counts as one of its group,
    with weight 1, in place of self_weight.
    """

    power: float = 1.0
    cutoff: float = 0.0
    reach: float = 0.0
    adaptive: bool = False

    def choose(self, view: View) -> Selection:
        selection = super().choose(view)
        assert selection.nearest is not None and selection.similarity is not None
        weight = selection.similarity.clamp(min=0)
        weight = weight.where(weight >= self.cutoff, 0) ** self.power
        if self.reach:
            coords = view.layout.coords.to(weight.device)
            apart = (coords - coords[selection.indices[selection.nearest]]).norm(dim=1)
            weight = weight.where(apart <= self.reach, 0)
        return Selection(selection.indices, selection.order, selection.nearest, weight, selection.pivots)

    def merge(self, hidden: Tensor, selection: Selection) -> Tensor:
        if not self.adaptive:
            return super().merge(hidden, selection)
        assert selection.nearest is not None and selection.similarity is not None
        weight = selection.similarity.clone()
        weight[selection.indices] = 1
        total = weight.new_zeros(len(selection.indices)).index_add_(0, selection.nearest, weight)
        mean = weight.new_zeros(len(selection.indices), hidden.shape[1])
        mean.index_add_(0, selection.nearest, hidden * weight[:, None])
        return mean / total[:, None]


@dataclass(frozen=True)
class Looked(Candidate):
    """The question's attention in the pruned layer lowers a token's redundancy.

    attention: by how much, on a scale where the most attended token has 1. rows: the question's "last" or "all" tokens.
    share: part of the budget that goes straight to the most attended tokens, before the rest is chosen.
    """

    attention: float = 0.0
    rows: str = "all"
    share: float = 0.0
    last_layer_before: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"attend_next", "text_hidden"})

    def relevance(self, view: View) -> Tensor:
        rows = [-1] if self.rows == "last" else range(len(view.text_hidden))
        queries = torch.tensor(rows, device="cpu")
        looked = view.attend_next(queries).mean(dim=0)  # [Q, N]
        looked = looked.amax(dim=0) if self.rows == "max" else looked.mean(dim=0)
        return looked / looked.max()

    def choose_order(self, features: Tensor, view: View) -> Tensor:
        relevance = self.relevance(view)
        outright = int(self.share * view.budget)
        start = relevance.argsort(descending=True, stable=True)[:outright]
        pivots = (
            choose_pivots(view.keys.float(), min(self.pivots, view.budget - outright))
            if outright < view.budget
            else start[:0]
        )
        start = torch.cat([start, pivots[~torch.isin(pivots, start)]])
        weights = [self.spatial_weight] * view.budget
        bonus = self.attention * relevance
        return farthest(features, view.layout.normalised(features), start, view.budget, weights, bonus)


@dataclass(frozen=True)
class LookedPacking(Looked):
    """Fits the threshold to the picture; the question's attention lowers redundancy."""

    def choose_order(self, features: Tensor, view: View) -> Tensor:
        return _fitted(self, features, view, self.attention * self.relevance(view))


@dataclass(frozen=True)
class LookedResidual(Looked):
    """Pivoted QR of centred states, each weighted by the question's attention to it to the power `attention`."""

    floor: float = 0.05  # weight of a token without attention

    def choose_order(self, features: Tensor, view: View) -> Tensor:
        hidden = view.hidden.float()
        rest = screen(hidden - hidden.mean(dim=0), self.channels)
        rest = rest * ((self.relevance(view) + self.floor) ** self.attention)[:, None]
        order: list[int] = []
        for _ in range(view.budget):
            size = rest.square().sum(dim=1)
            size[torch.tensor(order, dtype=torch.long, device=features.device)] = -1
            token = int(size.argmax())
            order.append(token)
            direction = normalize(rest[token], dim=0)
            rest = rest - (rest @ direction)[:, None] * direction
        return torch.tensor(order, device=rest.device)
