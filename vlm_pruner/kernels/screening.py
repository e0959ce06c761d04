"""Channel screening on the GPU: each program owns a strip of channels and goes through the tokens twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import normalize


@triton.jit
def _spread_kernel(hidden, spread, n, d, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
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
    tl.store(spread + columns, squares, mask=inside)


def screen_channels(hidden: Tensor, channels: int) -> Tensor:
    """Unit rows [N, q], float32, on the channels of highest variance of `hidden` [N, d]; ties to the lowest index.

    The channels come from a stable sort and not from topk, which promises nothing about ties on a GPU.
    """
    hidden = hidden.contiguous()
    n, d = hidden.shape
    spread = torch.empty(d, dtype=torch.float32, device=hidden.device)
    _spread_kernel[(triton.cdiv(d, 32),)](hidden, spread, n, d, BLOCK_N=64, BLOCK_D=32)
    chosen = spread.argsort(descending=True, stable=True)[:channels]
    return normalize(hidden.index_select(1, chosen).float(), dim=1)
