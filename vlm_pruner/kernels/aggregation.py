"""Similarity-weighted aggregation on the GPU: each program computes one kept token's row, or a strip of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LEAST = tl.constexpr(1.1754944e-38)  # the smallest normal number


@triton.jit
def _fold_kernel(
    hidden, indices, nearest, similarity, out, n, d, self_weight, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr
):  # fmt: skip
    """Grid (kept tokens, strips of channels, images). hidden: [I, n, d], indices: [I, R], out: [I, R, d].

    Each program scans all of nearest [I, n] for its tokens, cheap compared to their rows, and adds BLOCK_T at once.
    """
    j = tl.program_id(0)
    count = tl.num_programs(0)
    image = tl.program_id(2).to(tl.int64)
    hidden += image * n * d
    nearest += image * n
    similarity += image * n
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d
    kept = tl.load(indices + image * count + j)
    total = 0.0
    summed = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        mine = (tl.load(nearest + tokens, mask=tokens < n, other=-1) == j) & (tokens != kept)
        left = tl.sum(mine.to(tl.int32), axis=0)
        for first in range(0, left, BLOCK_T):
            turn = tl.cumsum(mine.to(tl.int32), axis=0) - 1
            slot = first + tl.arange(0, BLOCK_T)
            there = slot < left
            token = tl.sum(tl.where(mine[:, None] & (turn[:, None] == slot[None, :]), tokens[:, None], 0), axis=0)
            weight = tl.maximum(tl.load(similarity + token, mask=there, other=0.0).to(tl.float32), 0.0)
            cells = token[:, None].to(tl.int64) * d + columns[None, :]
            rows = tl.load(hidden + cells, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
            total += tl.sum(weight, axis=0)
            summed += tl.sum(weight[:, None] * rows, axis=0)
    own = tl.load(hidden + kept * d + columns, mask=inside, other=0.0)
    folded = self_weight * own.to(tl.float32) + (1 - self_weight) * (summed / tl.maximum(total, _LEAST))
    folded = tl.where(total > 0, folded, own.to(tl.float32))
    tl.store(out + (image * count + j) * d + columns, folded.to(own.dtype), mask=inside)


def fold(hidden: Tensor, indices: Tensor, nearest: Tensor, similarity: Tensor, self_weight: float) -> Tensor:
    """[I, R, d], as `selection.fold` of each image: hidden [I, N, d], indices [I, R], nearest, similarity [I, N].

    Sums in float32, in an order that the sizes decide, so repeated runs give the same bits. Has no gradient and does
    not support negative weights.
    """
    hidden, indices = hidden.contiguous(), indices.contiguous()
    nearest, similarity = nearest.contiguous(), similarity.contiguous()
    (images, r), (n, d) = indices.shape, hidden.shape[1:]
    out = torch.empty(images, r, d, dtype=hidden.dtype, device=hidden.device)
    block = min(1024, triton.next_power_of_2(d))
    _fold_kernel[(r, triton.cdiv(d, block), images)](
        hidden, indices, nearest, similarity, out, n, d, self_weight, BLOCK_N=256, BLOCK_D=block, BLOCK_T=8
    )
    return out
