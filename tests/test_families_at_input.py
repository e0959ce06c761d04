"""Dropping at the decoder's input (layer=0), and renumber=True, for every supported family.

The reference is the family's own decoder, given the embeddings of the tokens that stay and their positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vlm_pruner as vp
from tests.every_method import of_pictures
from tests.families import FAMILIES, MIXED, ONE, TWO, WORDS, Family, Picture, Prompt
from tests.running import dropped, prefill
from tests.test_families_dialogue import SECOND
from tests.tiny_qwen import text
from vlm_pruner.decoder.cache_names import cache_argument, cache_of
from vlm_pruner.errors import CacheError

pytestmark = pytest.mark.filterwarnings("ignore::vlm_pruner.decoder.pruning.PruningWarning")


def at_input(name: str) -> vp.methods.Pruner:
    """Kept rows stay as they were, also with methods that merge."""
    method = vp.methods.get(name)(keep_tokens=6, layer=0)
    return replace(method, self_weight=1.0) if hasattr(method, "self_weight") else method


AT_INPUT = [name for name in of_pictures() if vp.methods.get(name).needs <= {"embeddings"}]
METHODS = [at_input(name) for name in AT_INPUT if name != "pool"]  # whose rows are means
KEPT = at_input("vlm-pruner")
RENUMBERED = replace(KEPT, renumber=True)
LATER = replace(KEPT, layer=2, renumber=True)


def label(method):
    return f"{method.name}-{method.layer}" + "-renumbered" * method.renumber


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


def entering(family: Family, batch: dict[str, Tensor]) -> dict[str, Any]:
    """What the dense decoder is called with."""
    calls = []
    decoder = family.decoder(family.model)
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        family.model(**batch)
    hook.remove()
    [call] = calls
    return call


def of_kept_tokens(family: Family, batch: dict[str, Tensor], gone: set[int], renumber: bool) -> Tensor:
    """Logits [L, vocabulary] of the decoder without the tokens `gone` of a single row."""
    call = entering(family, batch)
    length = call["inputs_embeds"].shape[1]
    left = torch.tensor([i for i in range(length) if i not in gone])
    places = call.get("position_ids")
    places = torch.arange(length)[None] if places is None else places
    places = torch.arange(len(left)).expand(*places.shape[:-1], -1) if renumber else places[..., left]
    told = {"inputs_embeds": call["inputs_embeds"][:, left], "position_ids": places}
    told["attention_mask"] = torch.ones(len(left), len(left)).tril().bool()[None, None]  # gaps are no new prompts
    if call.get("deepstack_visual_embeds") is not None:
        visual = call["visual_pos_masks"]
        rows = (visual.flatten().cumsum(0) - 1)[left][visual[0, left]]
        told["visual_pos_masks"] = visual[:, left]
        told["deepstack_visual_embeds"] = [features[rows] for features in call["deepstack_visual_embeds"]]
    with torch.no_grad():
        return family.model.lm_head(family.decoder(family.model)(**told).last_hidden_state)[0]


@pytest.mark.parametrize("method", [*METHODS, RENUMBERED], ids=label)
def test_it_is_a_shorter_prompt(family, method):
    """With gaps in its positions; or, renumbered, with none."""
    for prompt in family.prompts.values():
        batch = family.inputs(prompt)
        with torch.no_grad(), vp.prune(family.model, method) as pruning:
            short = family.model(**batch).logits[0]
        gone = dropped(pruning.receipts[0].images)
        assert gone
        torch.testing.assert_close(short, of_kept_tokens(family, batch, gone, method.renumber), atol=1e-4, rtol=1e-4)


def test_positions_matter(family):
    batch = family.inputs(TWO)
    with torch.no_grad():
        found = []
        for method in (KEPT, RENUMBERED):
            with vp.prune(family.model, method):
                found.append(family.model(**batch).logits[0, -1])
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("method", [KEPT, RENUMBERED, LATER], ids=label)
@pytest.mark.parametrize("way", [{}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_decoding_goes_on_from_there(family, method, way):
    """In a ragged batch, or alone. Without a cache each step is a prefill of everything, and no state can be off."""
    prompts = [TWO, WORDS, MIXED if family.videos else ONE]
    asked: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5}
    with vp.prune(family.model, method):
        uncached = family.model.generate(**family.inputs(*prompts), **asked, use_cache=False)[:, -5:].tolist()
        if "prompt_lookup_num_tokens" in way:  # takes one row
            uncached, prompts = uncached[::2], prompts[::2]  # of words alone nothing is pruned
            found = [family.model.generate(**family.inputs(one), **asked, **way)[0, -5:].tolist() for one in prompts]
        else:
            found = family.model.generate(**family.inputs(*prompts), **asked, **way)[:, -5:].tolist()
    assert found == uncached


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
@pytest.mark.parametrize("method", [KEPT, RENUMBERED], ids=label)
def test_turns_equal_one_prompt(family, second, method):
    if second is SECOND["film"] and not family.videos:
        pytest.skip("takes no videos")
    turns = [TWO, second, text(4, 27)]
    with torch.no_grad(), vp.prune(family.model, method):
        cache = DynamicCache()
        for i in range(3):
            in_turns = turn(family, cache, turns[: i + 1], turns[i])
        whole = prefill(family, DynamicCache(), turns, turns)
    torch.testing.assert_close(in_turns, whole, atol=2e-4, rtol=1e-4)


def turn(family: Family, cache: DynamicCache, turns: list[Prompt], new: Prompt) -> Tensor:
    """Logits [vocabulary] after `turns`, the last of which is `new`; the cache may hold fewer tokens than the rest."""
    whole, length = family.dialogue(*turns), family.dialogue(new)["input_ids"].shape[1]
    start = whole["input_ids"].shape[1] - length
    call = {"input_ids": whole["input_ids"][:, start:], **family.seen(family.inputs(new))}
    call |= family.positions(family.model, whole, start)
    return family.model(**call, **cache_argument(cache), use_cache=True).logits[0, -1]


@pytest.mark.parametrize("method", [KEPT, RENUMBERED, replace(KEPT, keep_tokens=11)], ids=["kept", "renumbered", "11"])
def test_words_fed_by_hand_need_no_positions(family, method):
    """After a picture, and after a second one, which may be too small to be pruned (at a budget of 11)."""
    first: Prompt = [*text(4, 1), Picture(0, 1), *text(3, 2)]
    second: Prompt = [*text(2, 3), Picture(1, 2), *text(2, 4)]
    words = text(3, 70)
    with torch.no_grad(), vp.prune(family.model, method):
        for turns in ([first], [first, second]):
            cache = DynamicCache()
            for i in range(len(turns)):
                turn(family, cache, turns[: i + 1], turns[i])
            for word in words:
                call = {"input_ids": torch.tensor([[word]]), **cache_argument(cache), "use_cache": True}
                stepwise = family.model(**call).logits[0, -1]
            whole = family.model(**family.dialogue(*turns, words)).logits[0, -1]
            torch.testing.assert_close(stepwise, whole, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.name.startswith("qwen")], ids=lambda one: one.name)
def test_rows_of_words_fed_by_hand_need_no_positions(family):
    """Rows that are padded, and lose differently many tokens, go on each from its own position."""
    prompts, words = [TWO, ONE], [text(2, 71), text(2, 72)]
    with torch.no_grad(), vp.prune(family.model, KEPT):
        cache = DynamicCache()
        family.model(**family.inputs(*prompts), **cache_argument(cache), use_cache=True)
        call = {"input_ids": torch.tensor(words), **cache_argument(cache), "use_cache": True}
        together = family.model(**call).logits[:, -1]
        for row in range(2):
            alone = family.model(**family.dialogue(prompts[row], words[row])).logits[0, -1]
            torch.testing.assert_close(together[row], alone, atol=2e-4, rtol=1e-4)


def test_a_conversation_that_generate_would_cut_wrongly_is_refused(family):
    """`generate` feeds what lies behind the first layer's length, which is too much here."""
    with vp.prune(family.model, KEPT):
        out = family.model.generate(
            **family.inputs(ONE), max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        )
        longer = torch.cat([out.sequences, torch.tensor([text(3, 70)])], dim=1)
        with pytest.raises(CacheError, match="continued by hand"):
            family.model.generate(input_ids=longer, **cache_argument(cache_of(out)), max_new_tokens=2)
