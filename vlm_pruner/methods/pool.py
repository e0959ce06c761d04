"""Mean pooling: the picture at a lower resolution, made of its tokens. A baseline that chooses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.selection.standing import group_means


@register("pool")
@dataclass(frozen=True)
class PoolPruner(Pruner):
    """Cuts each picture into as many cells as the budget has tokens, and replaces each cell by the mean of its tokens.

    Cells are rectangles of nearly equal size and shape: 64 of 24 x 24 tokens are 3 x 3 each. A video's frames are not
    mixed unless there are more frames than tokens. The mean stands at the position of the token in the middle of its
    cell. By default before the decoder; with layer=K the layers below K read the whole picture.
    """

    layer: int = 0

    @torch.no_grad()
    def select(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> Selection:
        cell = torch.tensor(pooling_cells(layout, budget), device="cpu")
        middles = cell_middles(layout.coords, cell, budget)
        rank = middles.argsort().argsort()  # cells by their position in `indices`
        return Selection.of(middles.to(hidden.device), nearest=rank[cell].to(hidden.device))

    def merge(self, hidden: Tensor, selection: Selection) -> Tensor:
        assert selection.nearest is not None
        return group_means(hidden.float(), selection.nearest, len(selection.indices)).to(hidden.dtype)


def pooling_cells(layout: TokenLayout, budget: int) -> list[int]:
    """The cell of each of the layout's tokens, numbered from 0 to budget - 1 in reading order; no cell is empty."""
    *frame, x, y = layout.coords.T.tolist()
    axes = [*frame, y, x]
    cells = [0] * len(layout)
    for number, tokens in enumerate(_cut(list(range(len(layout))), axes, budget)):
        for token in tokens:
            cells[token] = number
    return cells


def cell_middles(coords: Tensor, cell: Tensor, count: int) -> Tensor:
    """Long [count]: the token nearest to the middle of each cell, the first of equally near ones.

    coords: [N, 2 or 3]. cell: long [N], each token's.
    """
    means = group_means(coords.cpu(), cell, count)
    apart = (coords.cpu() - means[cell]).pow(2).sum(dim=1)
    order = apart.argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]  # by cell, then by distance
    return order[torch.searchsorted(cell[order], torch.arange(count, device="cpu"))]


def _cut(tokens: list[int], axes: Sequence[Sequence[float]], count: int) -> list[list[int]]:
    """`count` groups of `tokens`, none empty: bands along the first axis, each cut along the others."""
    if count == 1:
        return [tokens]
    along, *others = axes
    lines: dict[float, list[int]] = {}
    for token in sorted(tokens, key=along.__getitem__):
        lines.setdefault(along[token], []).append(token)
    if not others:
        units = list(lines.values()) if count <= len(lines) else [[token] for line in lines.values() for token in line]
        return _bands(units, count)
    bands = _bands(list(lines.values()), _bands_wanted(tokens, lines, others, count))
    cut = []
    for band, cells in zip(bands, _shares([len(band) for band in bands], count), strict=True):
        cut += _cut(band, others, cells)
    return cut


def _bands_wanted(
    tokens: list[int], lines: dict[float, list[int]], others: Sequence[Sequence[float]], count: int
) -> int:
    """How many bands make `count` cells as square as the axes allow. Frames are never joined unless they must be."""
    if len(others) > 1:
        return min(len(lines), count)
    height, width = len(lines), len({others[0][token] for token in tokens})
    return max(1, min(height, count, round((count * height / width) ** 0.5)))


def _bands(lines: list[list[int]], count: int) -> list[list[int]]:
    """`count` runs of neighbouring lines, of as equal numbers of lines as possible."""
    ends = [len(lines) * (band + 1) // count for band in range(count)]
    return [
        [token for line in lines[start:end] for token in line] for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """Splits `count` in proportion to `sizes`: at least 1 and at most the size each, by largest remainder."""
    total = sum(sizes)
    shares = [max(1, min(size, count * size // total)) for size in sizes]
    while sum(shares) != count:
        step = 1 if sum(shares) < count else -1
        able = [i for i, share in enumerate(shares) if (share < sizes[i] if step > 0 else share > 1)]
        most = max(able, key=lambda i: step * (count * sizes[i] / total - shares[i]))
        shares[most] += step
    return shares
