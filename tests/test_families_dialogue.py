"""Dialogue, for every supported family: turns that continue the cache equal the dialogue as one prompt.

docs/pruning_semantics.md has the definition. Qwen's own tests, in test_qwen_pruning.py, add batches of dialogues.
"""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import vlm_pruner as vp
from tests.families import FAMILIES, FILM, ONE, TWO, Family, Film, Picture, Prompt
from tests.running import prefill
from tests.tiny_qwen import text
from vlm_pruner.decoder.cache_names import cache_argument

METHOD = vp.CentrifugalPruner(keep_tokens=6)
SECOND: dict[str, Prompt] = {
    "words": text(6, 20),
    "image": [*text(2, 21), Picture(1, 8), *text(3, 22)],
    "images": [Picture(2, 9), *text(2, 23), Picture(0, 10), *text(1, 24)],
    "film": [*text(2, 25), Film(11), *text(3, 26)],
}
pytestmark = [
    pytest.mark.column("dialogue"),
    pytest.mark.filterwarnings("ignore::vlm_pruner.decoder.pruning.PruningWarning"),
]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
@pytest.mark.parametrize("method", [METHOD, vp.CentrifugalPruner(reduction_ratio=0.5, layer=1)], ids=["two", "one"])
def test_turns_equal_one_prompt(family, second, method):
    if second is SECOND["film"] and not family.videos:
        pytest.skip("takes no videos")
    turns = [FILM if family.videos else TWO, second, text(4, 27)]
    with torch.no_grad(), vp.prune(family.model, method) as pruning:
        cache = DynamicCache()
        for i in range(3):
            in_turns = prefill(family, cache, turns[: i + 1], turns[i : i + 1])
    with torch.no_grad(), vp.prune(family.model, method) as at_once:
        whole = prefill(family, DynamicCache(), turns, turns)
    kept = [one.indices for receipt in pruning.receipts for one in receipt.images]
    assert kept == [one.indices for one in at_once.receipts[0].images]
    torch.testing.assert_close(in_turns, whole, atol=2e-4, rtol=1e-4)


def answer(family: Family, **call) -> list[int]:
    out = family.model.generate(**call, do_sample=False, max_new_tokens=4)
    return out[0, -4:].tolist()


@pytest.mark.parametrize("second", [SECOND["words"], SECOND["image"]], ids=["words", "image"])
def test_generate_goes_on_with_the_cache(family, second):
    """Ids of the whole dialogue, pictures of the new turn alone: the cache has the others."""
    if second is SECOND["image"] and family.name.startswith("qwen"):
        pytest.skip("takes the new pictures' features: test_qwen_model.py")
    cache = DynamicCache()
    with vp.prune(family.model, METHOD):
        first = answer(family, **family.inputs(ONE), **cache_argument(cache))
        turns = [ONE, first, second]
        whole = family.dialogue(*turns)
        new = family.seen(family.inputs(second))
        told = {name: whole[name] for name in ("input_ids", "attention_mask")}
        went_on = answer(family, **told, **new, **cache_argument(cache))
        assert went_on == answer(family, **whole)
