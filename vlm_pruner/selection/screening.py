"""Channel screening: similarity is measured on the channels that vary most over the picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.selection.blocks import row_blocks


def screen_channels(hidden: Tensor, channels: int) -> Tensor:
    """Unit rows [N, q] on the q = min(channels, d) channels of highest variance of `hidden` [N, d].

    Inner products of the rows are the cosine similarities M_ij. Of equally varying channels the lower index wins.
    The rows are float32, or float64 if `hidden` is.
    """
    chosen = largest_channels(channel_spread(hidden), channels)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return normalize(hidden.index_select(1, chosen).to(dtype), dim=1)


def channel_spread(hidden: Tensor) -> Tensor:
    """[d], sum over tokens of the squared deviation from the channel's mean: ranks the channels as variance does.

    Deviations first, squares afterwards: the sum of squares minus the squared mean would cancel on the few channels
    of a decoder whose mean is a thousand times what they vary by.
    """
    mean = sum(block.sum(dim=0) for block in row_blocks(hidden)) / hidden.shape[0]
    return torch.stack([(block - mean).square_().sum(dim=0) for block in row_blocks(hidden)]).sum(dim=0)


def largest_channels(spread: Tensor, channels: int) -> Tensor:
    """Long [q], ascending: the q = min(channels, d) channels of largest `spread` [d], of equal ones the lowest."""
    count = min(channels, spread.numel())
    smallest = spread.topk(count).values[-1]
    chosen = (spread >= smallest).nonzero().squeeze(1)
    if chosen.numel() != count:  # several channels equal the smallest, or there are NaNs
        chosen = spread.argsort(descending=True, stable=True)[:count].sort().values
    return chosen
