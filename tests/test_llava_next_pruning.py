"""Pruning LLaVA-NeXT in transformers' own classes: coordinates, budgets, batches, and no trace afterwards."""

from __future__ import annotations

import pytest
import torch

import vlm_pruner as vp
from tests.running import hooks
from tests.tiny_llava_next import EXTREME, SIDE, SIZES, inputs, packed, tiny_llava_next
from vlm_pruner.adapters import find
from vlm_pruner.errors import PruningError

NEW = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    model = tiny_llava_next()
    model.generate(**inputs(model, SIZES[0]), **NEW)  # the first run adds transformers' own hooks
    return model


@pytest.mark.parametrize("size", SIZES + EXTREME)
def test_layouts_from_sizes_and_from_features_agree_with_the_packing(model, size):
    adapter = find(model)
    features = packed(model, size)
    [by_size] = adapter._layouts({"pixel_values": 1, "image_sizes": torch.tensor([size[::-1]])})
    by_features = adapter._read_off(features)
    assert len(by_size) == len(features)
    assert torch.equal(by_size.coords, by_features.coords) and by_size.diagonal == by_features.diagonal
    newline = (features == model.model.image_newline).all(dim=1)
    last = by_size.coords[SIDE**2 :, 0].max() if newline.any() else 0
    assert (by_size.coords[newline, 0] == last).all(), "newlines end the rows"


def test_keeping_all_is_the_dense_model_bit_for_bit(model):
    call = inputs(model, SIZES[0])
    with torch.no_grad():
        dense = model(**call).logits
        with vp.prune(model, vp.CentrifugalPruner(reduction_ratio=0.0)) as pruning:
            kept = model(**call).logits
    [image] = pruning.receipts[-1].images
    assert image.n_before == image.n_after and torch.equal(dense, kept)


@pytest.mark.parametrize("size", SIZES[:3])
def test_the_budget_is_a_share_of_the_actual_tokens(model, size):
    tokens, before = len(packed(model, size)), hooks(model)
    with vp.prune(model, vp.CentrifugalPruner(reduction_ratio=0.889)) as pruning:
        model.generate(**inputs(model, size), **NEW)
    [image] = pruning.receipts[-1].images
    assert (image.span, image.n_before) == ((5, tokens), tokens)
    assert image.n_after == round(0.111 * tokens)
    assert hooks(model) == before


def test_forward_and_generate_keep_the_same(model):
    call = inputs(model, SIZES[0])
    with vp.prune(model, vp.CentrifugalPruner(keep_tokens=20)) as pruning:
        with torch.no_grad():
            first = model(**call).logits[0, -1].argmax()
        new = model.generate(**call, **NEW)
    forward, generate = pruning.receipts
    assert forward.images == generate.images and forward.images[0].n_after == 20
    assert new[0, -6] == first


def test_coords_of_what_is_kept(model):
    with vp.prune(model, vp.CentrifugalPruner(keep_tokens=20)) as pruning:
        model.generate(**inputs(model, SIZES[0]), **NEW)
    [image] = pruning.receipts[-1].images
    layout = find(model)._read_off(packed(model, SIZES[0]))
    assert torch.equal(torch.tensor(image.coords), layout.coords[image.indices])


def test_a_batch_of_unlike_pictures_equals_one_by_one(model):
    sizes = (SIZES[0], SIZES[3])
    method = vp.CentrifugalPruner(reduction_ratio=0.8)
    call = inputs(model, *sizes)
    with vp.prune(model, method) as pruning:
        batch = model.generate(**call, **NEW)
        for row in range(2):
            own = {name: tensor[row : row + 1] for name, tensor in call.items()}
            real = own["attention_mask"][0].bool()
            own["input_ids"], own["attention_mask"] = own["input_ids"][:, real], own["attention_mask"][:, real]
            single = model.generate(**own, **NEW)
            assert torch.equal(single[0, -6:], batch[row, -6:])
            assert pruning.receipts[-1].images[0].indices == pruning.receipts[0].images[row].indices


def test_two_pictures_in_one_row(model):
    one, two = inputs(model, SIZES[0])["input_ids"], inputs(model, SIZES[0], SIZES[1])
    second = two["input_ids"][1:, two["attention_mask"][1].bool()]
    call = {**two, "input_ids": torch.cat([one, second], dim=1)}
    del call["attention_mask"]
    with vp.prune(model, vp.CentrifugalPruner(keep_tokens=11)) as pruning:
        model.generate(**call, **NEW)
    first, other = pruning.receipts[-1].images
    assert (first.n_after, other.n_after) == (11, 11)
    assert first.span[1] == len(packed(model, SIZES[0])) and other.span[1] == len(packed(model, SIZES[1]))


def test_released_coordinates(model):
    method = vp.CentrifugalPruner(keep_tokens=20, compat="released")
    with vp.prune(model, method) as pruning:
        model.generate(**inputs(model, SIZES[0]), **NEW)
    [image] = pruning.receipts[-1].images
    assert image.coords == [[index % 24, index // 24] for index in image.indices]


def test_text_alone_is_not_pruned(model):
    ids = torch.tensor([[1, 5, 6, 7]])
    dense = model.generate(ids, **NEW)
    with vp.prune(model, vp.CentrifugalPruner(keep_tokens=20)), pytest.warns(UserWarning, match="no visual tokens"):
        assert torch.equal(model.generate(ids, **NEW), dense)


def test_what_is_refused(model):
    before = hooks(model)
    call = inputs(model, SIZES[1])
    with vp.prune(model, vp.CentrifugalPruner(keep_tokens=9)), pytest.raises(PruningError, match="one forward call"):
        model(**{**call, "input_ids": call["input_ids"][:, :-20]})
    with pytest.raises(PruningError, match="image_newline"):
        find(model)._read_off(torch.zeros(SIDE**2 + 40, 48))
    model.config.vision_feature_select_strategy = "full"
    try:
        with pytest.raises(PruningError, match="'full'"):
            vp.prune(model, vp.CentrifugalPruner(keep_tokens=9))
    finally:
        model.config.vision_feature_select_strategy = "default"
    assert hooks(model) == before
