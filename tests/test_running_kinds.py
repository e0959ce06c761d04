"""Unusual ways to run a model, in every family: custom masks and positions, padding anywhere, other entry points."""

from __future__ import annotations

import copy
import io
import json
import pickle
import threading
from functools import partial

import pytest
import torch
import transformers
from transformers import DynamicCache, StaticCache

import vlm_pruner as vp
from tests import flash, llava_tiny
from tests.every_method import of_decoder, of_tower
from tests.families import FAMILIES, ONE, Picture, text
from tests.tiny_llava import IMAGE as IMAGE_OF_LLAVA
from tests.tiny_llava import LAYERS, N, inputs, prompt, tiny_llava
from tests.tiny_qwen import IMAGE
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.errors import CacheError, PruningError

pytestmark = pytest.mark.filterwarnings("ignore::vlm_pruner.decoder.pruning.PruningWarning")

KEEP = vp.CentrifugalPruner(keep_tokens=6, self_weight=1)
TOWER = of_tower()
METHODS = [KEEP, vp.methods.get("sparsevlm")(keep_tokens=10, layer=1), *of_decoder()]
EVERY = [*METHODS, vp.CentrifugalPruner(keep_tokens=6, layer=0), *TOWER]


def name(thing):
    return f"{thing.name}-{thing.layer}" if isinstance(thing, vp.methods.Pruner) else getattr(thing, "name", None)


def _reset_empties():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    cache.reset()
    return cache.get_seq_length() == 0


RESET_EMPTIES = _reset_empties()  # in newer versions of transformers

families = pytest.mark.parametrize("family", FAMILIES, ids=name)
methods = pytest.mark.parametrize("method", METHODS, ids=name)
every_method = pytest.mark.parametrize("method", EVERY, ids=name)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def logits(model, batch, method=None, **more):
    with torch.no_grad():
        if method is None:
            return model(**batch, **more).logits
        with vp.prune(model, method):
            return model(**batch, **more).logits


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


# Masks


@methods
@families
def test_a_hidden_picture_changes_nothing(family, method):
    first, second = (family.inputs([*ONE[:4], Picture(1, seed), *ONE[5:]]) for seed in (1, 2))
    for batch in (first, second):
        batch["attention_mask"][batch["input_ids"] == IMAGE] = 0
    close(logits(family.model, first)[:, -1], logits(family.model, second)[:, -1])
    close(logits(family.model, first, method)[:, -1], logits(family.model, second, method)[:, -1])


@methods
@families
def test_tokens_that_the_mask_hides_are_neither_kept_nor_folded_in(family, method):
    batch = family.inputs(ONE)
    tokens = (batch["input_ids"][0] == IMAGE).nonzero().squeeze(1)
    batch["attention_mask"][0, tokens[::2]] = 0
    visible = set(range(1, len(tokens), 2))
    try:
        logits(family.model, batch)
    except RuntimeError as error:  # Qwen's positions, in transformers
        pytest.skip(f"the dense model takes no picture that is hidden in part: {str(error)[:60]}")
    with torch.no_grad(), vp.prune(family.model, method) as pruning:
        family.model(**batch)
    (kept,) = pruning.receipts[0].images
    assert set(kept.indices) <= visible and kept.n_before == len(tokens)
    wanted = method.budgets(len(tokens), 4)[-1]
    assert kept.n_after == min(wanted, len(visible)) == len(kept.order)


@every_method
def test_a_picture_hidden_in_part_counts_what_is_seen(model, method):
    """Budgets above what is seen keep all that is seen; tower methods see those patches alone."""
    batch = inputs(prompt(), images=[0])
    batch["attention_mask"][0, 5 : 5 + N - 4] = 0
    with torch.no_grad(), vp.prune(model, method) as pruning:
        model(**batch)
    (kept,) = pruning.receipts[0].images
    assert set(kept.indices) <= set(range(N - 4, N))
    assert kept.n_after == min(method.budgets(N, LAYERS)[-1], 4)


@methods
def test_padding_may_reach_into_the_picture(model, method):
    """As when a window slides over a long prompt: nothing before position 15 is visible."""
    batch = inputs(prompt(), images=[0])
    batch["attention_mask"][0, :15] = 0
    with torch.no_grad(), vp.prune(model, method) as pruning:
        model(**batch)
    (receipt,) = pruning.receipts
    assert receipt.tokens_after == receipt.images[0].n_after + 6 and min(receipt.images[0].indices) >= 10


