"""Channel screening: compares tokens on the channels that vary most over the picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlm_pruner.selection.blocks import row_blocks


def screen_channels(hidden: Tensor, channels: int) -> Tensor:
    """Unit rows [N, q] of the `screened` channels: their inner products are the cosine similarities M_ij."""
    return to_unit(screened(hidden, channels))


def screened(hidden: Tensor, channels: int) -> Tensor:
    """A copy [N, q] of the q = min(channels, d) channels of highest variance of `hidden` [N, d].

    Among equally varying channels the lower index wins. In float32, or float64 if `hidden` is.
    """
    chosen = largest_channels(channel_spread(hidden), channels)
    return hidden.index_select(1, chosen).to(torch.promote_types(hidden.dtype, torch.float32))


def to_unit(rows: Tensor) -> Tensor:
    """Scales `rows` [N, q] to length 1, in place."""
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1e-12))


def channel_spread(hidden: Tensor) -> Tensor:
    """[d], sum over tokens of the squared deviation from the channel's mean; ranks channels as variance does.

    Takes deviations before squares: the sum of squares minus the squared mean would cancel on the few channels of a
    decoder whose mean is a thousand times their variation.
    """
    sums = [block.sum(dim=0) for block in row_blocks(hidden)]
    mean = _total(sums) / len(hidden)
    return _total([(block - mean).square_().sum(dim=0) for block in row_blocks(hidden)])


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


def largest_channels(spread: Tensor, channels: int) -> Tensor:
    """Long [q], ascending: the q = min(channels, d) channels of largest `spread` [d], ties to the lowest index.

    NaN counts as the largest, so that it stays visible.
    """
    values = spread.cpu().numpy()
    count = min(channels, len(values))
    smallest = np.partition(values, -count)[-count]
    chosen = (values >= smallest).nonzero()[0]
    if len(chosen) != count:  # several channels tie for the smallest, or there are NaNs
        values = np.where(np.isnan(values), np.inf, values)
        chosen = np.sort((-values).argsort(kind="stable")[:count])
    return torch.from_numpy(chosen).to(spread.device)
