"""Nothing fails silently, for every supported family: refusals, warnings, and the receipts that follow."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers

import vlm_pruner as vp
from tests import families
from tests.families import FAMILIES, ONE, TWO, WORDS, Family, Picture
from tests.tiny_qwen import IMAGE, text
from vlm_pruner.adapters import find
from vlm_pruner.decoder.pruning import PruningWarning
from vlm_pruner.errors import PruningError, UnsupportedModelError

METHOD = vp.CentrifugalPruner(keep_tokens=6)
ALL = vp.CentrifugalPruner(reduction_ratio=0.0)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


def run(family, batch, method, **more):
    with torch.no_grad(), vp.prune(family.model, method) as pruning:
        return family.model(**batch, **more), pruning.receipts


def test_more_than_a_picture_has_keeps_all_of_it_and_warns_once(family):
    batch = family.inputs(ONE)
    _, [receipt] = run(family, batch, ALL)
    tokens = receipt.images[0].n_before
    method = vp.CentrifugalPruner(keep_tokens=tokens + 1)
    if family.fixed:
        with pytest.raises(PruningError, match=f"keep_tokens={tokens + 1}, .* only {tokens} .*; use keep_tokens"):
            vp.prune(family.model, method)
        return
    with torch.no_grad():
        dense = family.model(**batch).logits
        with warnings.catch_warnings(record=True) as seen, vp.prune(family.model, method) as pruning:
            warnings.simplefilter("always")
            for _ in range(2):
                assert torch.equal(family.model(**batch).logits, dense)
    messages = [str(one.message) for one in seen if one.category is PruningWarning]
    assert len(messages) == 1 and f"keep_tokens={tokens + 1}, but a picture has only {tokens}" in messages[0]
    record = json.loads(json.dumps(pruning.receipts[1].to_dict()))
    assert record["config"]["keep_tokens"] == tokens + 1
    assert (record["images"][0]["n_before"], record["images"][0]["n_after"]) == (tokens, tokens)


def test_as_much_as_a_picture_has_does_not_warn(family):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PruningWarning)
        _, [receipt] = run(family, family.inputs(ONE), METHOD)
    assert receipt.images[0].n_after == 6


def test_words_alone_warn_and_are_dense(family):
    batch = family.inputs(WORDS)
    with pytest.warns(PruningWarning, match="no visual tokens"):
        out, [receipt] = run(family, batch, METHOD)
    with torch.no_grad():
        assert torch.equal(out.logits, family.model(**batch).logits)
    assert receipt.images == [] and receipt.tokens_before == receipt.tokens_after


def test_arguments_that_count_positions_are_refused(family):
    batch = family.inputs(TWO)
    for named in ({"labels": batch["input_ids"]}, {"logits_to_keep": torch.tensor([1, 3])}):
        with pytest.raises(PruningError, match=f"{next(iter(named))} counts positions in the un-pruned sequence"):
            run(family, batch, METHOD, **named)
    out, _ = run(family, batch, METHOD, logits_to_keep=1)
    whole, _ = run(family, batch, METHOD)
    torch.testing.assert_close(out.logits, whole.logits[:, -1:])


def test_labels_are_right_where_nothing_is_dropped(family):
    batch = family.inputs(TWO)
    with torch.no_grad():
        dense = family.model(**batch, labels=batch["input_ids"]).loss
    assert torch.equal(run(family, batch, ALL, labels=batch["input_ids"])[0].loss, dense)


def test_a_cut_prompt_and_embeddings_are_refused(family):
    batch = family.inputs(ONE)
    tokens = {"input_ids", "attention_mask", "mm_token_type_ids"}
    cut = {name: value[:, :-7] if name in tokens else value for name, value in batch.items()}
    with pytest.raises(ValueError, match=r"in one forward call|make (25|80) visual tokens, but input_ids hold (23|78)"):
        run(family, cut, METHOD)
    embeds = family.model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="pass input_ids"):
        run(family, {**batch, "input_ids": None, "inputs_embeds": embeds}, METHOD)
    with pytest.raises(PruningError, match="pass input_ids, not inputs_embeds"), vp.prune(family.model, METHOD):
        family.model.generate(inputs_embeds=embeds, max_new_tokens=1)


def test_every_listed_class_exists_in_transformers_or_here():
    from vlm_pruner.adapters import _ADAPTERS

    ours = {"LlavaLlamaForCausalLM", "LlavaQwenForCausalLM"}
    assert all(hasattr(transformers, name) for name in _ADAPTERS if name not in ours)
    tested = {f"{type(family.model).__name__}" for family in FAMILIES}
    assert tested == {name for name in _ADAPTERS if name.endswith("ForConditionalGeneration")} | ours


def test_an_unsupported_model_is_named_with_the_supported_ones():
    with pytest.raises(UnsupportedModelError) as raised:
        vp.prune(torch.nn.Linear(2, 2), METHOD)
    assert str(raised.value).startswith("Linear is not supported")
    assert all(type(family.model).__name__ in str(raised.value) for family in FAMILIES)
    assert "adding_a_model" in str(raised.value)


# What is particular to a family


def family_named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


@pytest.mark.parametrize("name", ["llava_next", "llava_next_video", "llava_onevision"])
@pytest.mark.parametrize("shape", [0, 1, 2])
def test_layouts_by_size_and_by_features_agree(name, shape):
    family = family_named(name)
    adapter, call = find(family.model), family.visuals([[Picture(shape)]])
    [by_size] = adapter._layouts(call)
    with torch.no_grad():
        [features] = family.model.get_image_features(**call, return_dict=True).pooler_output
    by_features = adapter._read_off(features)
    assert len(by_size) == len(features)
    assert torch.equal(by_size.coords, by_features.coords) and by_size.diagonal == by_features.diagonal


def test_onevision_shrinks_the_grid_of_a_large_picture():
    """Its tall picture fills 10 x 5 of 10 x 10 tile tokens; with a limit of one tile 7 x 3 are left."""
    family = family_named("llava_onevision")
    model = family.model
    model.config.vision_aspect_ratio = "anyres_max_1"
    try:
        call = family.visuals([[Picture(2)]])
        with torch.no_grad():
            [features] = model.get_image_features(**call, return_dict=True).pooler_output
        [layout] = find(model)._layouts(call)
    finally:
        model.config.vision_aspect_ratio = "anyres_max_2"
    rows, columns = (int(side) + 1 for side in layout.coords[25:].max(dim=0).values.flip(0))
    assert len(layout) == len(features) == 25 + rows * columns and rows * (columns - 1) <= 25


def test_pictures_of_internvl_are_placed_tile_by_tile():
    family = family_named("internvl")
    _, [receipt] = run(family, family.inputs([*text(2, 1), Picture(0), 5, Picture(1), *text(2, 2)]), ALL)
    one, three = receipt.images
    assert one.coords == vp.TokenLayout.grid(3, 3).coords.tolist()
    assert three.coords == vp.TokenLayout.video(3, 3, 3).coords.tolist()


def test_rows_of_mistral_are_read_off_the_breaks():
    family = family_named("mistral3")
    _, [receipt] = run(family, family.inputs(ONE), ALL)
    assert receipt.images[0].coords == vp.TokenLayout.grid(2, 7).coords.tolist()
    batch = family.inputs(ONE)
    ids = batch["input_ids"][0]
    first, last = (int(place) for place in (ids == families.IMAGE).nonzero().squeeze(1)[[0, -1]])
    ids[first : last + 1] = ids[first : last + 1].roll(1)  # the break comes a place too late
    ids[first], ids[last] = families.IMAGE, families.IMAGE
    with pytest.raises(PruningError, match="do not form rows"):
        run(family, batch, METHOD)


def test_decoders_that_scale_queries_by_position_are_refused():
    model = families.mistral3().build()
    model.model.language_model.config.rope_parameters["llama_4_scaling_beta"] = 0.1
    with pytest.raises(PruningError, match="scales queries by position ids"):
        vp.prune(model, METHOD)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.name.startswith(("qwen", "internvl", "mistral"))])
def test_a_prompt_cut_right_behind_a_picture_is_refused(family):
    """These families end every picture with a word; what comes without it may be half of one."""
    batch = family.inputs(ONE)
    end = int((batch["input_ids"][0] == IMAGE).nonzero()[-1]) + 1
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    cut = {name: value[:, :end] if name in names else value for name, value in batch.items()}
    with (
        torch.no_grad(),
        vp.prune(family.model, vp.RandomPruner(keep_tokens=4)),
        pytest.raises(PruningError, match="ends within a picture"),
    ):
        family.model(**cut)


def test_tiles_that_do_not_fit_the_prompt_are_counted():
    family = next(one for one in FAMILIES if one.name == "internvl")
    batch = family.inputs(ONE)
    batch["pixel_values"] = torch.cat([batch["pixel_values"], batch["pixel_values"][:1]])
    with (
        torch.no_grad(),
        vp.prune(family.model, vp.RandomPruner(keep_tokens=4)),
        pytest.raises(PruningError, match="4 tiles of 9 visual tokens each do not fit"),
    ):
        family.model(**batch)
