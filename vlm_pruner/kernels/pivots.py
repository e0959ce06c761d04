"""Pivots on the GPU: a pass over the keys for each pivot, and a maximum that breaks ties by the lowest index."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit
def _score_kernel(keys, pivots, score, step, count, n, d, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Grid (blocks of tokens, images). keys: [I, n, d], pivots: [I, count], score: [I, n].

    Step 0: L1 norms. Later: distance to the pivot chosen last, the smaller of that and what is in `score`.
    """
    image = tl.program_id(1).to(tl.int64)
    keys += image * n * d
    pivots += image * count
    score += image * n
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets = rows[:, None].to(tl.int64) * d
    pivot = tl.load(pivots + tl.maximum(step - 1, 0))
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, d, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        mask = (rows < n)[:, None] & (columns < d)[None, :]
        block = tl.load(keys + offsets + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if step == 0:
            total += tl.sum(tl.abs(block), axis=1)
        else:
            centre = tl.load(keys + pivot * d + columns, mask=columns < d, other=0.0).to(tl.float32)
            apart = tl.where(mask, block - centre[None, :], 0.0)
            total += tl.sum(apart * apart, axis=1)
    if step > 0:
        total = tl.sqrt(total)
        total = tl.where(total == total, total, -0.5)  # NaN: after every number, but before a pivot's second time
    if step > 1:  # a pivot's own score is -1 and stays the smallest
        total = tl.minimum(total, tl.load(score + rows, mask=rows < n, other=0.0))
    total = tl.where((rows == pivot) & (step > 0), -1.0, total)
    tl.store(score + rows, total, mask=rows < n)


@triton.jit
def _argmax_kernel(score, pivots, step, count, n, BLOCK_N: tl.constexpr):
    """A program for each image. pivots[image, step] <- the lowest index among the largest of score[image]."""
    image = tl.program_id(0).to(tl.int64)
    score += image * n
    pivots += image * count
    best = -float("inf")
    token = 0
    for start in range(0, n, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        block = tl.load(score + rows, mask=rows < n, other=-float("inf"))
        highest = tl.max(block, axis=0)
        first = tl.min(tl.where(block == highest, rows, _NO_TOKEN), axis=0)
        token = tl.where(highest > best, first, token)
        best = tl.maximum(best, highest)
    tl.store(pivots + step, token.to(tl.int64))  # type: ignore[attr-defined]  # a tensor by then


def choose_pivots(keys: Tensor, count: int) -> Tensor:
    """Long [I, count], as `selection.choose_pivots` of each of `keys` [I, N, k]. Ties go to the lowest index.

    A key with NaN or infinity is no error here, where the host does not wait: it is farthest from nothing, and of such
    keys each is chosen once at most.
    """
    keys = keys.contiguous()
    images, n, d = keys.shape
    pivots = torch.zeros(images, count, dtype=torch.long, device=keys.device)
    score = torch.empty(images, n, dtype=torch.float32, device=keys.device)
    for step in range(count):
        _score_kernel[(triton.cdiv(n, 4), images)](keys, pivots, score, step, count, n, d, BLOCK_N=4, BLOCK_D=512)
        _argmax_kernel[(images,)](score, pivots, step, count, n, BLOCK_N=1024)
    return pivots