@methods
def test_a_row_that_is_hidden_altogether_stays_a_row(model, method):
    """In a batch filled up with empty rows, the other rows give what they give alone."""
    batch = inputs(prompt(4, 6, 0), prompt(4, 6, 1), images=[0, 1])
    batch["attention_mask"][1] = 0
    found = logits(model, batch, method)
    close(found[0, -6:], logits(model, inputs(prompt(4, 6, 0), images=[0]), method)[0, -6:])
    alone = inputs(prompt(), images=[0])
    alone["attention_mask"][:] = 0
    assert logits(model, alone, method).shape[1] >= 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@methods
def test_a_mask_of_four_dimensions_holds_in_every_layer(method, attention):
    """The text token that it hides, and one that it hides from the last row alone."""
    model, batch = tiny_llava(attention), inputs(prompt(), images=[0])
    length = batch["input_ids"].shape[1]
    mask = torch.ones(length, length).tril().bool()[None, None]
    plain, hidden, last = mask, mask.clone(), mask.clone()
    hidden[..., 2], last[..., -1, 2] = False, False
    given = [one if attention == "sdpa" else torch.where(one, 0.0, torch.finfo().min) for one in (plain, hidden, last)]
    found = [logits(model, {**batch, "attention_mask": one}, method)[0, -6:] for one in given]
    two = batch["attention_mask"].clone()
    two[0, 2] = 0
    close(found[0], logits(model, batch, method)[0, -6:])
    close(found[1], logits(model, {**batch, "attention_mask": two}, method)[0, -6:])
    close(found[2][:-1], found[0][:-1])
    assert (found[2][-1] - found[0][-1]).abs().max() > 1e-3


@methods
def test_a_token_that_only_itself_may_see_is_hidden(model, method):
    """As in masks that leave no row empty."""
    batch = inputs(prompt(), images=[0])
    length = batch["input_ids"].shape[1]
    mask = torch.ones(length, length).tril().bool()
    mask[:, 5 : 5 + N : 2] = False
    mask |= torch.eye(length).bool()
    with torch.no_grad(), vp.prune(model, method) as pruning:
        model(**{**batch, "attention_mask": mask[None, None]})
    (kept,) = pruning.receipts[0].images
    assert kept.n_after and all(token % 2 for token in kept.indices)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@methods
def test_prompts_packed_into_one_row_are_what_each_is_alone(method, attention, first, monkeypatch):
    """first: the position that each prompt starts at."""
    flash.install(monkeypatch)
    model = tiny_llava("eager" if attention == "eager" else "sdpa")
    model.model.language_model.config._attn_implementation = attention
    prompts = [prompt(4, 6, 0), prompt(2, 5, 1)]
    positions = [torch.arange(first, first + len(one))[None] for one in prompts]
    batches = [{**inputs(one, images=[i]), "position_ids": positions[i]} for i, one in enumerate(prompts)]
    alone = [logits(model, batch, method, use_cache=False)[0] for batch in batches]
    row = inputs([*prompts[0], *prompts[1]], images=[0, 1])
    row["position_ids"] = torch.cat(positions, dim=1)
    del row["attention_mask"]
    close(logits(model, row, method, use_cache=False)[0], torch.cat(alone))


def test_packing_by_lengths_is_refused(model):
    batch = inputs(prompt(), images=[0])
    ends = torch.tensor([0, batch["input_ids"].shape[1]], dtype=torch.int32)
    with pytest.raises(PruningError, match="cu_seq_lens_q gives the lengths of sequences packed"):
        logits(model, batch, KEEP, cu_seq_lens_q=ends)


def test_packed_prompts_are_not_renumbered(model):
    row = inputs(prompt(4, 6, 0) + prompt(2, 5, 1), images=[0, 1])
    row["position_ids"] = torch.cat([torch.arange(36), torch.arange(33)])[None]
    del row["attention_mask"]
    with pytest.raises(PruningError, match="renumber=True: position ids start anew within a row"):
        logits(model, row, vp.RandomPruner(keep_tokens=6, renumber=True), use_cache=False)


# Padding


