"""Column-pivoted QR: each kept token removes from all others the part that it explains."""

from __future__ import annotations

import torch
from torch import Tensor

EXPLAINED = 1e-9  # relative to the longest row's squared length: anything below is rounding


def order_by_residual(rows: Tensor, count: int) -> Tensor:
    """Order [count] of `rows` [N, q] in which each has the longest part outside the span of the previous ones.

    Rows of rank r are all explained after r steps; the others then restart whole. Ties go to the lowest
    index. Time O(N * count * q), memory O(N * q). `count` is at most N.
    """
    rest, size = rows, rows.square().sum(dim=1)
    whole = size
    floor = EXPLAINED * whole.amax()
    free = torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)
    order = []
    for _ in range(count):
        explained = size.masked_fill(~free, -torch.inf).amax() <= floor
        rest, size = torch.where(explained, rows, rest), torch.where(explained, whole, size)
        chosen = size.masked_fill(~free, -torch.inf).argmax()
        free[chosen] = False
        order.append(chosen)
        direction = torch.nn.functional.normalize(rest[chosen], dim=0)
        rest = rest - torch.outer(rest @ direction, direction)
        size = rest.square().sum(dim=1)
    return torch.stack(order)
