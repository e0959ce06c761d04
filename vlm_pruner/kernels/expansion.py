"""The whole expansion in one launch: `selection.expansion`'s algorithm, several images and several programs at once.

Each image has C programs. Program c owns every C-th block of tokens: it alone writes their running similarity, distance
and nearest kept token. Every program computes everything else (the next candidate, what a window keeps) on its own from
the same memory, so all take the same branches without communicating. Programs meet at a barrier (`barrier.py`) before
and after writes to shared memory. Ties go to the lowest index: ranks order by (score, index).

The host does not see the result until it reads it, so NaN raises no error as on the CPU: a token with a NaN score ranks
last, and exactly `budget` tokens are kept whatever the features contain.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from vlm_pruner.kernels import WINDOW
from vlm_pruner.kernels.barrier import programs, wait_for_all
from vlm_pruner.selection.expansion import Expansion

_LAST = tl.constexpr(3.0e38)  # score of a token that cannot be judged
_NONE = tl.constexpr(2**30)  # larger than any rank
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _redundancy(similarity, distance, spatial_weight):
    """Modulated similarity; an infinite distance (nothing kept in the frame) counts as 0."""
    score = similarity * (1.0 + spatial_weight * tl.where(distance < _INFINITY, distance, 0.0))
    return tl.where(score == score, score, _LAST)


@triton.jit
def _score(sim, dist, tokens, mask, spatial_weight):
    """Loads past the first-level cache (.cg), which does not see other multiprocessors' writes."""
    similarity = tl.load(sim + tokens, mask=mask, other=0.0, cache_modifier=".cg")
    distance = tl.load(dist + tokens, mask=mask, other=0.0, cache_modifier=".cg")
    return _redundancy(similarity, distance, spatial_weight)


@triton.jit
def _products(features, rows, row_mask, columns, column_mask, q, BN: tl.constexpr, BQ: tl.constexpr, W: tl.constexpr):
    """[BN, W] inner products to float32's precision: three products of tensor cores, a tenth of the time of FMAs."""
    total = tl.zeros([BN, W], tl.float32)
    for start in range(0, q, BQ):
        channel = start + tl.arange(0, BQ)
        inside = channel < q
        left = tl.load(
            features + rows[:, None] * q + channel[None, :], mask=row_mask[:, None] & inside[None, :], other=0.0
        )
        right = tl.load(
            features + columns[None, :] * q + channel[:, None], mask=column_mask[None, :] & inside[:, None], other=0.0
        )
        total = tl.dot(left, right, total, input_precision="tf32x3")
    return total


@triton.jit
def _apart(coords, rows, row_mask, columns, column_mask, P: tl.constexpr):
    """Distances [rows, columns]; infinite between frames. coords: [N, P], (x, y) or (frame, x, y)."""
    x = tl.load(coords + rows * P + P - 2, mask=row_mask, other=0.0)[:, None]
    y = tl.load(coords + rows * P + P - 1, mask=row_mask, other=0.0)[:, None]
    x2 = tl.load(coords + columns * P + P - 2, mask=column_mask, other=0.0)[None, :]
    y2 = tl.load(coords + columns * P + P - 1, mask=column_mask, other=0.0)[None, :]
    apart = tl.sqrt((x - x2) * (x - x2) + (y - y2) * (y - y2))
    if P == 3:
        frame = tl.load(coords + rows * P, mask=row_mask, other=0.0)[:, None]
        frame2 = tl.load(coords + columns * P, mask=column_mask, other=0.0)[None, :]
        apart = tl.where(frame == frame2, apart, _INFINITY)
    return apart


