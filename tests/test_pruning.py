"""Pruning a running decoder: what the hooks do to sequences, masks, phases and caches, and that they leave no trace."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from transformers import DynamicCache, StaticCache

import vlm_pruner as vp
from tests.running import feed, hooks, state
from tests.tiny_llava import IMAGE, LAYERS, N, image, inputs, prompt, text, tiny_llava
from vlm_pruner.cost.flops import DecoderShape, kv_bytes, lengths
from vlm_pruner.decoder.cache_names import cache_argument, cache_of, with_cache
from vlm_pruner.decoder.pruning import PruningWarning
from vlm_pruner.errors import CacheError, PruningError, UnsupportedModelError

METHOD = vp.CentrifugalPruner(keep_tokens=8)
METHODS = [
    METHOD,
    vp.CentrifugalPruner(reduction_ratio=0.7, layer=1, compat="released"),
    vp.RandomPruner(keep_tokens=8),
]


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.fixture(scope="module")
def one():
    return inputs(prompt(), images=[0])


def generate(model, batch, method=None, new=6, **options):
    """Greedy tokens [B, new], logits [B, new, vocabulary], the generation's cache, and the receipts."""
    arguments = dict(do_sample=False, max_new_tokens=new, output_logits=True, return_dict_in_generate=True, **options)
    if method is None:
        out, receipts = model.generate(**batch, **arguments), []
    else:
        with vp.prune(model, method) as pruning:
            out = model.generate(**batch, **arguments)
        receipts = pruning.receipts
    return out.sequences[:, -new:], torch.stack(out.logits, 1), cache_of(out), receipts


def assert_same(a, b, atol=1e-4):
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1], b[1], atol=atol, rtol=1e-4)


# What is kept, and what the cache holds


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_layers_from_k_on_hold_the_short_sequence(model, one, method):
    long = one["input_ids"].shape[1]
    tokens, _, cache, receipts = generate(model, one, method)
    kept = receipts[0].images[0].n_after
    assert kept == 8 and tokens.shape == (1, 6)
    lengths = [cache.get_seq_length(i) for i in range(LAYERS)]
    assert lengths == [long + 5] * method.layer + [long - N + kept + 5] * (LAYERS - method.layer)


