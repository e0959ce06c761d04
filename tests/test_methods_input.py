"""layer=0: tokens are dropped at the decoder's input, and every layer's cache is short."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

import vlm_pruner as vp
from tests import llava_tiny
from tests.running import feed
from tests.tiny_llava import LAYERS, N, image, inputs, prompt, text, tiny_llava
from vlm_pruner.decoder.cache_names import cache_argument, cache_of
from vlm_pruner.errors import CacheError, PruningError

METHOD = vp.CentrifugalPruner(keep_tokens=8, layer=0)
STAIRS = vp.methods.get("pyramiddrop")(keep_tokens=8, layer=0)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def test_dropping_at_the_input_is_a_shorter_prompt_with_gaps_in_its_positions(model):
    """Given the kept embeddings and their places, the dense decoder computes the same."""
    batch = inputs(prompt(), images=[0])
    method = vp.methods.get("divprune")(keep_tokens=8)
    with torch.no_grad(), vp.prune(model, method) as pruning:
        short = model(**batch).logits
    with torch.no_grad():
        embeddings = model(**batch, output_hidden_states=True).hidden_states[0]
        kept = [*range(5), *(5 + i for i in pruning.receipts[0].images[0].indices), *range(5 + N, 5 + N + 6)]
        states = model.model.language_model(
            inputs_embeds=embeddings[:, kept],
            position_ids=torch.tensor([kept]),
            attention_mask=torch.ones(len(kept), len(kept)).tril().bool()[None, None],
        ).last_hidden_state
        torch.testing.assert_close(short, model.lm_head(states), atol=1e-4, rtol=1e-4)


def test_vlm_pruner_at_the_input_takes_embeddings_for_keys(model):
    batch = inputs(prompt(), images=[0])
    with torch.no_grad(), vp.prune(model, METHOD) as pruning:
        model(**batch)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states[0][0, 5 : 5 + N]
    chosen = METHOD.select(states, states, vp.TokenLayout.grid(5, 5), 8)
    assert pruning.receipts[0].images[0].order == chosen.order.tolist()


def test_every_layer_holds_the_short_sequence(model):
    batch = inputs(prompt(), images=[0])
    with vp.prune(model, METHOD):
        cache = cache_of(model.generate(**batch, max_new_tokens=4, return_dict_in_generate=True))
    assert [cache.get_seq_length(i) for i in range(LAYERS)] == [36 - N + 8 + 3] * LAYERS


@pytest.mark.parametrize("method", [METHOD, vp.RandomPruner(keep_tokens=8, layer=0)], ids=lambda m: m.name)
def test_tokens_fed_one_by_one_continue_from_the_long_sequence(model, method):
    """The cache's length says less than the positions: without help the decoder would count from the short one."""
    words = text(3, 70)
    whole = inputs([*prompt(), *words], images=[0])
    for cache in (DynamicCache(), StaticCache(config=model.config.text_config, max_cache_len=64)):
        with vp.prune(model, method):
            feed(model, cache, prompt(), pixel_values=image(0))
            stepwise = [feed(model, cache, [word]) for word in words][-1]
            with torch.no_grad():
                at_once = model(**whole).logits[0, -1]
        torch.testing.assert_close(stepwise, at_once, atol=1e-4, rtol=1e-4)


def test_a_second_turn_by_hand_with_padding(model):
    """Two rows of different length, then words for both: padding of the short cache, positions of the long one."""
    prompts, words = [prompt(4, 6, 0), prompt(2, 3, 1)], [text(2, 71), text(2, 72)]
    batch = inputs(*prompts, images=[0, 1])
    method = vp.RandomPruner(keep_tokens=8, layer=0)
    with torch.no_grad(), vp.prune(model, method):
        cache = DynamicCache()
        mask = batch["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model(**batch, position_ids=positions, **cache_argument(cache), use_cache=True)
        mask = torch.cat([mask, mask.new_ones(2, 2)], 1)
        later = (mask.cumsum(1) - 1)[:, -2:]
        both = model(
            input_ids=torch.tensor(words),
            attention_mask=mask,
            position_ids=later,
            **cache_argument(cache),
            use_cache=True,
        ).logits[:, -1]
        for row in range(2):
            alone = model(**inputs(prompts[row] + words[row], images=[row])).logits[0, -1]
            torch.testing.assert_close(both[row], alone, atol=1e-4, rtol=1e-4)


def test_speculative_decoding_gives_the_same(model):
    tokens = [*prompt(), *prompt()[-6:]]
    batch = inputs(tokens, images=[0])
    with vp.prune(model, METHOD):
        plain = model.generate(**batch, do_sample=False, max_new_tokens=8)
        drafted = model.generate(**batch, do_sample=False, max_new_tokens=8, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, drafted)


def test_a_conversation_that_generate_would_cut_wrongly_is_refused(model):
    """`generate` feeds what lies behind the first layer's length, which is too much here."""
    first = inputs(prompt(), images=[0])
    with vp.prune(model, METHOD):
        out = model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        longer = torch.cat([out.sequences, torch.tensor([text(3, 70)])], dim=1)
        with pytest.raises(CacheError, match="continued by hand"):
            model.generate(input_ids=longer, **cache_argument(cache_of(out)), max_new_tokens=2)


def test_both_doors_of_llava_agree():
    model, pixels = llava_tiny.model(), llava_tiny.pixels(0)
    ids = llava_tiny.prompt_ids()
    for method in (vp.CentrifugalPruner(keep_tokens=9, layer=0), vp.methods.get("divprune")(keep_tokens=9)):
        with vp.prune(model, method) as pruning:
            outside = model.generate(ids, images=pixels, max_new_tokens=6, do_sample=False)
        model.model.method = method
        inside = model.generate(ids, images=pixels, max_new_tokens=6, do_sample=False)
        model.model.method = None
        assert torch.equal(inside, outside) and pruning.receipts[0].images[0].n_after == 9


@pytest.mark.parametrize("name", ["fastv", "dart", "sparsevlm"])
def test_methods_that_look_back_need_a_layer_before(name):
    with pytest.raises(PruningError, match=r"layer=0: .* looks at the layer before"):
        vp.methods.get(name)(keep_tokens=8, layer=0)