@methods
@families
def test_answers_padded_on_the_right_score_as_alone(family, method):
    """Prompts padded on the left, answers on the right; places are counted from the end."""
    answers = [text(2, 30), text(5, 31)]
    prompts = [[*text(4, 1), Picture(0, 1), *text(3, 2)], [*text(2, 3), Picture(0, 2), *text(4, 4)]]
    left = family.inputs(*prompts)
    pad = [[0] * (5 - len(answer)) for answer in answers]
    tail = torch.tensor([answer + [0] * len(zeros) for answer, zeros in zip(answers, pad, strict=True)])
    shown = torch.tensor([[1] * len(answer) + zeros for answer, zeros in zip(answers, pad, strict=True)])
    batch = {**left, "input_ids": torch.cat([left["input_ids"], tail], 1)}
    batch["attention_mask"] = torch.cat([left["attention_mask"], shown], 1)
    if "mm_token_type_ids" in left:
        batch["mm_token_type_ids"] = torch.cat([left["mm_token_type_ids"], torch.zeros_like(tail)], 1)
    together = logits(family.model, batch, method)[:, -6:]
    for row, (start, answer) in enumerate(zip(prompts, answers, strict=True)):
        alone = logits(family.model, family.inputs([*start, *answer]), method)[0, -len(answer) - 1 :]
        close(together[row, : len(answer) + 1], alone)


@pytest.mark.parametrize("method", [*EVERY, *(vp.RandomPruner(keep_tokens=6, renumber=True, layer=k) for k in (0, 2))])
def test_a_ragged_batch_goes_on_as_its_rows_do(model, method):
    """One picture and two, so that rows lose differently many tokens; renumbered ones too."""
    prompts = [prompt(4, 6, 0), [*prompt(2, 3, 1), *prompt(3, 4, 2)]]
    pictures = [[0], [1, 2]]
    asked = {"max_new_tokens": 4, "do_sample": False}
    with vp.prune(model, method):
        together = model.generate(**inputs(*prompts, images=[0, 1, 2]), **asked)[:, -4:]
        alone = [
            model.generate(**inputs(one, images=own), **asked)[0, -4:]
            for one, own in zip(prompts, pictures, strict=True)
        ]
    assert together.tolist() == [tokens.tolist() for tokens in alone]


# Doors


def test_every_door_has_the_same_guard(model):
    batch = inputs(prompt(), images=[0])
    labels = batch["input_ids"].clone()
    wrapped = torch.nn.DataParallel(model)
    with torch.no_grad(), vp.prune(model, KEEP) as pruning:
        for call in (model, model.forward, wrapped, partial(type(model).__call__, model)):
            with pytest.raises(PruningError, match="labels counts positions"):
                call(**batch, labels=labels)
            with pytest.raises(PruningError, match="logits_to_keep counts positions"):
                call(**batch, logits_to_keep=torch.tensor([3]))
        short = [call(**batch).logits for call in (model, model.forward, wrapped)]
        inner = model.model(**batch).last_hidden_state, model.model.forward(**batch).last_hidden_state
    assert all(torch.equal(one, short[0]) for one in short) and torch.equal(*inner)
    assert short[0].shape[1] == inner[0].shape[1] == 36 - N + 6 and len(pruning.receipts) == 5
    assert "forward" not in vars(model) and "forward" not in vars(model.model) and "generate" not in vars(model)


def test_a_wrapper_put_on_inside_the_context_stays_and_is_dense_afterwards(model):
    batch = inputs(prompt(), images=[0])
    dense = logits(model, batch)
    with torch.no_grad(), vp.prune(model, KEEP):
        inside = model.forward
        model.forward = lambda *args, **kwargs: inside(*args, **kwargs)  # as accelerate's prepare does
        assert model(**batch).logits.shape[1] == 36 - N + 6
    try:
        assert torch.equal(logits(model, batch), dense)
    finally:
        del model.forward


def test_a_failed_call_leaves_no_labels_behind(model):
    batch = inputs(prompt(), images=[0])
    with torch.no_grad(), vp.prune(model, KEEP):
        with pytest.raises(PruningError, match="labels"):
            model(**batch, labels=batch["input_ids"])
        assert model.model(**batch).last_hidden_state.shape[1] == 36 - N + 6


