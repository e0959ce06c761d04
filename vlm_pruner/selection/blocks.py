"""Going through a large matrix in blocks of rows, so that no second copy of it is ever held."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**21  # 8 MB in float32: fits a processor's last cache, and is large enough to keep all cores busy


def row_blocks(matrix: Tensor, elements: int = BLOCK_ELEMENTS) -> Iterator[Tensor]:
    """`matrix` [N, d] in blocks of consecutive rows of at most `elements` numbers, each in float32 (or float64)."""
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    for block in matrix.split(max(1, elements // max(1, matrix.shape[1]))):
        yield block.to(dtype)
