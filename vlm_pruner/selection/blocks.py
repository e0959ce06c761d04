"""Processes a large matrix in blocks of rows, so that no second copy of it exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**21  # 8 MB in float32: fits into a processor's last-level cache, and keeps all cores busy


def row_blocks(matrix: Tensor) -> Iterator[Tensor]:
    """Yields `matrix` [N, d] in blocks of consecutive rows, each in float32 (or float64)."""
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    for block in matrix.split(max(1, BLOCK_ELEMENTS // matrix.shape[1])):
        yield block.to(dtype)


def for_each_row(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """[N]: applies `function`, from a block [n, d] to [n], to all blocks of `matrix` [N, d]."""
    parts = [function(block) for block in row_blocks(matrix)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
