"""Slow, obvious VLM-Pruner: the equations as printed, comparing every pair of tokens, one token at a time.

Shares no code with the library. N x N x channels of memory for the similarities, as the published formula suggests;
from 1,024 tokens on in blocks of rows, because few machines hold the 25 GB that 2,880 tokens would take.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_BROADCAST = 2**28  # numbers; three such tensors exist at once


@dataclass
class Reference:
    pivots: list[int]
    order: list[int]
    merged: Tensor  # [R, d], rows in ascending order of token
    nearest: list[int]  # [N], the kept token that each token is most similar to; itself for a kept one


def pairwise_similarity(hidden: Tensor, channels: int) -> Tensor:
    """M [N, N], cosine on the channels of highest variance."""
    top = hidden.var(dim=0).topk(min(channels, hidden.shape[1])).indices
    screened = hidden[:, top]
    blocks = screened.split(max(1, LARGEST_BROADCAST // screened.numel()))
    cosine = torch.nn.functional.cosine_similarity
    return torch.cat([cosine(block[:, None, :], screened[None, :, :], dim=-1) for block in blocks])


def reference_pivots(keys: Tensor, count: int) -> list[int]:
    pivots = [int(keys.abs().sum(dim=1).argmax())]
    while len(pivots) < count:
        apart = torch.stack([(keys - keys[j]).norm(dim=1) for j in pivots]).amin(dim=0)
        apart[pivots] = -1
        pivots.append(int(apart.argmax()))
    return pivots


def reference_prune(
    hidden: Tensor,
    keys: Tensor,
    coords: Tensor,
    diagonal: float,
    budget: int,
    *,
    pivots: int = 4,
    threshold: float = 0.8,
    threshold_step: float = 0.1,
    token_batch: int = 1,
    spatial_weight: float = 0.5,
    channels: int = 256,
    self_weight: float = 0.3,
    released: bool = False,
) -> Reference:
    similarity = pairwise_similarity(hidden, channels)
    places = coords[:, -2:]
    distance = (places[:, None, :] - places[None, :, :]).norm(dim=-1) / diagonal
    if coords.shape[1] == 3:  # (t, x, y): distances are within a frame
        distance[coords[:, None, 0] != coords[None, :, 0]] = torch.inf
    order = reference_pivots(keys, pivots)
    started = list(order)

    def redundancy(tokens: list[int]) -> Tensor:
        near = distance[tokens][:, order].amin(dim=1, keepdim=True)
        near[near.isinf()] = 0  # nothing of the frame is kept yet
        return (similarity[tokens][:, order] * (1 + spatial_weight * near)).amax(dim=1)

    rounds = 0
    while len(order) < budget:
        tau, before = threshold + rounds * threshold_step, len(order)
        candidates = [i for i in range(len(hidden)) if i not in order]
        ranking = redundancy(candidates).argsort(stable=True).tolist()
        candidates = [candidates[i] for i in ranking]
        for start in range(0, len(candidates), token_batch):
            if len(order) == budget or (start > 0 and len(order) == before):
                break
            batch = candidates[start : start + token_batch]
            scores = redundancy(batch).tolist()
            accepted = [i for i, score in zip(batch, scores, strict=True) if score < tau]
            if len(order) + len(accepted) > budget:
                lowest_first = sorted(range(len(batch)), key=lambda i: scores[i])
                accepted = [batch[i] for i in lowest_first[: budget - len(order)]]
            order += accepted
        if len(order) == before and released:
            break
        rounds += 1

    return Reference(started, order, *_fold(hidden, similarity, order, self_weight, released))


def _fold(
    hidden: Tensor, similarity: Tensor, order: list[int], self_weight: float, released: bool
) -> tuple[Tensor, list[int]]:
    nearest = [i if i in order else order[int(similarity[i, order].argmax())] for i in range(len(hidden))]
    merged = []
    for j in sorted(order):
        group = [i for i in range(len(hidden)) if nearest[i] == j and i != j]
        weights = [float(similarity[i, j]) if released else max(0.0, float(similarity[i, j])) for i in group]
        if sum(weights) > 0:
            total = max(sum(weights), 1e-8) if released else sum(weights)
            mean = sum(w / total * hidden[i] for w, i in zip(weights, group, strict=True))
            merged.append(self_weight * hidden[j] + (1 - self_weight) * mean)
        else:
            merged.append(hidden[j])
    return torch.stack(merged), nearest
