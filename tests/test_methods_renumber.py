"""renumber=True: the remaining tokens get consecutive positions, as in several methods' published code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import vlm_pruner as vp
from tests.test_methods_stages import STAIRS, kept_by_stairs
from tests.tiny_llava import N, image, inputs, prompt, text, tiny_llava
from vlm_pruner.decoder.cache_names import cache_argument

AT_INPUT = vp.methods.get("divprune")(keep_tokens=8, renumber=True)
ONCE = vp.RandomPruner(keep_tokens=8, renumber=True)
TWICE = replace(STAIRS, renumber=True)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def test_at_the_input_it_is_a_shorter_prompt(model):
    """Tokens and logits of the dense decoder, given nothing but the kept embeddings."""
    batch = inputs(prompt(), images=[0])
    asked = dict(max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with vp.prune(model, AT_INPUT) as pruning:
        pruned = model.generate(**batch, **asked)
    kept = [*range(5), *(5 + i for i in pruning.receipts[0].images[0].indices), *range(5 + N, 5 + N + 6)]
    with torch.no_grad():
        embeddings = model(**batch, output_hidden_states=True).hidden_states[0][:, kept]
        for step in range(5):
            logits = model.lm_head(model.model.language_model(inputs_embeds=embeddings).last_hidden_state[:, -1])
            torch.testing.assert_close(pruned.logits[step], logits, atol=1e-4, rtol=1e-4)
            word = pruned.sequences[:, step - 5][:, None]
            embeddings = torch.cat([embeddings, model.get_input_embeddings()(word)], dim=1)


def test_each_stage_counts_anew(model):
    """Against a loop over the layers, with rotary phases of 0, 1, 2, ... from each stage on."""
    batch = inputs(prompt(), images=[0])
    with torch.no_grad(), vp.prune(model, TWICE):
        pruned = model(**batch).logits
    first, second = kept_by_stairs()
    stay = {
        1: [*range(5), *(5 + i for i in first), *range(30, 36)],
        3: [*range(5), *(5 + first.index(i) for i in second)],
    }
    stay[3] += range(5 + len(first), 5 + len(first) + 6)
    decoder = model.model.language_model
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states[0]
        for number, layer in enumerate(decoder.layers):
            hidden = hidden[:, stay.get(number, range(hidden.shape[1]))]
            length = hidden.shape[1]
            phases = decoder.rotary_emb(hidden, torch.arange(length)[None])
            mask = torch.ones(length, length).tril().bool()[None, None]
            hidden = layer(hidden, attention_mask=mask, position_embeddings=phases)
        torch.testing.assert_close(pruned, model.lm_head(decoder.norm(hidden)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [AT_INPUT, ONCE, TWICE], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 2}])
def test_decoding_goes_on_from_there(model, method, options):
    prompts = [prompt(4, 6, 0), prompt(2, 9, 1)]
    asked = dict(do_sample=False, max_new_tokens=5, **options)
    with vp.prune(model, method):
        together = model.generate(**inputs(*prompts, images=[0, 1]), **asked)[:, -5:]
        alone = [model.generate(**inputs(ids, images=[row]), **asked)[0, -5:] for row, ids in enumerate(prompts)]
        cached = model.generate(**inputs(prompts[0], images=[0]), do_sample=False, max_new_tokens=5)[0, -5:]
    assert together.tolist() == [tokens.tolist() for tokens in alone]
    assert "num_beams" in options or alone[0].tolist() == cached.tolist()


@pytest.mark.parametrize("method", [AT_INPUT, ONCE, TWICE], ids=lambda m: type(m).__name__)
def test_a_second_picture_in_a_later_turn(model, method):
    first, second = prompt(4, 6, 0), [*prompt(1, 4, 1)[1:], *text(2, 70)]
    whole = {"input_ids": torch.tensor([first + second]), "pixel_values": torch.cat([image(0), image(1)])}
    cache = DynamicCache()
    with torch.no_grad(), vp.prune(model, method):
        for ids, number in ((first, 0), (second[:-1], 1)):
            turn = {"input_ids": torch.tensor([ids]), "pixel_values": image(number)}
            model(**turn, **cache_argument(cache), use_cache=True)
        last = model(input_ids=torch.tensor([second[-1:]]), **cache_argument(cache), use_cache=True).logits[0, -1]
        at_once = model(**whole).logits[0, -1]
    torch.testing.assert_close(last, at_once, atol=1e-4, rtol=1e-4)


def test_it_makes_a_difference(model):
    batch = inputs(prompt(), images=[0])
    with torch.no_grad():
        with vp.prune(model, ONCE):
            anew = model(**batch).logits[0, -1]
        with vp.prune(model, replace(ONCE, renumber=False)):
            kept = model(**batch).logits[0, -1]
    assert (anew - kept).abs().max() > 0.01
