"""The whole expansion in one launch: `selection.expansion`'s algorithm, several images and several programs at once.

Each image has C programs. Program c owns every C-th block of tokens: it alone writes their running similarity,
distance and nearest kept token. Everything else (which candidate is next, what a window keeps) every program works
out for itself from the same memory, so that all take the same branches and none has to tell another. Programs meet at
a barrier before shared memory is written and after. Ties are broken by the lowest index: ranks order by (score, index).

Why the barrier cannot deadlock: programs that wait need all C of their image to run. The grid never has more programs
than the GPU has multiprocessors (`_programs`), each fits on one, and kernels of other streams end without waiting for
this one: so every program gets a place at some time, and none gives its place up. Triton's interpreter runs programs
one after the other and could not pass a barrier: there C is 1. What it does not test is therefore the barrier itself,
the visibility of one program's writes to another, and the split of tokens among programs.

Nothing of the result is known on the host until it is read, so there is no error for NaN as on the CPU: a token whose
score is NaN ranks last, and exactly `budget` tokens are kept whatever the features hold.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlm_pruner.selection.expansion import Expansion

WINDOW = 64  # candidates judged before all tokens see what was kept; largest token batch and number of pivots
_LAST = tl.constexpr(3.0e38)  # score of a token that cannot be judged
_NONE = tl.constexpr(2**30)  # larger than any rank
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _barrier(counter, passed, C: tl.constexpr):
    """Waits for all C programs of the image. Returns how many barriers have been passed; `counter` counts arrivals."""
    passed += 1
    if C > 1:
        tl.debug_barrier()  # all threads of this program have written
        tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        while tl.atomic_add(counter, 0, sem="acq_rel", scope="gpu") < passed * C:
            pass
        tl.debug_barrier()
    return passed


@triton.jit
def _redundancy(similarity, distance, spatial_weight):
    """Modulated similarity; an infinite distance (nothing kept in the frame) counts as 0."""
    score = similarity * (1.0 + spatial_weight * tl.where(distance < _INFINITY, distance, 0.0))
    return tl.where(score == score, score, _LAST)


@triton.jit
def _score(sim, dist, tokens, mask, spatial_weight):
    """Past the first-level cache (.cg), which does not see other multiprocessors' writes."""
    similarity = tl.load(sim + tokens, mask=mask, other=0.0, cache_modifier=".cg")
    distance = tl.load(dist + tokens, mask=mask, other=0.0, cache_modifier=".cg")
    return _redundancy(similarity, distance, spatial_weight)


@triton.jit
def _products(features, rows, row_mask, columns, column_mask, q, BN: tl.constexpr, BQ: tl.constexpr, W: tl.constexpr):
    """[BN, W] inner products in full float32."""
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
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@triton.jit
def _apart(places, rows, row_mask, columns, column_mask):
    """Distances [rows, columns]; infinite between frames. places: [N, 3], (frame, x, y)."""
    t = tl.load(places + rows * 3, mask=row_mask, other=0.0)[:, None]
    x = tl.load(places + rows * 3 + 1, mask=row_mask, other=0.0)[:, None]
    y = tl.load(places + rows * 3 + 2, mask=row_mask, other=0.0)[:, None]
    t2 = tl.load(places + columns * 3, mask=column_mask, other=0.0)[None, :]
    x2 = tl.load(places + columns * 3 + 1, mask=column_mask, other=0.0)[None, :]
    y2 = tl.load(places + columns * 3 + 2, mask=column_mask, other=0.0)[None, :]
    return tl.where(t == t2, tl.sqrt((x - x2) * (x - x2) + (y - y2) * (y - y2)), _INFINITY)