@pytest.mark.parametrize("made", ["before", "run before", "inside"])
def test_a_compiled_twin_is_pruned_inside_and_dense_outside(made):
    model, batch = tiny_llava(), inputs(prompt(), images=[0])
    dense = logits(model, batch)
    twin = torch.compile(model, backend="eager") if made != "inside" else None
    with torch.no_grad():
        if made == "run before":
            twin(**batch)
        with vp.prune(model, KEEP) as pruning:
            twin = torch.compile(model, backend="eager") if twin is None else twin
            short = twin(**batch).logits
            assert torch.equal(short, model(**batch).logits) and len(pruning.receipts) == 2
        close(twin(**batch).logits, dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_method
def test_choosing_and_merging_are_outside_autocast(model, method, dtype):
    seen, batch = [], inputs(prompt(), images=[0])

    class Watched(type(method)):
        def choose(self, view):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().choose(view)

        def merge(self, hidden, selection):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().merge(hidden, selection)

    watched = Watched(**method.config())
    with torch.autocast("cpu", dtype), torch.no_grad(), vp.prune(model, watched) as pruning:
        found = model(**batch).logits
        assert torch.is_autocast_enabled("cpu")
    assert found.isfinite().all() and seen and not any(seen)
    assert pruning.receipts[0].images[0].n_after == method.budgets(N, 4)[-1]


# Caches


@pytest.mark.parametrize("layer", [0, 2])
def test_a_cache_that_was_emptied_is_empty(model, layer):
    """Reset, or cut to nothing, and used for another prompt: one that drops other tokens, or none."""
    method = vp.RandomPruner(keep_tokens=6, layer=layer)
    picture, words = inputs(prompt(), images=[0]), {"input_ids": torch.tensor([text(9, 5)])}
    two = inputs(prompt(4, 6, 0), prompt(2, 6, 1), images=[0, 1])
    step = {"input_ids": torch.tensor([[7]])}

    def run(batch, cache):
        with torch.no_grad():
            model(**batch, **cache_argument(cache))
            rows = batch["input_ids"].shape[0]
            return model(input_ids=step["input_ids"].expand(rows, -1), **cache_argument(cache)).logits

    def fresh():
        return StaticCache(config=model.config.text_config, max_cache_len=60)

    with vp.prune(model, method):
        wanted = [run(batch, fresh()) for batch in (words, picture)]
        cache = fresh()
        run(picture, cache)
        for batch, one in zip((words, picture), wanted, strict=True):
            cache.reset()
            close(run(batch, cache), one)
        if not RESET_EMPTIES:
            return  # what transformers forgot to empty is not empty for the dense model either
        dynamic = DynamicCache(config=model.config.text_config)
        for batch in (two, words, picture):
            dynamic.reset()
            found = run(batch, dynamic)
        close(found, wanted[1])


@pytest.mark.skipif(not RESET_EMPTIES, reason="this transformers' DynamicCache.reset leaves its tokens in it")
def test_a_cache_that_another_context_has_filled_since_is_not_taken_for_ones_own(model):
    batch, cache = inputs(prompt(4, 6, 0), prompt(2, 6, 1), images=[0, 1]), DynamicCache()
    first, second = vp.prune(model, vp.RandomPruner(keep_tokens=6)), vp.prune(model, vp.RandomPruner(keep_tokens=6))
    for pruning in (first, second):
        cache.reset()
        with torch.no_grad(), pruning:
            model(**batch, **cache_argument(cache))
    with torch.no_grad(), first, pytest.raises(CacheError, match="pruned elsewhere"):
        model(input_ids=torch.tensor([[7], [7]]), **cache_argument(cache))


def test_a_mask_in_a_later_turn_hides_what_it_says(model):
    """The picture of the first turn, hidden from the second: its kept tokens are among the cache's, at other places."""
    turn = torch.tensor([text(4, 9)])
    found = []
    for seed in (0, 1):
        cache, batch = DynamicCache(), inputs(prompt(), images=[seed])
        with torch.no_grad(), vp.prune(model, vp.RandomPruner(keep_tokens=6)):
            model(**batch, **cache_argument(cache))
            mask = torch.ones(1, 40, dtype=torch.long)
            mask[0, 5:36] = 0  # the picture and the words after it, which have seen it
            found.append(model(input_ids=turn, attention_mask=mask, **cache_argument(cache)).logits)
    close(*found)


@every_method
def test_without_a_cache_the_prompts_choice_holds_for_the_answer(model, method):
    batch = inputs(prompt(4, 6, 0), prompt(2, 9, 1), images=[0, 1])
    asked = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE_OF_LLAVA]}  # no picture in an answer
    with vp.prune(model, method):
        cached = model.generate(**batch, **asked)
        again = model.generate(**batch, use_cache=False, **asked)
        beams = [model.generate(**batch, use_cache=use, num_beams=2, **asked) for use in (True, False)]
    assert torch.equal(cached, again) and torch.equal(*beams)


