"""Pivots on the GPU in one launch: each program owns some tokens; the best over all programs is the next pivot."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlm_pruner.kernels.barrier import programs, wait_for_all

_NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit
def _score(keys, rows, pivot, step, n, d, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK_N]: in step 0 the rows' L1 norms, later their distances to the pivot."""
    offsets = rows[:, None].to(tl.int64) * d
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, d, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        mask = (rows < n)[:, None] & (columns < d)[None, :]
        block = tl.load(keys + offsets + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if step == 0:
            total += tl.sum(tl.abs(block), axis=1)
        else:
            centre = tl.load(keys + pivot.to(tl.int64) * d + columns, mask=columns < d, other=0.0).to(tl.float32)
            apart = tl.where(mask, block - centre[None, :], 0.0)
            total += tl.sum(apart * apart, axis=1)
    if step > 0:
        total = tl.sqrt(total)
    return tl.where(total == total, total, -0.5)  # NaN ranks after every number, but before repeating a pivot


@triton.jit
def _pivots_kernel(
    keys, pivots, score, best, best_token, counter, n, d, count, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    C: tl.constexpr, SLOTS: tl.constexpr
):  # fmt: skip
    """Grid (C, images). keys: [I, n, d], pivots: [I, count], score: [I, n]; best, best_token: [I, 2, C], two steps'."""
    c = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    keys += image * n * d
    pivots += image * count
    score += image * n
    best += image * 2 * C
    best_token += image * 2 * C
    counter += image
    slots = tl.arange(0, SLOTS)
    passed = 0
    pivot = c * 0
    for step in range(count):
        highest = -float("inf")
        token = _NO_TOKEN
        for block in range(c, tl.cdiv(n, BLOCK_N), C):
            rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
            inside = rows < n
            total = _score(keys, rows, pivot, step, n, d, BLOCK_N, BLOCK_D)
            if step > 1:  # a pivot's own score is -1 and stays the smallest
                total = tl.minimum(total, tl.load(score + rows, mask=inside, other=0.0))
            total = tl.where((rows == pivot) & (step > 0), -1.0, total)
            tl.store(score + rows, total, mask=inside)
            total = tl.where(inside, total, -float("inf"))
            top = tl.max(total, axis=0)
            first = tl.min(tl.where(total == top, rows, _NO_TOKEN), axis=0)
            token = tl.where(top > highest, first, token)
            highest = tl.maximum(highest, top)
        half = step % 2 * C  # never write where another program may still read
        tl.store(best + half + c, highest)
        tl.store(best_token + half + c, token)
        passed = wait_for_all(counter, passed, C)
        tops = tl.load(best + half + slots, mask=slots < C, other=-float("inf"), cache_modifier=".cg")
        tokens = tl.load(best_token + half + slots, mask=slots < C, other=_NO_TOKEN, cache_modifier=".cg")
        pivot = tl.min(tl.where(tops == tl.max(tops, axis=0), tokens, _NO_TOKEN), axis=0)
        if c == 0:
            tl.store(pivots + step, pivot.to(tl.int64))


def choose_pivots(keys: Tensor, count: int) -> Tensor:
    """Long [I, count], as `selection.choose_pivots` of each of `keys` [I, N, k]. Ties go to the lowest index.

    A key with NaN or infinity raises no error, because the host does not wait: it never counts as farthest, and each
    such key is chosen at most once.
    """
    keys = keys.contiguous()
    images, n, d = keys.shape
    height = 8  # tokens of a block
    width = min(1024, triton.next_power_of_2(d))
    each = programs(keys, images, triton.cdiv(n, height))
    pivots = torch.empty(images, count, dtype=torch.long, device=keys.device)
    score = torch.empty(images, n, dtype=torch.float32, device=keys.device)
    best = torch.empty(images, 2, each, dtype=torch.float32, device=keys.device)
    best_token = torch.empty(images, 2, each, dtype=torch.int32, device=keys.device)
    arrived = torch.zeros(images, dtype=torch.int32, device=keys.device)
    _pivots_kernel[(each, images)](
        keys, pivots, score, best, best_token, arrived, n, d, count, BLOCK_N=height, BLOCK_D=width,
        C=each, SLOTS=triton.next_power_of_2(each), num_warps=8,
    )  # fmt: skip
    return pivots
