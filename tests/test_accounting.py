"""A run's reported cost: against sums written out, and against the layers of a running model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import vlm_pruner as vp
from tests.every_method import of_pictures
from tests.families import FAMILIES, ONE, TWO
from tests.running import lengths_seen
from tests.tiny_llava import LAYERS, N, inputs, prompt, tiny_llava
from vlm_pruner import adapters
from vlm_pruner.cost import accounting
from vlm_pruner.cost.flops import DecoderShape, layer_flops
from vlm_pruner.errors import PruningError

SHAPE = DecoderShape(layers=4, hidden=8, intermediate=12, heads=2, key_value_heads=1, head_size=4)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.mark.parametrize("name", of_pictures())
def test_kept_is_what_the_layers_ran_on(model, name):
    """Methods of one stage and of several, inside the decoder and before it."""
    method = vp.methods.get(name)(keep_tokens=9)
    seen, receipt = lengths_seen(model, method, inputs(prompt(4, 6), images=[0]))
    (account,) = accounting.of_receipt(receipt, model.config.text_config, text=11)
    assert [kept + 11 for kept in account.kept] == seen
    assert account.average_tokens == (sum(seen) - 11 * LAYERS) / LAYERS
    shape = DecoderShape.of(model.config.text_config)
    assert account.prefill_flops == sum(layer_flops(shape, length) for length in seen)
    assert account.kv_bytes == sum(2 * 2 * 16 * 2 * length for length in seen)  # key and value, heads, size, bytes
    assert account.dense_kv_bytes == 2 * 2 * 16 * 2 * LAYERS * (N + 11)
    assert account == accounting.of_method(method, N, 11, shape)
    told = json.loads(json.dumps(account.to_dict()))
    assert told["kept"] == list(account.kept) and 0 < told["flops_share"] < 1 and 0 < told["kv_share"] < 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_pictures_of_every_family_are_added_up(family):
    batch = family.inputs(TWO)
    method = vp.CentrifugalPruner(reduction_ratio=0.5)
    seen, receipt = lengths_seen(family.model, method, batch)
    visual = sum(image.n_before for image in receipt.images)
    text = receipt.tokens_before - visual
    (account,) = accounting.of_receipt(receipt, adapters.find(family.model).decoder.config, text)
    assert [kept + text for kept in account.kept] == seen and account.visual == visual


def test_rows_are_told_apart(model):
    batch = inputs(prompt(4, 6, 0), prompt(2, 9, 1), images=[0, 1])
    _, receipt = lengths_seen(model, vp.CentrifugalPruner(keep_tokens=7), batch)
    first, second = accounting.of_receipt(receipt, SHAPE, [11, 12])
    assert (first.text, second.text) == (11, 12) and first.kept == second.kept == (25, 25, 7, 7)
    assert first.prefill_flops < second.prefill_flops
    with pytest.raises(PruningError, match="text has 3 numbers, but the prefill had 2 rows"):
        accounting.of_receipt(receipt, SHAPE, [1, 2, 3])


def test_by_hand():
    account = accounting.of_steps([(10, [[1, 6], [3, 2]]), (5, [])], 3, SHAPE, bytes_per_number=4)
    assert account.kept == (15, 11, 11, 7) and account.average_tokens == 11
    assert account.kv_bytes == 2 * 1 * 4 * 4 * (18 + 14 + 14 + 10)
    assert accounting.of_method(None, 10, 3, SHAPE).flops_share == 1
    assert accounting.of_steps([], 3, SHAPE, 2).kept == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="layers ascend and are below 4"):
        accounting.of_steps([(10, [[4, 1]])], 3, SHAPE, 2)


def test_a_prompt_without_a_picture_costs_what_dense_does():
    receipt = SimpleNamespace(batch_size=1, images=[])
    (account,) = accounting.of_receipt(receipt, SHAPE, 5)
    assert account.flops_share == account.kv_share == 1 and account.average_tokens == 0


def test_one_picture_of_a_family_is_planned_as_it_is_run():
    """Where pictures have few tokens and the budget is a share."""
    family = next(family for family in FAMILIES if family.name == "qwen2_vl")
    method = vp.methods.get("pyramiddrop")(reduction_ratio=0.4, layer=1)
    _, receipt = lengths_seen(family.model, method, family.inputs(ONE))
    shape = DecoderShape.of(adapters.find(family.model).decoder.config)
    (run,) = accounting.of_receipt(receipt, shape, 9)
    assert run == accounting.of_method(method, receipt.images[0].n_before, 9, shape)
