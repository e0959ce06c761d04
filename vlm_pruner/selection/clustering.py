"""Clustering by density peaks: a centre is a token in a dense region, far from every denser one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def density_peaks(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centres, long [count], by descending prominence, and the cluster [M] of each of the M rows of `features` [M, d].

    Distances are divided by sqrt(d). Density is exp(-mean of the squared distances to the `count` nearest tokens, the
    token itself included). Prominence is density times the distance to the nearest denser token, or, for the densest,
    the largest distance of all. Every token joins its nearest centre, a centre itself. Of equally dense tokens the
    lower index counts as denser.
    """
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / math.sqrt(features.shape[1])
    nearest = distance.topk(count, dim=1, largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    rank = torch.empty_like(density, dtype=torch.long)
    rank[density.argsort(descending=True, stable=True)] = torch.arange(len(density), device=rank.device)
    denser = rank[None, :] < rank[:, None]
    apart = distance.masked_fill(~denser, torch.inf).amin(dim=1)
    apart = torch.where(apart.isinf(), distance.max(), apart)
    centres = (density * apart).argsort(descending=True, stable=True)[:count]
    cluster = distance[:, centres].argmin(dim=1)
    cluster[centres] = torch.arange(count, device=cluster.device)
    return centres, cluster
