"""Shortening a batch: the host never waits for a GPU between the layers' output and the short sequence.

Tensors on torch's meta device show it, without a GPU: they have shapes and no contents, and any code that asks for a
number that only the device would know, or for a copy on the host, gets an error.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from vlm_pruner import TokenLayout
from vlm_pruner.decoder.image_states import plan
from vlm_pruner.decoder.layer_call import KeyTap, LayerCall
from vlm_pruner.decoder.short_caches import ShortCaches
from vlm_pruner.decoder.stage import Run, Stage, pack
from vlm_pruner.geometry.layout import VisualSpan
from vlm_pruner.methods.base import Pruner, Selection

GRID = TokenLayout.grid(3, 4)
META = torch.device("meta")


class OnTheDevice(Pruner):
    """Chooses without waiting, as the GPU kernels do: what it keeps is on the device."""

    def choose(self, view):
        return Selection.of(view.hidden.sum(dim=1).argsort()[: view.budget])


def shorten_without_contents(spans, layers=(2,)):
    class Method(OnTheDevice):
        def layers(self, depth):
            return layers

        def budgets(self, tokens, depth, rounding):
            return tuple(5 - number for number in range(len(layers)))

    method = Method(keep_tokens=5)
    decoder = SimpleNamespace(config=LlamaConfig(attn_implementation="sdpa"))
    run = Run(plan(spans, method, depth=8), tap=KeyTap(None))
    keys = torch.empty(2, 2, 30, 8, device=META)
    run.tap.update(keys, keys)
    phases = tuple(torch.empty(1, 30, 8, device=META) for _ in range(2))
    call = LayerCall(None, 2, (torch.empty(2, 30, 16, device=META),), {"position_embeddings": phases})
    return Stage(decoder, method, 2, ShortCaches(object()), None).cut(call, run), run


def test_the_host_does_not_wait_for_rows_that_keep_equally_many():
    call, _ = shorten_without_contents([[VisualSpan(3, 12, GRID)], [VisualSpan(9, 12, GRID)]])
    assert call.hidden.shape == (2, 23, 16) and call.hidden.is_meta and call.kwargs["attention_mask"] is None
    assert [part.shape for part in call.phases] == [(2, 23, 8)] * 2


def test_nor_for_rows_that_keep_different_numbers():
    """What comes after packing is transformers' own mask, which looks at the padding."""
    spans = [[VisualSpan(3, 12, GRID), VisualSpan(16, 12, GRID)], [VisualSpan(0, 12, GRID)]]
    tasks = plan(spans, OnTheDevice(keep_tokens=5), depth=8)
    chosen = {number: Selection.of(torch.empty(5, dtype=torch.long, device=META)) for number in range(3)}
    packing = pack(tasks, chosen, [0, 0], torch.empty(2, 30, 16, device=META))
    assert packing.index.shape == packing.valid.shape == (2, 23)


def test_nor_for_a_span_with_text_in_it():
    offsets = torch.tensor([0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15])
    spans = [[VisualSpan(3, 12, GRID, offsets)], [VisualSpan(9, 12, GRID)]]
    assert shorten_without_contents(spans)[0].hidden.shape == (2, 23, 16)


def test_the_probe_notices_a_wait():
    """Where the tokens left are is read when another stage is to come."""
    spans = [[VisualSpan(3, 12, GRID)], [VisualSpan(9, 12, GRID)]]
    with pytest.raises(NotImplementedError, match="meta tensor"):
        shorten_without_contents(spans, layers=(2, 4))