# What is left of it


def test_what_is_saved_inside_is_what_is_saved_outside(model, tmp_path):
    def saved(folder):
        model.save_pretrained(folder)
        return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}

    outside = saved(tmp_path / "outside")
    with vp.prune(model, KEEP):
        inside = saved(tmp_path / "inside")
    assert inside == outside and outside


def test_copies_are_refused_inside_and_plain_outside():
    model, batch = tiny_llava(), inputs(prompt(), images=[0])
    makers = (copy.deepcopy, pickle.dumps, lambda one: torch.save(one, io.BytesIO()))
    with vp.prune(model, KEEP):
        for make in makers:
            for part in (model, model.model.language_model.layers[2]):
                with pytest.raises(PruningError, match="this model is being pruned, and a copy"):
                    make(part)
    assert torch.equal(logits(copy.deepcopy(model), batch), logits(model, batch))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_model_that_owns_its_method_can_be_copied(make):
    model = llava_tiny.model()
    model.model.method = KEEP
    twin = make(model)
    asked = {"images": llava_tiny.pixels(0), "max_new_tokens": 3, "do_sample": False}
    tokens = [one.generate(llava_tiny.prompt_ids(), **asked) for one in (model, twin)]
    assert torch.equal(*tokens) and len(twin.model.receipts) == len(model.model.receipts) == 1


# Threads and devices


@every_method
def test_a_context_closed_while_a_thread_generates(model, method):
    batch, ready, closed, found = inputs(prompt(), images=[0]), threading.Event(), threading.Event(), []
    asked = {"max_new_tokens": 6, "do_sample": False}
    with vp.prune(model, method):
        wanted = model.generate(**batch, **asked)
    dense = logits(model, batch)

    class Wait(transformers.StoppingCriteria):
        def __call__(self, ids, scores, **kwargs):
            ready.set()
            closed.wait(30)
            return torch.zeros(len(ids), dtype=torch.bool)

    def run():
        found.append(model.generate(**batch, **asked, stopping_criteria=[Wait()]))

    with vp.prune(model, method) as pruning:
        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(30)
    assert torch.equal(logits(model, batch), dense), "other threads are dense from now on"
    closed.set()
    thread.join(30)
    assert torch.equal(found[0], wanted) and len(pruning.receipts) == 1
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.model.language_model.layers)
    assert "generate" not in vars(model)


@every_method
def test_several_threads_choose_for_their_own_picture(model, method):
    batches = [inputs(prompt(4, 6, seed), images=[seed]) for seed in range(4)]
    with vp.prune(model, method):
        wanted = [model.generate(**batch, max_new_tokens=3, do_sample=False) for batch in batches]
    found: dict[int, torch.Tensor] = {}

    def run(number):
        for _ in range(3):
            found[number] = model.generate(**batches[number], max_new_tokens=3, do_sample=False)

    with vp.prune(model, method):
        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[number].tolist() for number in range(4)] == [one.tolist() for one in wanted]


def test_a_model_that_owns_its_method_serves_several_threads():
    model = llava_tiny.model()
    model.model.method = KEEP
    asked = {"max_new_tokens": 4, "do_sample": False}
    calls = [partial(model.generate, llava_tiny.prompt_ids(), images=llava_tiny.pixels(i), **asked) for i in (0, 1)]
    wanted, found, errors = [call() for call in calls], {}, []

    def run(number):
        try:
            found[number] = [calls[number]() for _ in range(5)]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and all(torch.equal(one, wanted[number]) for number in (0, 1) for one in found[number])


@every_method
def test_the_default_device_is_the_callers_business(model, method):
    batch = inputs(prompt(), images=[0])
    wanted = logits(model, batch, method)
    torch.set_default_device("meta")
    try:
        found = logits(model, batch, method)
        layout = vp.TokenLayout.grid(5, 5)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, wanted) and layout.coords.device.type == "cpu"


# The vision tower's tap


