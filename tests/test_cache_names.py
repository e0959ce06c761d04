"""The cache under both of its names: transformers' since 5.24, and the one before."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import vlm_pruner as vp
from tests import llava_tiny
from tests.families import FAMILIES, ONE, Family
from tests.tiny_qwen import text
from tests.versions import at_least
from vlm_pruner.decoder.cache_names import cache_argument, cache_of, with_cache

NAMES = ["past_key_values"] + ["cache"] * at_least("5.24")
METHOD = vp.CentrifugalPruner(keep_tokens=6)
# In the tests of other modules our own calls use the current name, and a warning of its going would fail them.
pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")


def test_a_call_keeps_the_name_that_it_came_with() -> None:
    assert with_cache({"past_key_values": 1, "x": 2}, 3) == {"past_key_values": 3, "x": 2}
    assert with_cache({"cache": None, "x": 2}, 3) == {"cache": 3, "x": 2}
    assert with_cache({"x": 2}, 3) == {"x": 2, **cache_argument(3)}
    assert cache_of({"x": 2}) is None and cache_of({"past_key_values": 1}) == 1
    assert cache_of({"past_key_values": 1, "cache": 2}) == 2


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("name", NAMES)
def test_a_caller_may_use_either(family: Family, name: str) -> None:
    """A prefill, and a step that continues its cache, as with the cache that the model makes itself."""
    model, batch, word = family.model, family.inputs(ONE), torch.tensor([text(1, 9)])
    ours = DynamicCache()
    with torch.no_grad(), vp.prune(model, METHOD) as pruning:
        first = model(**batch, **{name: ours}, use_cache=True)
        step = model(input_ids=word, **{name: ours}, use_cache=True)
        wanted = model(**batch, use_cache=True)
        wanted_step = model(input_ids=word, **cache_argument(cache_of(wanted)), use_cache=True)
    assert [receipt.images[0].n_after for receipt in pruning.receipts] == [6, 6]
    assert torch.equal(first.logits, wanted.logits) and torch.equal(step.logits, wanted_step.logits)
    assert ours.get_seq_length(0) - ours.get_seq_length(2) == pruning.receipts[0].images[0].n_before - 6


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_llavas_own_model_takes_both_whichever_transformers_is_installed(name: str) -> None:
    model = llava_tiny.model()
    ids, cache = llava_tiny.prompt_ids(), DynamicCache()
    with torch.no_grad():
        model(ids, images=llava_tiny.pixels(0), **{name: cache})
    assert cache.get_seq_length(0) > ids.shape[1]
