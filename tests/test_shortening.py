"""Shortening a batch: the host waits for no GPU between the layers' results and the short sequence.

Tensors on torch's meta device show it, without a GPU: they have shapes and no contents, and whoever asks for a number
that only the device would know, or for a copy on the host, gets an error.
"""

from __future__ import annotations

import pytest
import torch

from vlm_pruner import TokenLayout
from vlm_pruner.decoder.shortening import plan, shorten
from vlm_pruner.geometry.layout import VisualSpan
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.methods.view import View

GRID = TokenLayout.grid(3, 4)


class OnTheDevice(Pruner):
    """Chooses without waiting, as the GPU kernels do: what it keeps is on the device."""

    def choose(self, view):
        chosen = view.hidden.sum(dim=1).argsort()[: view.budget]
        return Selection(chosen.sort().values, chosen)


def shorten_without_contents(spans, visible=None, layers=(2,)):
    class Method(OnTheDevice):
        def layers(self, depth):
            return layers

        def budgets(self, tokens, depth, rounding):
            return tuple(5 - number for number in range(len(layers)))

    method = Method(keep_tokens=5)
    tasks = plan(spans, method, depth=8)
    hidden = torch.empty(2, 30, 16, device="meta")

    def look(task):
        rows = hidden[task.row, task.span.index(hidden.device)]
        return View(rows, rows, task.span.layout, task.budget)

    visible = None if visible is None else torch.empty(2, 30, dtype=torch.bool, device="meta")
    return shorten(hidden, visible, tasks, method, 2, look)


def test_the_host_does_not_wait_for_rows_that_keep_equally_many_or_not():
    short = shorten_without_contents([[VisualSpan(3, 12, GRID)], [VisualSpan(9, 12, GRID)]])
    assert short.hidden.shape == (2, 23, 16) and short.hidden.is_meta and short.packing.valid is None
    short = shorten_without_contents([[VisualSpan(3, 12, GRID), VisualSpan(16, 12, GRID)], [VisualSpan(0, 12, GRID)]])
    assert short.hidden.shape == (2, 23, 16) and short.packing.valid.shape == (2, 23)


def test_nor_for_a_span_with_text_in_it():
    offsets = torch.tensor([0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15])
    spans = [[VisualSpan(3, 12, GRID, offsets)], [VisualSpan(9, 12, GRID)]]
    assert shorten_without_contents(spans).hidden.shape == (2, 23, 16)


@pytest.mark.parametrize("case", [{"visible": True}, {"layers": (2, 4)}], ids=["padding", "another stage"])
def test_the_meta_device_notices_a_wait(case):
    """Padding is counted, and the next stage told where tokens are, on the host: known waits, which must show here."""
    spans = [[VisualSpan(3, 12, GRID)], [VisualSpan(9, 12, GRID)]]
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        shorten_without_contents(spans, **case)
