"""Methods of several stages, and of the vision tower: receipts over stages, and what a call leaves behind."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from transformers import DynamicCache

import vlm_pruner as vp
from tests.every_method import KEEP, label, make, of_decoder, of_tower
from tests.families import FAMILIES, ONE
from tests.tiny_llava import IMAGE, inputs, prompt, tiny_llava
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.decoder.towers import TowerOutput, TowerTap
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection


@dataclass(frozen=True)
class TwoThirdsThenOne(Pruner):
    """Of a picture's tokens two thirds before layer 1 and one third before layer 3, drawn in no order."""

    def layers(self, depth):
        return (1, 3)

    def budgets(self, tokens, depth, rounding="round"):
        return (2 * tokens // 3, tokens // 3)

    def select(self, hidden, keys, layout, budget):
        return Selection.of(torch.randperm(len(hidden), generator=torch.Generator().manual_seed(0))[:budget])


STAGED = [TwoThirdsThenOne(keep_tokens=1)]
STAGED += [make(method.name, keep_tokens=4) for method in of_decoder() if len(method.layers(4)) > 1]
TOWER = of_tower()

methods_of_stages = pytest.mark.parametrize("method", STAGED, ids=lambda method: type(method).__name__)
every_method = pytest.mark.parametrize("method", [*STAGED, *of_decoder(), *TOWER], ids=label)
tower_methods = pytest.mark.parametrize("method", TOWER, ids=label)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@methods_of_stages
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_receipt_keeps_the_last_stages_order_in_the_whole_picture(family, method, monkeypatch):
    made, choose = [], type(method).choose

    def noted(self, view):
        made.append(choose(self, view))
        return made[-1]

    monkeypatch.setattr(type(method), "choose", noted)
    batch = family.inputs(ONE)
    with torch.no_grad(), vp.prune(family.model, method) as pruning:
        family.model(**batch)
    (kept,) = pruning.receipts[0].images
    here = torch.arange(kept.n_before)
    for selection in made:
        order, here = here[selection.order], here[selection.indices]
    assert len(made) > 1 and kept.order == order.tolist() and kept.indices == here.tolist()
    assert kept.order != kept.indices or type(method) is not TwoThirdsThenOne, (
        "an ascending order would hide a lost one"
    )
    assert pruning.receipts[0].tokens_before == batch["input_ids"].shape[1]


@every_method
def test_without_a_cache_every_step_is_a_prefill_of_one_token_more(model, method):
    batch = inputs(prompt(), images=[0])
    with vp.prune(model, method) as pruning:
        model.generate(**batch, max_new_tokens=3, do_sample=False, use_cache=False, suppress_tokens=[IMAGE])
    length = batch["input_ids"].shape[1]
    assert [receipt.tokens_before for receipt in pruning.receipts] == [length, length + 1, length + 2]
    dropped = {receipt.tokens_before - receipt.tokens_after for receipt in pruning.receipts}
    assert len(dropped) == 1 and min(dropped) > 0


@methods_of_stages
@pytest.mark.usefixtures("only_new_objects")
def test_a_call_that_fails_between_stages_leaves_no_tensor_behind(model, method):
    """The context stays open, and the next call is that of a fresh one."""
    batch, cache = inputs(prompt(), images=[0]), DynamicCache()
    before_last = method.layers(4)[-1] - 1
    with torch.no_grad(), vp.prune(model, method) as pruning:
        want = model(**batch).logits

        def fail(*_):
            raise KeyboardInterrupt

        hook = model.model.language_model.layers[before_last].register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(**batch, **cache_argument(cache))
        hook.remove()
        left = weakref.ref(cache)
        del cache
        gc.collect()
        assert left() is None
        assert torch.equal(model(**batch).logits, want)
    assert pruning.receipts[0] == pruning.receipts[1]


# The vision tower's tap


def pictures_alive():
    gc.collect()
    return sum(type(thing) is TowerOutput for thing in gc.get_objects())


@tower_methods
@pytest.mark.usefixtures("only_new_objects")
def test_a_towers_pictures_go_with_the_next_prefill_and_with_the_context(model, method):
    held = []
    with torch.no_grad(), vp.prune(model, method) as pruning:
        for number in range(3):
            model(**inputs(prompt(), images=[number]))
            held.append(pictures_alive())
    assert held == [1, 1, 1], "pictures of earlier prefills pile up"
    assert pictures_alive() == 0 and len(pruning.receipts) == 3


def test_pictures_with_equal_first_patches_are_told_apart(model):
    """Black bars of padding, say, whatever the tower makes of them."""
    tap = TowerTap(vp.prune(model, TOWER[0])._adapter.tower())
    one = torch.randn(25, 8, generator=torch.Generator().manual_seed(0))
    other = torch.cat([one[:1], one[1:].flip(0)])
    none = torch.zeros(0)
    first, second = (TowerOutput(tap.tower, none, projected, none, none) for projected in (one, other))
    tap.provide([first, second])
    assert tap.find(other.clone()) is second and tap.find(one.clone()) is first


# Renumbering


def test_renumbering_counts_no_token_that_the_mask_hides(model):
    """At the input, a prompt with a hidden word is the prompt without it."""
    method = make("random", keep_tokens=KEEP, layer=0, renumber=True)
    ids = prompt()
    spare = [*ids[:3], 7, *ids[3:]]
    hidden = inputs(spare, images=[0])
    hidden["attention_mask"][0, 3] = 0
    with torch.no_grad(), vp.prune(model, method):
        without = model(**inputs(ids, images=[0])).logits[0, -6:]
        found = model(**hidden).logits[0, -6:]
    torch.testing.assert_close(found, without, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("budget", [4, 9, 16])
def test_sparsevlm_merges_into_a_quarter_of_a_stage_at_most(budget, monkeypatch):
    """Pictures of 80 tokens, of which enough are recycled for the limit to hold."""
    (family,) = (one for one in FAMILIES if one.name == "llava_next")
    method, made = make("sparsevlm", keep_tokens=budget), []
    choose = type(method).choose
    monkeypatch.setattr(type(method), "choose", lambda self, view: made.append(choose(self, view)) or made[-1])
    with torch.no_grad(), vp.prune(family.model, method) as pruning:
        family.model(**family.inputs(ONE))
    (kept,) = pruning.receipts[0].images
    before = [kept.n_before, *(tokens for _, tokens in kept.steps)]
    for here, selection in zip(before, made, strict=False):
        total = len(selection.indices)
        recycled = min(here - total + len(selection.merged), int(0.3 * (here - total + len(selection.merged))) + 1)
        assert len(selection.merged) == min(total // 4, recycled // 10 + 1)
    assert len(made[0].merged) == len(made[0].indices) // 4 < 3 or budget == 16


@dataclass(frozen=True)
class AllThenFive(TwoThirdsThenOne):
    """Keeps all at its first stage."""

    def budgets(self, tokens, depth, rounding="round"):
        return (tokens, 5)


def test_labels_are_refused_though_the_first_stage_keeps_all(model):
    batch = inputs(prompt(), images=[0])
    with vp.prune(model, AllThenFive(keep_tokens=1)), pytest.raises(PruningError, match="labels counts positions"):
        model(**batch, labels=batch["input_ids"])


@every_method
def test_another_prompt_of_one_token_more_is_not_taken_for_the_answer(model, method):
    """Without a cache, an answer's step repeats its prompt; a prompt that does not gets a choice of its own."""
    first, second = inputs(prompt(5, 6, 0), images=[0]), inputs(prompt(5, 7, 3), images=[1])
    with torch.no_grad(), vp.prune(model, method) as pruning:
        wanted = model(**second, use_cache=False).logits
        model(**first, use_cache=False)
        found = model(**second, use_cache=False).logits
    assert first["input_ids"].shape[1] + 1 == second["input_ids"].shape[1]
    assert torch.equal(found, wanted) and pruning.receipts[0] == pruning.receipts[2]