@triton.jit
def _keep(
    features, coords, sim, dist, near, free, order, tokens, slot, c, n, q, FIRST: tl.constexpr, P: tl.constexpr,
    BN: tl.constexpr, BQ: tl.constexpr, W: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """Keeps the tokens with a slot >= 0, as the slot-th, and updates this program's tokens. FIRST: none is kept yet."""
    kept = slot >= 0
    for block in range(c, tl.cdiv(n, BN), C):
        rows = block * BN + tl.arange(0, BN)
        inside = rows < n
        product = _products(features, rows, inside, tokens, kept, q, BN, BQ, W)
        product = tl.where(kept[None, :], product, -_INFINITY)
        best = tl.max(product, axis=1)
        first = tl.min(tl.where((product == best[:, None]) & kept[None, :], slot[None, :], _NONE), axis=1)
        first = tl.where(first < _NONE, first, 0)  # NaN counts as nothing: the first pivot then
        token = tl.sum(tl.where(slot[None, :] == first[:, None], tokens[None, :], 0), axis=1)
        apart = tl.where(kept[None, :], _apart(coords, rows, inside, tokens, kept, P), _INFINITY)
        distance = tl.min(apart, axis=1)
        if FIRST:
            chosen = tl.sum(((rows[:, None] == tokens[None, :]) & kept[None, :]).to(tl.int32), axis=1)
            tl.store(free + rows, 1 - chosen, mask=inside)
            closer = inside
        else:
            before = tl.load(sim + rows, mask=inside, other=0.0, cache_modifier=".cg")
            closer = inside & (best > before)
            best = tl.maximum(before, best)
            distance = tl.minimum(distance, tl.load(dist + rows, mask=inside, other=0.0, cache_modifier=".cg"))
        tl.store(near + rows, token, mask=closer)
        tl.store(sim + rows, best, mask=inside)
        tl.store(dist + rows, distance, mask=inside)
    if c == 0:
        if not FIRST:
            tl.store(free + tokens, tl.zeros([W], tl.int32), mask=kept)
        tl.store(order + slot, tokens.to(tl.int64), mask=kept)


@triton.jit
def _rank(sim, dist, free, rank, ranked, c, n, spatial_weight, BN: tl.constexpr, BJ: tl.constexpr, C: tl.constexpr):
    """rank[i] <- free tokens before i in the order of (score, index); ranked[rank[i]] <- i. For own tokens."""
    for block in range(c, tl.cdiv(n, BN), C):
        rows = block * BN + tl.arange(0, BN)
        mine = (rows < n) & (tl.load(free + rows, mask=rows < n, other=0, cache_modifier=".cg") > 0)
        score = _score(sim, dist, rows, rows < n, spatial_weight)
        before = tl.zeros([BN], tl.int32)
        for start in range(0, n, BJ):
            others = start + tl.arange(0, BJ)
            there = (others < n) & (tl.load(free + others, mask=others < n, other=0, cache_modifier=".cg") > 0)
            their = _score(sim, dist, others, others < n, spatial_weight)[None, :]
            earlier = (their < score[:, None]) | ((their == score[:, None]) & (others[None, :] < rows[:, None]))
            before += tl.sum((earlier & there[None, :]).to(tl.int32), axis=1)
        tl.store(rank + rows, tl.where(mine, before, -1), mask=rows < n)
        tl.store(ranked + before, rows, mask=mine)


@triton.jit
def _next(sim, dist, free, rank, start, tau, n, spatial_weight, BJ: tl.constexpr):
    """The lowest rank from `start` on of a free token that scores below tau; _NONE if there is none."""
    found = _NONE
    for begin in range(0, n, BJ):
        tokens = begin + tl.arange(0, BJ)
        inside = tokens < n
        place = tl.load(rank + tokens, mask=inside, other=-1, cache_modifier=".cg")
        stays = inside & (tl.load(free + tokens, mask=inside, other=0, cache_modifier=".cg") > 0)
        below = stays & (place >= start) & (_score(sim, dist, tokens, inside, spatial_weight) < tau)
        found = tl.minimum(found, tl.min(tl.where(below, place, _NONE), axis=0))
    return found


@triton.jit
def _judge(
    similarity, distance, gram, apart, valid, tau, size, budget, spatial_weight, B: tl.constexpr, W: tl.constexpr
):
    """Slots [W]: the order in which each of the window's candidates is kept, -1 if it is not; and the new size."""
    place = tl.arange(0, W)
    slot = tl.full([W], -1, tl.int32)
    start = 0
    while start < W:
        score = _redundancy(similarity, distance, spatial_weight)
        below = valid & (score < tau) & (place >= start)
        first = tl.min(tl.where(below, place, W), axis=0)
        if (first == W) | (size >= budget):
            start = W
        else:
            begin = first // B * B
            mates = valid & (place >= begin) & (place < begin + B)
            kept = mates & below
            count = tl.sum(kept.to(tl.int32), axis=0)
            earlier = place[:, None] < place[None, :]
            if count > budget - size:  # the lowest scores of the batch, whatever the threshold
                lower = (score[:, None] < score[None, :]) | ((score[:, None] == score[None, :]) & earlier)
                turn = tl.sum((lower & mates[:, None]).to(tl.int32), axis=0)
                kept = mates & (turn < budget - size)
            else:
                turn = tl.sum((earlier & kept[:, None]).to(tl.int32), axis=0)
            slot = tl.where(kept, size + turn, slot)
            size += tl.sum(kept.to(tl.int32), axis=0)
            similarity = tl.maximum(similarity, tl.max(tl.where(kept[:, None], gram, -_INFINITY), axis=0))
            distance = tl.minimum(distance, tl.min(tl.where(kept[:, None], apart, _INFINITY), axis=0))
            start = begin + B
    return slot, size


@triton.jit
def _judge_each(similarity, distance, gram, apart, valid, tau, size, budget, spatial_weight, W: tl.constexpr):
    """`_judge` for batches of one. gram, apart: this program's own memory, [W, W] each.

    Reading the kept candidate's row costs a fifth of reducing both squares over a mask of rows.
    """
    place = tl.arange(0, W)
    slot = tl.full([W], -1, tl.int32)
    start = 0
    while start < W:
        below = valid & (_redundancy(similarity, distance, spatial_weight) < tau) & (place >= start)
        first = tl.min(tl.where(below, place, W), axis=0)
        if (first == W) | (size >= budget):
            start = W
        else:
            slot = tl.where(place == first, size, slot)
            similarity = tl.maximum(similarity, tl.load(gram + first * W + place))
            distance = tl.minimum(distance, tl.load(apart + first * W + place))
            size += 1
            start = first + 1
    return slot, size


@triton.jit
def _finish(
    free, near, rank, indices, nearest, counter, passed, c, n, BN: tl.constexpr, BJ: tl.constexpr, C: tl.constexpr
):
    """indices <- the kept tokens, ascending; nearest <- each token's kept token, as a position in indices.

    A kept token points to itself, even if rounding makes a duplicate seem closer.
    """
    for block in range(c, tl.cdiv(n, BN), C):
        rows = block * BN + tl.arange(0, BN)
        kept = (rows < n) & (tl.load(free + rows, mask=rows < n, other=1, cache_modifier=".cg") == 0)
        before = c * 0
        for start in range(0, block * BN, BJ):
            others = start + tl.arange(0, BJ)
            there = others < block * BN
            before += tl.sum(
                (tl.load(free + others, mask=there, other=1, cache_modifier=".cg") == 0).to(tl.int32), axis=0
            )
        place = before + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        tl.store(rank + rows, place, mask=kept)
        tl.store(indices + place, rows.to(tl.int64), mask=kept)
    passed = wait_for_all(counter, passed, C)
    for block in range(c, tl.cdiv(n, BN), C):
        rows = block * BN + tl.arange(0, BN)
        taken = tl.load(free + rows, mask=rows < n, other=1, cache_modifier=".cg") == 0
        token = tl.where(taken, rows, tl.load(near + rows, mask=rows < n, other=0, cache_modifier=".cg"))
        place = tl.load(rank + token, mask=rows < n, other=0, cache_modifier=".cg")
        tl.store(nearest + rows, place.to(tl.int64), mask=rows < n)


@triton.jit
def _expand_kernel(
    features, coords, pivots, order, indices, nearest, sim, dist, near, free, rank, ranked, squares, counter, n, q,
    count, budget, threshold, threshold_rest, step, step_rest, spatial_weight,
    P: tl.constexpr, B: tl.constexpr, W: tl.constexpr, BN: tl.constexpr, BJ: tl.constexpr, BS: tl.constexpr,
    BQ: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Grid (C, images). All arrays have one part per image; see `expand`. BJ, BS: tokens processed at once.

    squares: float32 [I, C, 2, W, W], each program's own memory; only for batches of one.
    Arguments are rounded to float32 and rounds counted in float64, so each rounding remainder is passed separately.
    """
    c = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    features += image * n * q
    coords += image * n * P
    pivots += image * count
    order += image * budget
    indices += image * budget
    nearest += image * n
    near += image * n
    sim += image * n
    dist += image * n
    free += image * n
    rank += image * n
    ranked += image * n
    squares += (image * C + c) * 2 * W * W
    counter += image
    start_tau = tl.cast(threshold, tl.float64) + tl.cast(threshold_rest, tl.float64)
    rise = tl.cast(step, tl.float64) + tl.cast(step_rest, tl.float64)

    place = tl.arange(0, W)
    width = W // B * B  # whole batches
    slot = tl.where(place < count, place, -1)
    tokens = tl.load(pivots + place, mask=place < count, other=0).to(tl.int32)
    _keep(features, coords, sim, dist, near, free, order, tokens, slot, c, n, q, True, P, BN, BQ, W, C)
    passed = wait_for_all(counter, 0, C)

    size = count + 0
    before = count + 0
    rounds = 0
    start = 0
    lowest = start_tau.to(tl.float32)
    fresh = True  # a round begins
    tau = start_tau.to(tl.float32)
    steps = 4 * budget + 8  # each window keeps a token and each round has at most one empty one: never reached
    while (size < budget) & (steps > 0):
        steps -= 1
        if fresh:
            _rank(sim, dist, free, rank, ranked, c, n, spatial_weight, BN, BJ, C)
            passed = wait_for_all(counter, passed, C)
            leader = tl.load(ranked, cache_modifier=".cg")
            lowest = _score(sim, dist, leader, leader >= 0, spatial_weight)
            tau = (start_tau + rounds * rise).to(tl.float32)
            if lowest >= _LAST:  # only tokens without a score remain
                tau = _INFINITY
            start = 0
            before = size
            fresh = False
        found = _next(sim, dist, free, rank, start, tau, n, spatial_weight, BS)
        if found == _NONE:
            rounds += 1
            if (size == before) & (lowest < _LAST):  # skip the rounds that cannot add anything
                skipped = tl.minimum((lowest.to(tl.float64) - start_tau) / rise, 1.0e9)
                rounds = tl.maximum(rounds, skipped.to(tl.int32))
            fresh = True
        else:
            start = found // B * B
            valid = (place < width) & (start + place < n - before)
            tokens = tl.load(ranked + start + place, mask=valid, other=0, cache_modifier=".cg")
            gram = _products(features, tokens, valid, tokens, valid, q, W, BQ, W)
            apart = _apart(coords, tokens, valid, tokens, valid, P)
            similarity = tl.load(sim + tokens, mask=valid, other=0.0, cache_modifier=".cg")
            distance = tl.load(dist + tokens, mask=valid, other=0.0, cache_modifier=".cg")
            if B == 1:
                cells = place[:, None] * W + place[None, :]
                tl.store(squares + cells, gram)
                tl.store(squares + W * W + cells, apart)
                tl.debug_barrier()
                slot, size = _judge_each(
                    similarity, distance, squares, squares + W * W, valid, tau, size, budget, spatial_weight, W
                )  # fmt: skip
            else:
                slot, size = _judge(
                    similarity, distance, gram, apart, valid, tau, size, budget, spatial_weight, B, W
                )  # fmt: skip
            start += width
        passed = wait_for_all(counter, passed, C)  # all programs have read
        if not fresh:
            _keep(features, coords, sim, dist, near, free, order, tokens, slot, c, n, q, False, P, BN, BQ, W, C)
        passed = wait_for_all(counter, passed, C)  # all programs have written
    _finish(free, near, rank, indices, nearest, counter, passed, c, n, BN, BS, C)


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
) -> Expansion:
    """Like `selection.expand` for each image, but always to the full budget and without an error for NaN (see the
    module). In the Expansion, indices and order are [I, R], nearest and similarity [I, N].

    features: float32 [I, N, q]. coords: [I, N, 2], or [I, N, 3] of videos. pivots: long [I, P].
    Raises ValueError if a token batch or the pivots do not fit a window.
    """
    if max(pivots.shape[1], token_batch) > WINDOW:
        raise ValueError(
            f"token_batch={token_batch} and {pivots.shape[1]} pivots must both be at most {WINDOW} for the kernel; "
            "set VLM_PRUNER_KERNELS=off"
        )
    images, n, q = features.shape
    device = features.device
    order, indices = torch.empty(2, images, budget, dtype=torch.long, device=device)
    nearest = torch.empty(images, n, dtype=torch.long, device=device)
    sim, dist = torch.empty(2, images, n, device=device)
    near, free, rank, ranked = torch.empty(4, images, n, dtype=torch.int32, device=device)
    each = programs(features, images, triton.cdiv(n, 64))
    squares = torch.empty(images, each, 2, WINDOW, WINDOW, device=device) if token_batch == 1 else sim
    arrived = torch.zeros(images, dtype=torch.int32, device=device)
    _expand_kernel[(each, images)](
        features.float().contiguous(), coords.float().contiguous(), pivots.contiguous(), order, indices, nearest, sim,
        dist, near, free, rank, ranked, squares, arrived, n, q, pivots.shape[1], budget,
        *_parts(threshold), *_parts(threshold_step), spatial_weight, P=coords.shape[2], B=token_batch, W=WINDOW, BN=64,
        BJ=256, BS=min(1024, triton.next_power_of_2(n)), BQ=32, C=each, num_warps=8,
    )  # fmt: skip
    return Expansion(indices, order, nearest, sim)


def _parts(number: float) -> tuple[float, float]:
    """Splits a number into two of float32 precision whose sum equals it to 48 bits."""
    first = float(np.float32(number))
    return first, number - first