def test_receipts_say_what_was_kept_and_serialise(model, one):
    _, _, _, receipts = generate(model, one, METHOD)
    assert len(receipts) == 1, "one per prefill, none for decoding steps"
    (kept,) = receipts[0].images
    assert kept.indices == sorted(kept.order) and kept.order[:4] == kept.pivots
    assert kept.span == (5, N) and kept.row == 0 and (kept.n_before, kept.n_after, kept.layer) == (N, 8, 2)
    assert kept.coords == [[i % 5, i // 5] for i in kept.indices]
    assert [kept.nearest[i] for i in kept.indices] == list(range(8))
    assert (receipts[0].tokens_before, receipts[0].tokens_after) == (36, 19)
    record = json.loads(json.dumps(receipts[0].to_dict()))
    assert vp.CentrifugalPruner(**record["config"]) == METHOD
    assert record["images"][0]["indices"] == kept.indices


def test_keeping_all_is_the_dense_model_bit_for_bit(model, one):
    dense = generate(model, one)
    for method in (vp.CentrifugalPruner(reduction_ratio=0.0), vp.RandomPruner(keep_tokens=N)):
        kept = generate(model, one, method)
        assert torch.equal(dense[0], kept[0]) and torch.equal(dense[1], kept[1])
        assert kept[3][0].images[0].indices == list(range(N))


def test_pruning_changes_the_logits(model, one):
    assert (generate(model, one)[1] - generate(model, one, METHOD)[1]).abs().max() > 0.01


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_dropping_equals_masking(model, one, layer):
    """A token that is gone and a token that no later layer may look at are the same thing, phases included."""
    method = vp.CentrifugalPruner(keep_tokens=8, self_weight=1.0, layer=layer)
    with torch.no_grad(), vp.prune(model, method) as pruning:
        short = model(**one).logits[0, -6:]
    kept = pruning.receipts[0].images[0].indices
    dropped = [5 + i for i in range(N) if i not in kept]
    length = one["input_ids"].shape[1]
    mask = torch.ones(length, length).tril().bool()
    mask[:, dropped] = False
    mask |= torch.eye(length).bool()  # a dropped query must see something; nobody looks at its result

    def hide(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask[None, None]}

    handles = [m.register_forward_pre_hook(hide, with_kwargs=True) for m in model.model.language_model.layers[layer:]]
    with torch.no_grad():
        masked = model(**one).logits[0, -6:]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(short, masked, atol=1e-4, rtol=1e-4)


def layer_inputs(model, batch, index, cache=None):
    """Hidden states and arguments that decoder layer `index` gets in a prefill."""
    seen = []
    layer = model.model.language_model.layers[index]
    hook = layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(**with_cache(batch, cache))
    hook.remove()
    return seen[0]


def test_the_pruned_layer_gets_what_the_method_chose_and_merged(model, one):
    cache = DynamicCache()
    hidden, _ = layer_inputs(model, one, 2, cache)
    keys = cache.layers[1].keys[0, :, 5 : 5 + N].permute(1, 0, 2).reshape(N, -1)
    tokens = hidden[0, 5 : 5 + N]
    selection = METHOD.select(tokens, keys, vp.TokenLayout.grid(5, 5), 8)
    wanted = torch.cat([hidden[0, :5], METHOD.merge(tokens, selection), hidden[0, 5 + N :]])
    with vp.prune(model, METHOD) as pruning:
        # A hook added here runs after the pruning ones, so it sees what they hand on.
        short, arguments = layer_inputs(model, one, 2)
    assert pruning.receipts[0].images[0].order == selection.order.tolist()
    assert torch.equal(short[0], wanted)
    assert arguments["position_ids"] is None, "gaps in position ids mislead FlashAttention"


# The same result by other ways


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_without_a_cache_the_result_is_the_same(model, one, method):
    assert_same(generate(model, one, method), generate(model, one, method, use_cache=False))


def test_static_cache_gives_the_same(model, one):
    assert_same(generate(model, one, METHOD), generate(model, one, METHOD, cache_implementation="static"))


def test_beam_search_gives_the_same_with_and_without_a_cache(model, one):
    arguments = dict(do_sample=False, max_new_tokens=5, num_beams=3)
    with vp.prune(model, METHOD) as pruning:
        cached = model.generate(**one, **arguments)
        plain = model.generate(**one, **arguments, use_cache=False)
    assert torch.equal(cached, plain)
    assert len(pruning.receipts[0].images) == 3


def test_speculative_decoding_gives_the_same(model, one):
    """Prompt lookup feeds several tokens at once and takes rejected ones back out of the cache."""
    ids = one["input_ids"]
    batch = {
        **one,
        "input_ids": torch.cat([ids, ids[:, -6:]], 1),
        "attention_mask": torch.ones(1, ids.shape[1] + 6).long(),
    }
    plain, _, _, _ = generate(model, batch, METHOD, new=8)
    with vp.prune(model, METHOD):
        drafted = model.generate(**batch, do_sample=False, max_new_tokens=8, prompt_lookup_num_tokens=3)
    assert drafted[0, -8:].tolist() == plain[0].tolist()


def test_speculative_decoding_gives_the_same_behind_padding(model):
    """The padding that a shortened cache carries is taken back with the tokens."""
    tokens = prompt()
    tokens = [*tokens, *tokens[-6:]]
    padded = inputs(tokens, images=[0])
    padded["input_ids"] = torch.cat([torch.zeros(1, 3).long(), padded["input_ids"]], 1)
    padded["attention_mask"] = torch.cat([torch.zeros(1, 3).long(), padded["attention_mask"]], 1)
    plain, _, _, _ = generate(model, inputs(tokens, images=[0]), METHOD, new=8)
    with vp.prune(model, METHOD):
        drafted = model.generate(**padded, do_sample=False, max_new_tokens=8, prompt_lookup_num_tokens=3)
    assert drafted[0, -8:].tolist() == plain[0].tolist()


def test_eager_attention_agrees(one):
    sdpa, eager = tiny_llava("sdpa"), tiny_llava("eager")
    assert_same(generate(sdpa, one, METHOD), generate(eager, one, METHOD))
    ragged = inputs(prompt(4, 6, 0), prompt(2, 3, 1), images=[0, 1])
    assert_same(generate(sdpa, ragged, METHOD), generate(eager, ragged, METHOD))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("sizes", [[(4, 6), (4, 6)], [(4, 6), (2, 3), (0, 9)]], ids=["equal", "ragged"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_a_batch_equals_its_rows_one_by_one(model, method, sizes, cache):
    prompts = [prompt(*size, seed) for seed, size in enumerate(sizes)]
    options = {} if cache is None else {"cache_implementation": cache}
    together = generate(model, inputs(*prompts, images=list(range(len(prompts)))), method, **options)
    for row, tokens in enumerate(prompts):
        alone = generate(model, inputs(tokens, images=[row]), method)
        assert_same((together[0][row], together[1][row]), (alone[0][0], alone[1][0]))
        assert together[3][0].images[row].indices == alone[3][0].images[0].indices


def test_rows_that_keep_different_numbers_of_images(model):
    """One row with two adjoining pictures, one with one, one with none: packed to the right, results as alone."""
    two = [1, *text(3, 7), *[IMAGE] * (2 * N), *text(5, 8)]
    none = [1, *text(9, 9)]
    together = generate(model, inputs(two, prompt(), none, images=[0, 1, 2]), METHOD)
    assert [(i.row, i.span) for i in together[3][0].images] == [(0, (4, N)), (0, (4 + N, N)), (1, (28, N))]
    for row, (tokens, images) in enumerate([(two, [0, 1]), (prompt(), [2])]):
        alone = generate(model, inputs(tokens, images=images), METHOD)
        assert_same((together[0][row], together[1][row]), (alone[0][0], alone[1][0]))
    dense = model.generate(input_ids=torch.tensor([none]), do_sample=False, max_new_tokens=6)
    assert dense[0, -6:].tolist() == together[0][2].tolist()


def test_released_code_prunes_the_first_image_only(model):
    method = vp.CentrifugalPruner(keep_tokens=8, compat="released")
    batch = inputs([1, *[IMAGE] * N, 5, *[IMAGE] * N, 6], images=[0, 1])
    receipt = generate(model, batch, method)[3][0]
    assert [i.n_after for i in receipt.images] == [8, N]


# Conversations: a cache that is used again


def test_a_second_turn_equals_one_long_prompt(model):
    first, second = prompt(), text(5, 50)
    with vp.prune(model, METHOD):
        whole = feed(model, DynamicCache(), first + second, pixel_values=image(0))
        cache = DynamicCache()
        feed(model, cache, first, pixel_values=image(0))
        in_turns = feed(model, cache, second)
    torch.testing.assert_close(whole, in_turns, atol=1e-4, rtol=1e-4)


def test_a_second_turn_with_another_picture_equals_one_long_prompt(model):
    first, second = prompt(), [*text(2, 60), *[IMAGE] * N, *text(3, 61)]
    with vp.prune(model, METHOD) as pruning:
        cache = DynamicCache()
        feed(model, cache, first, pixel_values=image(0))
        in_turns = feed(model, cache, second, pixel_values=image(1))
    assert cache.get_seq_length(2) == len(first) + len(second) - 2 * (N - 8)
    # Layers 0 and 1 are dense in both. From layer 2 on, a second picture sees the first one pruned in both.
    with vp.prune(model, METHOD) as together:
        whole = feed(model, DynamicCache(), first + second, pixel_values=torch.cat([image(0), image(1)]))
    kept = [i.indices for r in pruning.receipts for i in r.images]
    assert kept == [i.indices for i in together.receipts[0].images]
    torch.testing.assert_close(whole, in_turns, atol=1e-4, rtol=1e-4)


def test_two_conversations_in_turn_do_not_mix(model):
    with vp.prune(model, METHOD):
        a, b = DynamicCache(), DynamicCache()
        feed(model, a, prompt(4, 6), pixel_values=image(0))
        feed(model, b, prompt(1, 2), pixel_values=image(1))
        mixed = feed(model, a, text(2, 70))
        c = DynamicCache()
        feed(model, c, prompt(4, 6), pixel_values=image(0))
        torch.testing.assert_close(mixed, feed(model, c, text(2, 70)))


def test_a_changed_cache_is_noticed(model):
    with vp.prune(model, METHOD):
        cache = DynamicCache()
        feed(model, cache, prompt(), pixel_values=image(0))
        cache.layers[0].crop(-1)
        cache.layers[1].crop(-1)
        with pytest.raises(CacheError, match="16 tokens instead of 17"):
            feed(model, cache, [7])


def test_a_batch_pruned_elsewhere_is_refused(model):
    batch = inputs(prompt(4, 6, 0), prompt(2, 3, 1), images=[0, 1])
    cache = DynamicCache()
    with torch.no_grad(), vp.prune(model, METHOD):
        model(**with_cache(batch, cache))
    with torch.no_grad(), vp.prune(model, METHOD), pytest.raises(CacheError, match="pruned elsewhere"):
        model(input_ids=torch.tensor([[7], [8]]), **cache_argument(cache))


# No trace is left


def test_everything_is_as_before_afterwards(model, one):
    before, names, count = generate(model, one), state(model), hooks(model)
    with vp.prune(model, METHOD) as pruning:
        model.generate(**one, max_new_tokens=2)
        assert hooks(model) > count
    assert hooks(model) == count and state(model) == names
    after = generate(model, one)
    assert torch.equal(before[1], after[1])
    assert len(pruning.receipts) == 1


@pytest.mark.parametrize("where", ["vision_tower", "language_model.layers.1", "language_model.layers.3"])
def test_an_exception_leaves_no_trace(model, one, where):
    def fail(*_):
        raise KeyboardInterrupt

    before, count = generate(model, one, METHOD), hooks(model)
    hook = model.model.get_submodule(where).register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt), vp.prune(model, METHOD) as pruning:
        model.generate(**one, max_new_tokens=2)
    hook.remove()
    assert hooks(model) == count
    assert torch.equal(before[1], generate(model, one, METHOD)[1])
    with pruning:
        model.generate(**one, max_new_tokens=2)
    assert pruning.receipts[-1].images[0].indices == before[3][0].images[0].indices


def test_a_failed_prefill_inside_the_context_does_not_reach_the_next(model, one):
    with vp.prune(model, METHOD) as pruning:
        with pytest.raises(ValueError):
            model.generate(**{**one, "pixel_values": one["pixel_values"].repeat(2, 1, 1, 1)}, max_new_tokens=2)
        with pytest.warns(PruningWarning):
            model.generate(input_ids=torch.tensor([[1, 5, 6]]), max_new_tokens=2)
        assert pruning.receipts[-1].images == []


def test_re_entry_is_refused_and_changes_nothing(model, one):
    with vp.prune(model, METHOD) as pruning:
        inside = hooks(model)
        with pytest.raises(RuntimeError, match="already"):
            pruning.__enter__()
        with pytest.raises(RuntimeError, match="already"), vp.prune(model, vp.RandomPruner(keep_tokens=4)):
            pass
        assert hooks(model) == inside
        model.generate(**one, max_new_tokens=1)
    assert pruning.receipts[-1].images[0].n_after == 8


def test_two_models_at_once(one):
    first, second = tiny_llava(seed=0), tiny_llava(seed=1)
    other = vp.RandomPruner(keep_tokens=3, layer=1)
    alone = generate(first, one, METHOD), generate(second, one, other)
    with vp.prune(first, METHOD) as a, vp.prune(second, other) as b:
        logits = first(**one).logits[:, -1], second(**one).logits[:, -1]
    torch.testing.assert_close(logits[0], alone[0][1][:, 0])
    torch.testing.assert_close(logits[1], alone[1][1][:, 0])
    assert (a.receipts[0].images[0].n_after, b.receipts[0].images[0].n_after) == (8, 3)


# Bad input


def test_text_without_a_picture_warns_once_and_shows_in_the_receipt(model):
    ids = torch.tensor([[1, 5, 6, 7]])
    dense = model.generate(input_ids=ids, do_sample=False, max_new_tokens=3)
    with pytest.warns(PruningWarning, match="no visual tokens") as warned, vp.prune(model, METHOD) as pruning:
        for _ in range(2):
            assert torch.equal(model.generate(input_ids=ids, do_sample=False, max_new_tokens=3), dense)
    assert len([w for w in warned if w.category is PruningWarning]) == 1
    assert [r.images for r in pruning.receipts] == [[], []]


def test_a_picture_does_not_warn(model, one):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PruningWarning)
        generate(model, one, METHOD)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (vp.CentrifugalPruner(keep_tokens=8, layer=4), "layer=4, .* last layer is 3; use layer=1 to layer=3"),
        (vp.CentrifugalPruner(keep_tokens=26), "keep_tokens=26, .* only 25"),
        ("vlm-pruner", "not a pruning method"),
    ],
)
def test_settings_that_do_not_fit_the_model_stop_before_it_runs(model, one, method, message):
    calls, count = [], hooks(model)
    hook = model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(PruningError, match=message), vp.prune(model, method):
        model.generate(**one, max_new_tokens=1)
    hook.remove()
    assert not calls and hooks(model) == count


