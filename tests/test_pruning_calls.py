"""Pruning's cost in Python calls: at most one more per decoder layer, in any forward call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlavaForConditionalGeneration

import vlm_pruner as vp
from tests import tiny_llava
from vlm_pruner.decoder.cache_names import cache_argument, with_cache

PACKAGE = str(Path(vp.__file__).parent)
FEW, MANY = 4, 12  # decoder layers


def calls_of_ours(run: Callable[[], object]) -> int:
    """How often `run` enters a function of the package; a generator counts whenever it is resumed."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def model_of(layers: int) -> LlavaForConditionalGeneration:
    config = tiny_llava.tiny_llava().config
    config.text_config.num_hidden_layers = layers
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


def prefill_and_step(layers: int, method: vp.Pruner) -> tuple[int, int]:
    """Calls in a prefill with a picture, and in the step of decoding that follows."""
    model, cache = model_of(layers), DynamicCache()
    prompt = tiny_llava.inputs(tiny_llava.prompt(), images=[0])
    with torch.no_grad(), vp.prune(model, method) as pruning:
        prefill = calls_of_ours(lambda: model(**with_cache(prompt, cache)))
        step = calls_of_ours(lambda: model(input_ids=torch.tensor([[5]]), **cache_argument(cache)))
    assert len(pruning.receipts) == 1 and cache.get_seq_length(layers - 1) == pruning.receipts[0].tokens_after + 1
    return prefill, step


@pytest.mark.parametrize("keep", [8, tiny_llava.N], ids=["pruned", "all kept"])
def test_another_layer_costs_at_most_one_call(keep):
    method = vp.CentrifugalPruner(keep_tokens=keep)
    for few, many in zip(prefill_and_step(FEW, method), prefill_and_step(MANY, method), strict=True):
        assert 0 < few < many <= few + (MANY - FEW)


def test_the_count_sees_every_call():
    layout = vp.TokenLayout.grid(2, 2)
    assert calls_of_ours(lambda: [len(layout) for _ in range(7)]) == 7
    assert calls_of_ours(lambda: [abs(-1) for _ in range(7)]) == 0