@pytest.mark.parametrize("method", [one for one in TOWER if "text_embeddings" not in one.needs], ids=name)
def test_what_the_tower_saw_is_kept_for_one_prefill(method):
    """Not after the context, not for later prefills; found by the whole picture, though first patches be equal."""
    model, pixels = tiny_llava(), inputs(prompt(), images=[0, 1])["pixel_values"]
    pixels[:, :, :14, :14] = 0.3  # as black bars have it
    both = inputs([*prompt(2, 3, 1), *prompt(3, 4, 2)], images=[0, 1])
    with torch.no_grad(), vp.prune(model, method) as pruning:
        for _ in range(3):
            model(**{**both, "pixel_values": pixels})
            assert len(pruning._tower.pictures) <= 2
        for seed in (0, 1):
            model(**{**inputs(prompt(), images=[seed]), "pixel_values": pixels[seed : seed + 1]})
    together, *_, first, second = pruning.receipts
    assert [one.order for one in together.images] == [first.images[0].order, second.images[0].order]
    assert pruning._tower.pictures == []


def test_pivots_are_counted_in_the_whole_picture_though_a_part_is_hidden(model):
    batch = inputs(prompt(), images=[0])
    batch["attention_mask"][0, 5:15] = 0
    with torch.no_grad(), vp.prune(model, KEEP) as pruning:
        model(**batch)
    (kept,) = pruning.receipts[0].images
    assert len(kept.pivots) == 4 and set(kept.pivots) <= set(kept.indices) and min(kept.pivots) >= 10
    assert kept.order[:4] == kept.pivots


def test_a_turn_that_is_padded_after_one_that_is_not(model):
    """The first turn's tokens are no padding for the second."""
    first = inputs(prompt(4, 6, 0), prompt(4, 6, 1), images=[0, 1])
    turns = [text(3, 7), text(5, 8)]
    ids = torch.tensor([[0, 0, *turns[0]], turns[1]])
    shown = torch.ones(2, 36 + 5, dtype=torch.long)
    shown[0, 36:38] = 0
    positions = (shown.cumsum(dim=1) - 1)[:, 36:]
    cache = DynamicCache()
    with torch.no_grad(), vp.prune(model, vp.RandomPruner(keep_tokens=6)):
        model(**first, **cache_argument(cache))
        together = model(input_ids=ids, attention_mask=shown, position_ids=positions, **cache_argument(cache)).logits
        for row, turn in enumerate(turns):
            own = DynamicCache()
            model(**inputs(prompt(4, 6, row), images=[row]), **cache_argument(own))
            alone = model(input_ids=torch.tensor([turn]), **cache_argument(own)).logits
            close(together[row, -len(turn) :], alone[0])


def test_pictures_of_different_numbers_in_a_turn_after_one_without_padding(model):
    """Pruning pads the second turn's rows against each other; the first turn's tokens are no padding for that."""
    first = inputs(prompt(4, 6, 0), prompt(4, 6, 1), images=[0, 1])
    turns = [[*prompt(1, 4, 2)[1:], *prompt(1, 3, 3)[1:]], [*prompt(2, 5, 4)[1:], *text(N, 8)]]
    longest = max(map(len, turns))
    ids = torch.tensor([[0] * (longest - len(turn)) + turn for turn in turns])
    shown = torch.ones(2, 36 + longest, dtype=torch.long)
    for row, turn in enumerate(turns):
        shown[row, 36 : 36 + longest - len(turn)] = 0
    cache, positions = DynamicCache(), (shown.cumsum(dim=1) - 1)[:, 36:]
    pictures = [inputs(prompt(), images=[number])["pixel_values"] for number in (0, 1, 2)]
    with torch.no_grad(), vp.prune(model, vp.RandomPruner(keep_tokens=6)):
        model(**first, **cache_argument(cache))
        batch = {"input_ids": ids, "attention_mask": shown, "position_ids": positions}
        together = model(**batch, pixel_values=torch.cat(pictures), **cache_argument(cache)).logits
        for row, (turn, own) in enumerate(zip(turns, (pictures[:2], pictures[2:]), strict=True)):
            alone = DynamicCache()
            model(**inputs(prompt(4, 6, row), images=[row]), **cache_argument(alone))
            call = {"input_ids": torch.tensor([turn]), "pixel_values": torch.cat(own), **cache_argument(alone)}
            close(together[row, -3:], model(**call).logits[0, -3:])