def test_a_placeholder_that_the_model_generates_is_a_word(model, one):
    with torch.no_grad(), vp.prune(model, METHOD) as pruning:
        cache = DynamicCache()
        model(**with_cache(one, cache))
        model(input_ids=torch.tensor([[IMAGE]]), **cache_argument(cache))
    assert len(pruning.receipts) == 1


def test_arguments_may_be_positional(model, one):
    with torch.no_grad(), vp.prune(model, METHOD) as pruning:
        model(one["input_ids"], one["pixel_values"])
        model.model(one["input_ids"], one["pixel_values"])
    with torch.no_grad(), vp.prune(model.model, METHOD) as inner:
        model.model(one["input_ids"], one["pixel_values"])
    kept = [r.images[0].indices for r in pruning.receipts + inner.receipts]
    assert len(kept) == 3 and kept[0] == kept[1] == kept[2]


def test_a_prompt_prefilled_in_pieces_is_refused(model, one):
    with vp.prune(model, METHOD), pytest.raises(PruningError, match="one forward call"):
        model(input_ids=one["input_ids"][:, :20], pixel_values=one["pixel_values"])


def test_embeddings_in_place_of_ids_are_refused(model, one):
    embeds = model.get_input_embeddings()(one["input_ids"])
    with vp.prune(model, METHOD), pytest.raises(PruningError, match="input_ids"):
        model(inputs_embeds=embeds, pixel_values=one["pixel_values"])


