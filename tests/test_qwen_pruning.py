"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL through `vp.prune`: grids, videos, dialogues. The rest: test_families_*.py."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import vlm_pruner as vp
from tests import tiny_qwen
from tests.every_method import of_pictures
from tests.running import assert_close
from tests.tiny_qwen import FAMILIES, IMAGE, LAYERS, image, inputs, length, text, video
from tests.versions import at_least
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.decoder.views import SUPPLIED
from vlm_pruner.errors import PruningError

METHOD = vp.CentrifugalPruner(keep_tokens=6)
HALF = vp.CentrifugalPruner(reduction_ratio=0.5, layer=1)  # DeepStack is due after layers 0, 1 and 2

ONE = [*text(4, 1), image(4, 6, 1), *text(5, 2)]
TWO = [image(3, 3, 2), *text(3, 3), image(5, 2, 3), *text(2, 4)]
FILM = [*text(2, 5), video(3, 4, 3, 4), *text(4, 6)]
MIXED = [*text(1, 7), video(2, 3, 3, 5), *text(3, 8), image(2, 4, 6), *text(2, 9), video(4, 2, 3, 7), *text(2, 10)]
WORDS = text(9, 11)
SECOND = {"words": text(6, 20), "image": [*text(2, 21), image(3, 5, 8), *text(3, 22)], "film": FILM}
PROMPTS = {"one": ONE, "two": TWO, "film": FILM, "mixed": MIXED}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family):
    return tiny_qwen.model(family)


def generate(model, batch, method=None, new=5, **options):
    """Greedy tokens [B, new], their logits [B, new, vocabulary], and the prefill's receipt."""
    options = {"do_sample": False, "max_new_tokens": new, "output_logits": True} | options
    if method is None:
        out, receipt = model.generate(**batch, return_dict_in_generate=True, **options), None
    else:
        with vp.prune(model, method) as pruning:
            out = model.generate(**batch, return_dict_in_generate=True, **options)
        (receipt,) = pruning.receipts
    return out.sequences[:, -new:], torch.stack(out.logits, 1), receipt


def logits(model, batch, method=None, **more):
    """Logits [B, T, vocabulary] of one forward call, and the pruning."""
    with torch.no_grad():
        if method is None:
            return model(**batch, **more).logits, None
        with vp.prune(model, method) as pruning:
            return model(**batch, **more).logits, pruning


# What is kept


def test_every_image_and_video_has_its_own_grid_and_budget(family, model):
    kept = generate(model, inputs(family, MIXED), METHOD)[2].images
    assert [(i.n_before, i.n_after) for i in kept] == [(18, 6), (8, 6), (24, 6)]
    grids = [vp.TokenLayout.video(2, 3, 3), vp.TokenLayout.grid(2, 4), vp.TokenLayout.video(4, 2, 3)]
    for one, grid in zip(kept, grids, strict=True):
        assert one.coords == grid.coords[one.indices].tolist()
    ratio = generate(model, inputs(family, MIXED), HALF)[2].images
    assert [i.n_after for i in ratio] == [9, 4, 12]


def test_frames_may_have_a_budget_each(family, model):
    method = vp.CentrifugalPruner(reduction_ratio=0.5, per_frame=True)
    kept = generate(model, inputs(family, MIXED), method)[2].images
    assert [(i.n_before, i.n_after) for i in kept] == [(9, 4)] * 2 + [(8, 4)] + [(6, 4)] * 4, "never below the pivots"
    assert [i.coords[0][0] for i in kept if len(i.coords[0]) == 3] == [0, 1, 0, 1, 2, 3]
    visual = inputs(family, MIXED)["mm_token_type_ids"][0].nonzero().squeeze(1).tolist()
    assert [i.span[0] + offset for i in kept for offset in (i.offsets or range(i.n_before))] == visual


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_spans_are_where_the_placeholders_are(family, model, prompt):
    batch = inputs(family, prompt)
    visual = batch["mm_token_type_ids"][0].nonzero().squeeze(1).tolist()
    found = []
    for one in generate(model, batch, METHOD)[2].images:
        offsets = range(one.n_before) if one.offsets is None else one.offsets
        found += [one.span[0] + offset for offset in offsets]
        assert one.span[1] == offsets[-1] + 1
    assert found == visual


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_generate_and_a_forward_call_prune_alike(family, model, prompt):
    """`generate` encodes images beforehand and withholds their grids; a plain call is given them."""
    batch = inputs(family, prompt)
    _, generated, receipt = generate(model, batch, METHOD)
    called, pruning = logits(model, batch, METHOD)
    assert pruning.receipts[0].images == receipt.images
    assert_close(called[:, -1], generated[:, 0])
    dense = logits(model, batch)[0]
    assert (called[:, -1] - dense[:, -1]).abs().max() > 0.01
    with torch.no_grad(), vp.prune(model.model, METHOD) as direct:
        model.model(**batch)
    assert direct.receipts[0].images == receipt.images


