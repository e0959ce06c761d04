"""Pruning at several layers in one run, and methods that read attention, in every family of models."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import vlm_pruner as vp
from tests import llava_tiny, tiny_qwen
from tests.tiny_llava import LAYERS, N, inputs, prompt, tiny_llava
from vlm_pruner.decoder.cache_names import cache_of
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.methods.schedule import stage_budgets, stage_layers

STAGED = [name for name in vp.methods.names() if len(vp.methods.get(name)(keep_tokens=64).layers(32)) > 1]
FASTV = vp.methods.get("fastv")(keep_tokens=6)
PYRAMID = vp.methods.get("pyramiddrop")(keep_tokens=6, layer=1)
SPARSE = vp.methods.get("sparsevlm")(keep_tokens=6, layer=1)
OFFICIAL = vp.methods.get("pyramiddrop")(stages=(8, 16, 24), ratios=(0.5, 0.25, 0.125))


@dataclass(frozen=True)
class Stairs(Pruner):
    """Twelve tokens before layer 1, five before layer 3, in a fixed pattern."""

    def layers(self, depth):
        return (1, 3)

    def budgets(self, tokens, depth, rounding="round"):
        return (12, 5)

    def select(self, hidden, keys, layout, budget):
        order = (torch.arange(budget) * 7 + 3) % len(hidden)  # 7 has no common factor with 25 and 12
        return Selection(order.sort().values, order)


STAIRS = Stairs(keep_tokens=5, layer=1)


def kept_by_stairs():
    first = sorted((i * 7 + 3) % 25 for i in range(12))
    return first, sorted(first[(i * 7 + 3) % 12] for i in range(5))


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def test_two_stages_equal_two_masks(model):
    """From each stage on, no token may look at what was dropped there; phases stay those of the long sequence."""
    batch = inputs(prompt(), images=[0])
    with torch.no_grad(), vp.prune(model, STAIRS) as pruning:
        short = model(**batch).logits[0, -6:]
    length, first, second = batch["input_ids"].shape[1], *kept_by_stairs()

    def hide(kept):
        mask = torch.ones(length, length).tril().bool()
        mask[:, [5 + i for i in range(N) if i not in kept]] = False
        mask |= torch.eye(length).bool()
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask[None, None]})

    layers = model.model.language_model.layers
    hooks = [layers[i].register_forward_pre_hook(hide(first), with_kwargs=True) for i in (1, 2)]
    hooks.append(layers[3].register_forward_pre_hook(hide(second), with_kwargs=True))
    with torch.no_grad():
        masked = model(**batch).logits[0, -6:]
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(short, masked, atol=1e-4, rtol=1e-4)
    assert pruning.receipts[0].images[0].indices == second
    assert pruning.receipts[0].images[0].coords == [[i % 5, i // 5] for i in second]


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 2}])
def test_stages_hold_on_while_decoding(model, options):
    batch = inputs(prompt(4, 6, 0), prompt(2, 9, 1), images=[0, 1])
    asked = dict(do_sample=False, max_new_tokens=5, **options)
    with vp.prune(model, STAIRS) as pruning:
        together = model.generate(**batch, **asked)[:, -5:]
        alone = [
            model.generate(**inputs(tokens, images=[row]), **asked)[0, -5:]
            for row, tokens in enumerate([prompt(4, 6, 0), prompt(2, 9, 1)])
        ]
    assert together.tolist() == [tokens.tolist() for tokens in alone]
    receipt = pruning.receipts[0]
    assert {tuple(image.indices) for image in receipt.images} == {tuple(kept_by_stairs()[1])}
    assert receipt.images[0].steps == [[1, 12], [3, 5]] and (receipt.layer, receipt.images[0].layer) == (1, 3)


def test_each_stage_has_its_own_cache_length(model):
    batch = inputs(prompt(), images=[0])
    with vp.prune(model, STAIRS):
        cache = cache_of(model.generate(**batch, max_new_tokens=3, return_dict_in_generate=True))
    long = batch["input_ids"].shape[1] + 2
    assert [cache.get_seq_length(i) for i in range(LAYERS)] == [long, long - 13, long - 13, long - 20]


def test_an_exception_between_stages_leaves_no_trace(model):
    def fail(*_):
        raise KeyboardInterrupt

    batch = inputs(prompt(), images=[0])
    with torch.no_grad():
        before = model(**batch).logits
    hook = model.model.language_model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt), vp.prune(model, STAIRS) as pruning:
        model(**batch)
    hook.remove()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)
        with pruning:
            model(**batch)
    assert len(pruning.receipts) == 1 and pruning.receipts[0].images[0].n_after == 5


@pytest.mark.parametrize("method", [FASTV, STAIRS, PYRAMID, SPARSE], ids=lambda m: type(m).__name__)
def test_both_doors_of_llava_agree(method):
    model = llava_tiny.model()
    ids, pixels = llava_tiny.prompt_ids(), llava_tiny.pixels(0)
    with vp.prune(model, method) as pruning:
        outside = model.generate(ids, images=pixels, max_new_tokens=6, do_sample=False)
    model.model.method = method
    inside = model.generate(ids, images=pixels, max_new_tokens=6, do_sample=False)
    assert torch.equal(inside, outside)
    assert model.model.receipts == pruning.receipts
    assert model.model.receipts[0].images[0].n_after == method.budgets(36, 4)[-1]


@pytest.mark.parametrize("method", [FASTV, PYRAMID, SPARSE], ids=lambda m: m.name)
@pytest.mark.parametrize("family", tiny_qwen.FAMILIES)
def test_qwen_batches_equal_single_prompts(family, method):
    """Pictures and films of several sizes; in Qwen3-VL with features added after layers that run short."""
    model = tiny_qwen.model(family)
    prompts = [
        [*tiny_qwen.text(4, 1), tiny_qwen.image(4, 6, 1), *tiny_qwen.text(5, 2)],
        [
            *tiny_qwen.text(2, 5),
            tiny_qwen.video(3, 4, 3, 4),
            *tiny_qwen.text(3, 3),
            tiny_qwen.image(3, 3, 2),
            *tiny_qwen.text(4, 6),
        ],
    ]
    asked = dict(do_sample=False, max_new_tokens=4)
    with vp.prune(model, method) as pruning:
        together = model.generate(**tiny_qwen.inputs(family, *prompts), **asked)[:, -4:]
        alone = [model.generate(**tiny_qwen.inputs(family, one), **asked)[0, -4:] for one in prompts]
    first, *rest = pruning.receipts
    assert [image.order for image in first.images] == [image.order for one in rest for image in one.images]
    assert together.tolist() == [tokens.tolist() for tokens in alone]


@pytest.mark.parametrize("family", tiny_qwen.FAMILIES)
def test_fastv_reads_qwens_attention(family):
    """Also where queries are normalised (Qwen3-VL) or have a bias, and positions have three axes."""
    prompt = [*tiny_qwen.text(4, 1), tiny_qwen.image(4, 6, 1), *tiny_qwen.text(5, 2)]
    batch = tiny_qwen.inputs(family, prompt)
    with torch.no_grad(), vp.prune(tiny_qwen.model(family), FASTV) as pruning:
        tiny_qwen.model(family)(**batch)
    with torch.no_grad():
        maps = tiny_qwen.build(family, "eager")(**batch, output_attentions=True).attentions
    start = pruning.receipts[0].images[0].span[0]
    scores = maps[1][0].mean(dim=0)[-1, start : start + 24]
    assert pruning.receipts[0].images[0].order == scores.argsort(descending=True)[:6].tolist()


# Budgets


@pytest.mark.parametrize("tokens", [9, 576, 2880])
@pytest.mark.parametrize("depth", [2, 4, 28, 32])
@pytest.mark.parametrize("name", STAGED)
def test_the_mean_over_the_layers_is_the_budget(name, depth, tokens):
    for mean in {3, tokens // 9 + 2, tokens // 3, tokens - 1, tokens}:
        method = vp.methods.get(name)(keep_tokens=mean, layer=1)
        layers, budgets = method.layers(depth), method.budgets(tokens, depth)
        held = [0] * depth
        for layer, budget in zip(layers, budgets, strict=True):
            held[layer:] = [budget] * (depth - layer)
        assert mean - 1 < sum(held[1:]) / (depth - 1) <= mean
        lengths = [end - start for start, end in zip(layers, [*layers[1:], depth], strict=True)]
        spare = mean * (depth - 1) - sum(held[1:])
        full = [budget == most for budget, most in zip(budgets, [tokens, *budgets], strict=False)]
        assert all(full[i] or spare < length for i, length in enumerate(lengths)), "another token would fit"
        assert list(budgets) == sorted(budgets, reverse=True) and tokens >= budgets[0] and budgets[-1] >= 1


def test_published_schedules():
    assert OFFICIAL.layers(32) == (8, 16, 24) and OFFICIAL.budgets(576, 32) == (288, 144, 72)
    assert vp.methods.get("sparsevlm")(keep_tokens=64, layer=3).layers(32) == (3, 7, 16)
    released = vp.methods.get("sparsevlm")(keep_tokens=64, compat="released")
    assert released.layers(32) == (3, 7, 16) and released.budgets(576, 32) == (82, 32, 18)


@pytest.mark.parametrize("name", STAGED)
def test_a_stage_behind_the_last_layer_is_refused_wherever_a_budget_is_asked_for(name):
    with pytest.raises(PruningError, match=r"layer=3, but the decoder's last layer is 2; use layer=1 to layer=2"):
        vp.methods.get(name)(keep_tokens=9, layer=3).budgets(25, 3)


def test_stages_of_shallow_decoders():
    assert stage_layers(1, 4, (0, 0.14, 0.45)) == (1, 2, 3)
    assert stage_layers(2, 4, (0, 1 / 3, 2 / 3)) == (2, 3)
    assert stage_budgets(100, 1, (1, 2), 3, (2, 1)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pyramiddrop", {"ratios": 0.5}, "ratios=0.5 must be a list of numbers"),
        ("pyramiddrop", {"stages": 8, "keep_tokens": 9}, "stages=8 must be a list of numbers"),
        ("pyramiddrop", {"ratios": (0.5, 0.25, 0.125), "keep_tokens": 9}, "not both"),
        ("pyramiddrop", {"ratios": (0.5, 0.25)}, "each of 3 stages"),
        ("pyramiddrop", {"ratios": (0.25, 0.5, 0.1)}, "must not rise"),
        ("pyramiddrop", {"keep_tokens": 9, "stages": (3, 2)}, "ascending"),
        ("pyramiddrop", {}, "exactly one"),
        ("pyramiddrop", {"ratios": (0.5, 0.25, 0.125), "newlines": "kept"}, "newlines='kept' is not one of"),
        ("sparsevlm", {"keep_tokens": 65, "compat": "released"}, "keep_tokens=65 .* 192, 128, 64 only"),
        ("sparsevlm", {"keep_tokens": 64, "share": 1.0}, "share=1.0"),
        ("sparsevlm", {"keep_tokens": 64, "compat": "paper"}, "compat='paper'"),
        ("dart", {"keep_tokens": 3}, "keep_tokens=3 is less than image_pivots=4"),
        ("dart", {"keep_tokens": 9, "image_pivots": 0, "text_pivots": 0}, "at least one pivot"),
        ("dart", {"keep_tokens": 9, "compat": "paper"}, "compat='paper'"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(PruningError, match=message):
        vp.methods.get(name)(**settings)


def test_a_stage_beyond_the_last_layer_is_refused(model):
    with pytest.raises(PruningError, match=r"layer=24, but the decoder's last layer is 3"):
        vp.prune(model, OFFICIAL)