@triton.jit
def _show(
    features, places, sim, dist, near, free, order, tokens, slot, c, n, q, BN: tl.constexpr, BQ: tl.constexpr,
    W: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """Keep the tokens with a slot >= 0, as the slot-th: update this program's own tokens."""
    kept = slot >= 0
    for block in range(c, tl.cdiv(n, BN), C):
        rows = block * BN + tl.arange(0, BN)
        inside = rows < n
        product = _products(features, rows, inside, tokens, kept, q, BN, BQ, W)
        product = tl.where(kept[None, :], product, -_INFINITY)
        best = tl.max(product, axis=1)
        first = tl.min(tl.where((product == best[:, None]) & kept[None, :], slot[None, :], _NONE), axis=1)
        token = tl.sum(tl.where(slot[None, :] == first[:, None], tokens[None, :], 0), axis=1)
        apart = tl.where(kept[None, :], _apart(places, rows, inside, tokens, kept), _INFINITY)
        before = tl.load(sim + rows, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(near + rows, token.to(tl.int64), mask=inside & (best > before))
        tl.store(sim + rows, tl.maximum(before, best), mask=inside)
        distance = tl.load(dist + rows, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(dist + rows, tl.minimum(distance, tl.min(apart, axis=1)), mask=inside)
    if c == 0:
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
    """Slots [W]: as the how-manieth each of the window's candidates is kept, -1 if it is not. And the new size."""
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
            if count > budget - size:  # the lowest scores of the batch, wherever the threshold is
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
def _expand_kernel(
    features, places, pivots, order, near, sim, dist, free, rank, ranked, counters, n, q, count, budget,
    thresholds, spatial_weight,
    B: tl.constexpr, W: tl.constexpr, BN: tl.constexpr, BJ: tl.constexpr, BQ: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Grid (C, images). All arrays have one part for each image; see `expand`."""
    c = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    features += image * n * q
    places += image * n * 3
    pivots += image * count
    order += image * budget
    near += image * n
    sim += image * n
    dist += image * n
    free += image * n
    rank += image * n
    ranked += image * n
    counter = counters + image
    threshold = tl.load(thresholds)  # float64: an argument would be rounded to float32 before rounds are added
    step = tl.load(thresholds + 1)

    place = tl.arange(0, W)
    width = W // B * B  # whole batches
    slot = tl.where(place < count, place, -1)
    tokens = tl.load(pivots + place, mask=place < count, other=0).to(tl.int32)
    _show(features, places, sim, dist, near, free, order, tokens, slot, c, n, q, BN, BQ, W, C)
    passed = _barrier(counter, 0, C)

    size = count + 0
    before = count + 0
    rounds = 0
    start = 0
    lowest = threshold.to(tl.float32)
    fresh = True  # a round begins
    tau = threshold.to(tl.float32)
    steps = 4 * budget + 8  # a window keeps a token, a round has one look in vain: never reached
    while (size < budget) & (steps > 0):
        steps -= 1
        if fresh:
            _rank(sim, dist, free, rank, ranked, c, n, spatial_weight, BN, BJ, C)
            passed = _barrier(counter, passed, C)
            leader = tl.load(ranked, cache_modifier=".cg")
            lowest = _score(sim, dist, leader, leader >= 0, spatial_weight)
            tau = (threshold + rounds * step).to(tl.float32)
            if lowest >= _LAST:  # only tokens that cannot be judged are left
                tau = _INFINITY
            start = 0
            before = size
            fresh = False
        found = _next(sim, dist, free, rank, start, tau, n, spatial_weight, BJ)
        if found == _NONE:
            rounds += 1
            if (size == before) & (lowest < _LAST):  # skip the rounds that cannot add anything
                skipped = tl.minimum((lowest.to(tl.float64) - threshold) / step, 1.0e9)
                rounds = tl.maximum(rounds, skipped.to(tl.int32))
            fresh = True
        else:
            start = found // B * B
            valid = (place < width) & (start + place < n - before)
            tokens = tl.load(ranked + start + place, mask=valid, other=0, cache_modifier=".cg")
            gram = _products(features, tokens, valid, tokens, valid, q, W, BQ, W)
            apart = _apart(places, tokens, valid, tokens, valid)
            similarity = tl.load(sim + tokens, mask=valid, other=0.0, cache_modifier=".cg")
            distance = tl.load(dist + tokens, mask=valid, other=0.0, cache_modifier=".cg")
            slot, size = _judge(
                similarity, distance, gram, apart, valid, tau, size, budget, spatial_weight, B, W
            )  # fmt: skip
            start += width
        passed = _barrier(counter, passed, C)  # everyone has read
        if not fresh:
            _show(features, places, sim, dist, near, free, order, tokens, slot, c, n, q, BN, BQ, W, C)
        passed = _barrier(counter, passed, C)  # everyone has written


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
) -> Expansion:
    """As `selection.expand` of each image, in one launch, always to the full budget, and without an error for NaN: see
    the module's text.

    features: float32 [I, N, q]. places: [I, N, 2], or [I, N, 3] of videos. pivots: long [I, P]. Of the Expansion, order
    is [I, R], nearest and similarity are [I, N]. Raises ValueError if a token batch or the pivots do not fit a window.
    """
    if max(pivots.shape[1], token_batch) > WINDOW:
        raise ValueError(
            f"token_batch={token_batch} and {pivots.shape[1]} pivots must both be at most {WINDOW} for the kernel; "
            "set VLM_PRUNER_KERNELS=off"
        )
    images, n, q = features.shape
    features = features.float().contiguous()
    if places.shape[2] == 2:
        places = torch.nn.functional.pad(places, (1, 0))
    floats = torch.empty(2, images, n, device=features.device)
    sim, dist = floats[0].fill_(-torch.inf), floats[1].fill_(torch.inf)
    free = torch.ones(images, n, dtype=torch.int32, device=features.device)
    rank, ranked = torch.zeros(2, images, n, dtype=torch.int32, device=features.device)
    near = torch.zeros(images, n, dtype=torch.long, device=features.device)
    order = torch.zeros(images, budget, dtype=torch.long, device=features.device)
    counters = torch.zeros(images, dtype=torch.int32, device=features.device)
    thresholds = torch.full((2,), threshold, dtype=torch.float64, device=features.device)
    thresholds[1:].fill_(threshold_step)  # filled on the device: a copy from the host could not be captured
    programs = _programs(features, images, n)
    _expand_kernel[(programs, images)](
        features, places.float().contiguous(), pivots.contiguous(), order, near, sim, dist, free, rank, ranked,
        counters, n, q, pivots.shape[1], budget, thresholds, spatial_weight,
        B=token_batch, W=WINDOW, BN=64, BJ=256, BQ=32, C=programs, num_warps=8,
    )  # fmt: skip
    near.scatter_(1, order, order)  # rounding may make a duplicate look closer to a kept token than the token itself
    return Expansion(order, near, sim)


def _programs(features: Tensor, images: int, tokens: int) -> int:
    """Programs for each image: one for each block of tokens, all of them together at most one per multiprocessor."""
    if not features.is_cuda:
        return 1
    processors = torch.cuda.get_device_properties(features.device).multi_processor_count
    return max(1, min(triton.cdiv(tokens, 64), processors // images))