def test_layers_from_k_on_hold_the_short_sequence(family, model):
    cache = DynamicCache()
    batch = inputs(family, TWO)
    logits(model, batch, METHOD, **cache_argument(cache))
    long = batch["input_ids"].shape[1]
    assert [cache.get_seq_length(i) for i in range(LAYERS)] == [long] * 2 + [long - 19 + 12] * 2


def test_half_precision_runs(family):
    half = tiny_qwen.build(family).bfloat16()
    batch = inputs(family, MIXED, TWO)
    batch |= {name: value.bfloat16() for name, value in batch.items() if "pixel" in name}
    tokens, scores, receipt = generate(half, batch, HALF)
    assert tokens.shape == (2, 5) and scores.isfinite().all()
    assert [one.n_after for one in receipt.images] == [9, 4, 12, 4, 5]


# Batches


@pytest.mark.parametrize("method", [METHOD, HALF], ids=["layer2", "layer1"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_a_ragged_batch_equals_its_rows_one_by_one(family, model, method, cache):
    """Different sizes, numbers of images, a video, and a row without either; padded on the left."""
    prompts = [TWO, ONE, MIXED, WORDS, FILM]
    options = {} if cache is None else {"cache_implementation": cache}
    tokens, scores, receipt = generate(model, inputs(family, *prompts), method, **options)
    longest = max(length(family, prompt) for prompt in prompts)
    for row, prompt in enumerate(prompts):
        alone = generate(model, inputs(family, prompt), None if prompt is WORDS else method)
        assert torch.equal(tokens[row], alone[0][0])
        assert_close(scores[row], alone[1][0])
        padding = longest - length(family, prompt)
        together = [(one.span[0] - padding, one.indices) for one in receipt.images if one.row == row]
        assert together == [(one.span[0], one.indices) for one in (alone[2].images if alone[2] else [])]


def test_beams_and_several_samples(family, model):
    batch = inputs(family, MIXED, TWO)
    with vp.prune(model, METHOD) as pruning:
        cached = model.generate(**batch, do_sample=False, max_new_tokens=4, num_beams=3)
        plain = model.generate(**batch, do_sample=False, max_new_tokens=4, num_beams=3, use_cache=False)
        model.generate(**batch, do_sample=True, max_new_tokens=3, num_return_sequences=2)
    assert torch.equal(cached, plain)
    beams, samples = pruning.receipts[0], pruning.receipts[-1]
    once = generate(model, batch, METHOD)[2].images
    assert [one.indices for one in samples.images if one.row in (0, 2)] == [one.indices for one in once]
    assert len(beams.images) == 15 and len(samples.images) == 10


# Other methods: what they ask to see is there in these models too


@pytest.mark.parametrize("name", [name for name in of_pictures() if vp.methods.get(name).needs <= SUPPLIED])
def test_every_method_gives_a_row_of_a_batch_what_it_gives_it_alone(family, model, name):
    method = vp.methods.get(name)(keep_tokens=6, layer=2)
    together = generate(model, inputs(family, TWO, MIXED), method)
    for row, prompt in enumerate((TWO, MIXED)):
        alone = generate(model, inputs(family, prompt), method)
        kept = [one.indices for one in together[2].images if one.row == row]
        assert kept == [one.indices for one in alone[2].images]
        assert torch.equal(together[0][row], alone[0][0])
        assert_close(together[1][row], alone[1][0])


def test_recomputed_attention_is_the_models_own(family, model):
    """FastV reads one row of attention, recomputed with the family's norms and phases; eager attention shows it."""
    batch = inputs(family, MIXED)
    with torch.no_grad():
        seen = tiny_qwen.build(family, "eager")(**batch, output_attentions=True).attentions[1][0, :, -1].mean(dim=0)
    for one in generate(model, batch, vp.methods.get("fastv")(keep_tokens=6))[2].images:
        offsets = torch.tensor(one.offsets or range(one.n_before))
        assert one.order == seen[one.span[0] + offsets].topk(6).indices.tolist()


# Dialogue: see docs/pruning_semantics.md


def turn(model, family, cache, wholes, new):
    """One prefill: of the batch `wholes` what the cache has not got, where `new` are its images and videos.

    Returns the last tokens' logits [B, vocabulary].
    """
    batch, own = inputs(family, *wholes), inputs(family, *new)
    ids, types, mask = (batch[name] for name in ("input_ids", "mm_token_type_ids", "attention_mask"))
    grids = {name: value for name, value in batch.items() if name.endswith("grid_thw")}
    positions = model.model.get_rope_index(ids, mm_token_type_ids=types, attention_mask=mask, **grids)[0]
    given = {name: value for name, value in own.items() if "pixel" in name or name.endswith("grid_thw")}
    start = cache.get_seq_length()
    given |= {"input_ids": ids[:, start:], "mm_token_type_ids": types[:, start:], "attention_mask": mask}
    return model(**given, position_ids=positions[..., start:], **cache_argument(cache), use_cache=True).logits[:, -1]


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
@pytest.mark.parametrize("method", [METHOD, HALF], ids=["layer2", "layer1"])
def test_a_dialogue_in_turns_equals_the_dialogue_as_one_prompt(family, model, method, second):
    first, third = MIXED, text(4, 23)
    with torch.no_grad(), vp.prune(model, method) as pruning:
        cache = DynamicCache()
        turn(model, family, cache, [first], [first])
        turn(model, family, cache, [first + second], [second])
        in_turns = turn(model, family, cache, [first + second + third], [third])
    with torch.no_grad(), vp.prune(model, method) as at_once:
        whole = turn(model, family, DynamicCache(), [first + second + third], [first + second])
    kept = [one.indices for receipt in pruning.receipts for one in receipt.images]
    assert kept == [one.indices for one in at_once.receipts[0].images]
    assert_close(in_turns, whole)


def test_dialogues_in_a_batch(family, model):
    """Second turns of one length: with an image in two rows, with words in another; and then one of words in all."""
    firsts = [TWO, FILM, ONE]
    seconds = [[*text(1, 30), image(2, 3, 9), 7], [image(3, 2, 10), *text(2, 31)], text(10, 32)]
    thirds = [text(3, seed) for seed in (33, 34, 35)]
    so_far = [a + b for a, b in zip(firsts, seconds, strict=True)]
    wholes = [a + b for a, b in zip(so_far, thirds, strict=True)]
    with torch.no_grad(), vp.prune(model, METHOD) as pruning:
        cache = DynamicCache()
        turn(model, family, cache, firsts, firsts)
        turn(model, family, cache, so_far, seconds)
        together = turn(model, family, cache, wholes, thirds)
    kept = [one for receipt in pruning.receipts for one in receipt.images]
    for row, whole in enumerate(wholes):
        with torch.no_grad(), vp.prune(model, METHOD) as alone:
            assert_close(together[row : row + 1], turn(model, family, DynamicCache(), [whole], [whole]))
        assert [one.indices for one in kept if one.row == row] == [one.indices for one in alone.receipts[0].images]


def test_generate_goes_on_with_a_dialogue(family, model):
    first, second = TWO, text(5, 24)  # no video: Qwen2.5-VL, dense too, goes on after one at other positions
    with vp.prune(model, METHOD):
        batch, cache = inputs(family, first), DynamicCache()
        answer = model.generate(**batch, **cache_argument(cache), do_sample=False, max_new_tokens=4)
        ids = torch.cat([answer, torch.tensor([second])], dim=1)
        continued = model.generate(input_ids=ids, **cache_argument(cache), do_sample=False, max_new_tokens=4)
        whole = [*first, *answer[0, -4:].tolist(), *second]
        at_once = model.generate(**inputs(family, whole), do_sample=False, max_new_tokens=4)
    assert torch.equal(continued, at_once)


# Bad input


def test_a_placeholder_that_the_model_generates_is_a_word(family, model):
    with torch.no_grad(), vp.prune(model, METHOD) as pruning:
        cache = DynamicCache()
        model(**inputs(family, ONE), **cache_argument(cache))
        model(input_ids=torch.tensor([[IMAGE]]), **cache_argument(cache))
    assert len(pruning.receipts) == 1


def test_bad_input_is_named(family, model):
    batch = inputs(family, ONE)
    if at_least("5.18"):  # 5.17 does not encode pictures before the call, and hands on their grids
        with pytest.raises(PruningError, match="mm_token_type_ids"):
            generate(model, {name: value for name, value in batch.items() if name != "mm_token_type_ids"}, METHOD)
    cut = {**batch, "input_ids": batch["input_ids"][:, :9], "mm_token_type_ids": batch["mm_token_type_ids"][:, :9]}
    with pytest.raises(PruningError, match="one forward call"):
        logits(model, {**cut, "attention_mask": torch.ones(1, 9).long()}, METHOD)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(PruningError, match="pass input_ids"):
        logits(model, {**batch, "input_ids": None, "inputs_embeds": embeds}, METHOD)