def test_unsupported_models_are_named_with_the_supported_ones():
    with pytest.raises(UnsupportedModelError, match=r"Linear is not supported.*LlavaForConditionalGeneration"):
        vp.prune(torch.nn.Linear(2, 2), METHOD)


def test_sliding_windows_are_refused(model):
    config = model.model.language_model.config
    config.sliding_window, before = 8, getattr(config, "sliding_window", None)
    try:
        with pytest.raises(PruningError, match="full attention"):
            vp.prune(model, METHOD)
    finally:
        config.sliding_window = before


# Cost


def real_bytes(cache):
    return sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))


def test_predicted_cache_bytes_are_the_real_ones(model, one):
    shape = DecoderShape.of(model.config.text_config)
    text_tokens = one["input_ids"].shape[1] - N
    _, _, dense, _ = generate(model, one, new=4)
    _, _, short, _ = generate(model, one, METHOD, new=4)
    for steps, cache in (([], dense), ([(2, 8)], short)):
        assert kv_bytes(shape, lengths(shape, text_tokens + 3, N, steps), bytes_per_number=4) == real_bytes(cache)


@pytest.mark.parametrize("room", [0, 1, 28])
def test_static_cache_argument_is_used_in_full(model, one, room):
    """A static cache given by the caller, rather than made by generate, with unused room or none.

    SDPA needs no mask in such a prefill, as in the dense model, although the cache returns its unused room too.
    """
    cache = StaticCache(config=model.config.text_config, max_cache_len=one["input_ids"].shape[1] + room)
    other = DynamicCache()
    with torch.no_grad(), vp.prune(model, METHOD):
        static = model(**with_cache(one, cache)).logits[0, -1]
        dynamic = model(**with_cache(one, other)).logits[0, -1]
        torch.testing.assert_close(static, dynamic)
        if room:
            torch.testing.assert_close(feed(model, cache, [9]), feed(model, other, [9]))
