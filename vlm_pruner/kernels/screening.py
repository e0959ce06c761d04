"""Channel screening on the GPU in three launches: channel variances, the q largest, and unit rows of these."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _spread_kernel(hidden, spread, n, d, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Grid (strips of channels, images). Passes over the tokens of hidden [I, n, d] twice; spread: [I, d]."""
    image = tl.program_id(1).to(tl.int64)
    hidden += image * n * d
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        mask = (rows < n)[:, None] & inside[None, :]
        block = tl.load(hidden + rows[:, None].to(tl.int64) * d + columns[None, :], mask=mask, other=0.0)
        total += tl.sum(block.to(tl.float32), axis=0)
    mean = total / n
    squares = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        mask = (rows < n)[:, None] & inside[None, :]
        block = tl.load(hidden + rows[:, None].to(tl.int64) * d + columns[None, :], mask=mask, other=0.0)
        deviation = tl.where(mask, block.to(tl.float32) - mean[None, :], 0.0)
        squares += tl.sum(deviation * deviation, axis=0)
    tl.store(spread + image * d + columns, squares, mask=inside)


@triton.jit
def _largest_kernel(spread, chosen, d, q, BLOCK_D: tl.constexpr):
    """One program per image. chosen [I, q] <- the channels of largest spread [I, d], ascending; ties to the lowest.

    Finds the q-th largest bit by bit: non-negative floats order like their bits, with NaN after infinity.
    """
    image = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < d
    values = tl.load(spread + image * d + columns, mask=inside, other=0.0)
    bits = tl.where(inside, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)
    smallest = q * 0
    for place in range(31):
        trial = smallest | (1 << (30 - place))
        enough = tl.sum((bits >= trial).to(tl.int32), axis=0) >= q
        smallest = tl.where(enough, trial, smallest)
    above, equal = bits > smallest, bits == smallest
    room = q - tl.sum(above.to(tl.int32), axis=0)
    taken = above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))
    rank = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(chosen + image * q + rank, columns, mask=taken)


@triton.jit
def _unit_kernel(hidden, chosen, unit, n, d, q, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Grid (blocks of tokens, images). unit [I, n, q] <- unit rows of the channels chosen [I, q], hidden: [I, n, d]."""
    image = tl.program_id(1).to(tl.int64)
    hidden += image * n * d
    chosen += image * q
    unit += image * n * q
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    places = tl.arange(0, BLOCK_Q)
    mask = (rows < n)[:, None] & (places < q)[None, :]
    channels = tl.load(chosen + places, mask=places < q, other=0)
    block = tl.load(hidden + rows[:, None].to(tl.int64) * d + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(block * block, axis=1))
    block = block / tl.maximum(norm, 1e-12)[:, None]
    tl.store(unit + rows[:, None].to(tl.int64) * q + places[None, :], block, mask=mask)


def screen_channels(hidden: Tensor, channels: int) -> Tensor:
    """Unit rows [I, N, q], float32, on each image's channels of highest variance, of `hidden` [I, N, d].

    Among equally varying channels the lower index wins.
    """
    hidden = hidden.contiguous()
    images, n, d = hidden.shape
    q = min(channels, d)
    spread = torch.empty(images, d, dtype=torch.float32, device=hidden.device)
    _spread_kernel[(triton.cdiv(d, 32), images)](hidden, spread, n, d, BLOCK_N=64, BLOCK_D=32)
    chosen = torch.empty(images, q, dtype=torch.int32, device=hidden.device)
    _largest_kernel[(images,)](spread, chosen, d, q, BLOCK_D=triton.next_power_of_2(d), num_warps=8)
    unit = torch.empty(images, n, q, dtype=torch.float32, device=hidden.device)
    width = triton.next_power_of_2(q)
    height = max(1, 2048 // width)  # tokens per program: a block of at most 2,048 numbers, unless rows are longer
    _unit_kernel[(triton.cdiv(n, height), images)](hidden, chosen, unit, n, d, q, BLOCK_N=height, BLOCK_Q=width)
    return unit
