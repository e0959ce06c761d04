"""Mean pooling: cells that tile the picture, and rows that are their means."""

from __future__ import annotations

import pytest
import torch

import vlm_pruner as vp
from vlm_pruner.geometry.tiles import unpadded_layout
from vlm_pruner.geometry.videos import video_layout
from vlm_pruner.methods.pool import pooling_cells

Pool = vp.methods.get("pool")
LAYOUTS = {
    "square": vp.TokenLayout.grid(24, 24),
    "wide": vp.TokenLayout.grid(3, 17),
    "column": vp.TokenLayout.grid(19, 1),
    "tiles": unpadded_layout(5, 7, 9),
    "video": vp.TokenLayout.video(3, 4, 5),
    "video with newlines": video_layout(2, 4, "grid"),
}


def by_hand(layout: vp.TokenLayout, cells: list[int], hidden: torch.Tensor, count: int) -> torch.Tensor:
    return torch.stack([hidden[[i for i, c in enumerate(cells) if c == cell]].mean(dim=0) for cell in range(count)])


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_budget_is_met_by_cells_that_are_not_empty(name: str) -> None:
    layout = LAYOUTS[name]
    for budget in {1, 2, 3, 5, 7, len(layout) // 2, len(layout) - 1, len(layout)}:
        cells = pooling_cells(layout, budget)
        assert len(cells) == len(layout) and set(cells) == set(range(budget))
        hidden = torch.randn(len(layout), 6, generator=torch.Generator().manual_seed(budget))
        method = Pool(keep_tokens=budget)
        selection = method.select(hidden, hidden, layout, budget)
        assert selection.indices.tolist() == sorted(set(selection.order.tolist()))
        assert all(cells[token] == cell for cell, token in enumerate(selection.order.tolist()))
        wanted = by_hand(layout, cells, hidden, budget)[selection.order.argsort()]
        torch.testing.assert_close(method.merge(hidden, selection), wanted)


@pytest.mark.parametrize(("side", "budget", "block"), [(24, 144, 2), (24, 64, 3), (24, 16, 6), (8, 16, 2)])
def test_where_squares_fit_it_is_average_pooling(side: int, budget: int, block: int) -> None:
    hidden = torch.randn(side * side, 5, generator=torch.Generator().manual_seed(0))
    method = Pool(keep_tokens=budget)
    selection = method.select(hidden, hidden, vp.TokenLayout.grid(side, side), budget)
    picture = hidden.T.reshape(1, 5, side, side)
    wanted = torch.nn.functional.avg_pool2d(picture, block)[0].flatten(1).T
    torch.testing.assert_close(method.merge(hidden, selection)[selection.order.argsort().argsort()], wanted)


def test_cells_are_rectangles_of_nearly_one_shape() -> None:
    layout = LAYOUTS["square"]
    cells = torch.tensor(pooling_cells(layout, 192))
    for cell in range(192):
        own = layout.coords[cells == cell]
        width, height = (own.max(dim=0).values - own.min(dim=0).values + 1).tolist()
        assert len(own) == width * height and {width, height} <= {1, 2, 3} and len(own) in (2, 3, 4)


def test_all_tokens_are_themselves() -> None:
    hidden = torch.randn(35, 4)
    selection = Pool(keep_tokens=35).select(hidden, hidden, vp.TokenLayout.grid(5, 7), 35)
    assert selection.indices.tolist() == list(range(35))
    assert torch.equal(Pool(keep_tokens=35).merge(hidden, selection), hidden)


def test_frames_are_not_mixed() -> None:
    layout = LAYOUTS["video"]
    cells = pooling_cells(layout, 7)
    frames = [{int(layout.coords[i, 0]) for i, c in enumerate(cells) if c == cell} for cell in range(7)]
    assert all(len(own) == 1 for own in frames) and len(set.union(*frames)) == 3
