"""Calibration: what a kept token stands for is added to attention, in every family, layer, kernel and call."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import DynamicCache

import vlm_pruner as vp
from tests.families import FAMILIES, MIXED, ONE, TWO, WORDS, Family
from tests.running import assert_close, dropped, forward, generate, prefill
from tests.test_running_kinds import EVERY, METHODS
from tests.tiny_llava import N, inputs, prompt, tiny_llava
from tests.tiny_qwen import LAYERS, text
from vlm_pruner.decoder.cache_names import cache_argument, with_cache
from vlm_pruner.decoder.calibration import Sizes
from vlm_pruner.decoder.pruning import DecoderPruning
from vlm_pruner.errors import CacheError, PruningError
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner, Selection

pytestmark = pytest.mark.filterwarnings("ignore::vlm_pruner.decoder.pruning.PruningWarning")

KEEP = vp.CentrifugalPruner(keep_tokens=5, self_weight=1.0)
KINDS = ("size", "size+distance")
BOTH = "size+distance"
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
kinds = pytest.mark.parametrize("kind", KINDS)
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
IN_TURN = [pytest.param(method, KINDS[i % 2], id=method.name) for i, method in enumerate(METHODS)]


def calibrated(method: Pruner, kind: str | None, power: float = 1.0) -> Pruner:
    return replace(method, calibrate=kind, size_power=power)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.fixture
def counted(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(indices, group) of every image that is counted."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    count = Sizes.count

    def noting(self, row, image, indices, group):
        seen.append((indices, group))
        count(self, row, image, indices, group)

    monkeypatch.setattr(Sizes, "count", noting)
    return seen


# The slow, obvious reference: the dense model with dropped tokens out of sight, and the terms in its mask


def frequencies(family: Family, model) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary frequencies [F], and the axis [F] along which each turns."""
    rotary, config = family.decoder(model).rotary_emb, family.decoder(model).config
    every = rotary.inv_freq.double()
    sections = config.rope_parameters.get("mrope_section")
    axes = torch.zeros(len(every), dtype=torch.long)
    if sections and family.name.startswith("qwen3"):  # t h w t h w ..., as long as an axis has any left; then time
        for axis in (1, 2):
            axes[axis : 3 * sections[axis] : 3] = axis
    elif sections:
        axes = torch.arange(3).repeat_interleave(torch.tensor(sections))
    return every, axes


def distance_terms(family: Family, model, positions: torch.Tensor) -> torch.Tensor:
    """[T, T] from position ids, [1, T] or [3, 1, T]."""
    every, axes = frequencies(family, model)
    places = (positions if positions.ndim == 3 else positions[None].expand(3, -1, -1))[:, 0].double()
    apart = places[:, :, None] - places[:, None, :]  # [3, T, T]
    mean = sum((apart[axis] * frequency).cos() for axis, frequency in zip(axes, every, strict=True)) / len(every)
    return (2 - mean).log().float()


def with_terms(family: Family, model, batch, images, method: Pruner):
    """Logits of the dense model whose layers from `method.layer` on get the reference's mask."""
    length = batch["input_ids"].shape[1]
    visible = torch.ones(length, length).tril().bool()
    visible[:, dropped(images)] = False
    visible |= torch.eye(length).bool()
    terms = torch.zeros(length, length)
    for image in images:
        places = image.offsets or range(image.n_before)
        for position, index in enumerate(image.indices):
            size = sum(nearest == position for nearest in image.nearest)
            terms[:, image.span[0] + places[index]] = method.size_power * torch.tensor(size).log()
    noted, rotary = {}, family.decoder(model).rotary_emb

    def note(module, args, kwargs):
        noted["positions"] = kwargs["position_ids"] if "position_ids" in kwargs else args[1]

    def calibrate(module, args, kwargs):
        here = terms
        if method.calibrate == "size+distance":
            first = min(image.span[0] for image in images)
            here = terms + distance_terms(family, model, noted["positions"]) * (torch.arange(length) >= first)[:, None]
        mask = torch.where(visible, here, torch.finfo(torch.float32).min)[None, None]
        return args, {**kwargs, "attention_mask": mask}

    hooks = [rotary.register_forward_pre_hook(note, with_kwargs=True)]
    for layer in family.decoder(model).layers[method.layer :]:
        hooks.append(layer.register_forward_pre_hook(calibrate, with_kwargs=True))
    out = forward(model, batch)[0].logits
    for hook in hooks:
        hook.remove()
    return out


@pytest.mark.parametrize("method", [calibrated(KEEP, "size"), calibrated(KEEP, "size", 0.5),
                                    calibrated(replace(KEEP, layer=1), "size+distance")],
                         ids=["size", "root", "distance"])  # fmt: skip
@families
def test_it_is_the_dense_model_with_terms_in_its_mask(family, method):
    for visual in family.prompts.values():
        batch = family.inputs(visual)
        short, images = forward(family.model, batch, method)
        long = with_terms(family, family.model, batch, images, method)
        assert_close(short.logits[:, -2:], long[:, -2:])
        off = forward(family.model, batch, calibrated(method, None))[0].logits
        assert (short.logits[:, -1] - off[:, -1]).abs().max() > 1e-4


# Nothing where nothing is dropped


@kinds
@families
def test_keeping_everything_is_the_dense_model_bit_for_bit(family, kind):
    method = vp.CentrifugalPruner(reduction_ratio=0.0, calibrate=kind)
    for visual in (TWO, MIXED) if family.videos else (TWO,):
        batch = family.inputs(visual)
        dense, kept = generate(family.model, batch), generate(family.model, batch, method)
        assert torch.equal(dense[1], kept[1]) and torch.equal(dense[0], kept[0])


@methods
@families
def test_power_0_is_no_calibration_bit_for_bit(family, method):
    """Under eager attention, whose mask is added in any case."""
    batch = family.inputs(TWO)
    off, zero = (forward(family.eager, batch, calibrated(method, *how))[0] for how in ((None,), ("size", 0.0)))
    assert torch.equal(off.logits, zero.logits)


# k equal tokens and one of size k


@dataclass(frozen=True)
class Lasts(Pruner):
    """Of every `each` visual tokens, keeps the last; says which it stands for, or leaves that to similarity."""

    each: int = 3
    told: bool = True

    def select(self, hidden, keys, layout, budget):
        order = torch.arange(self.each - 1, len(hidden), self.each)
        into = torch.arange(len(hidden)) // self.each if self.told else None
        return Selection(order, order, into=into)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("attention", ["model", "eager"])
@families
def test_equal_tokens_and_one_of_their_number_give_the_same(family, attention, told):
    """The visual tokens see each other in both directions, so that equal ones stay equal through the layers."""
    decoder = family.decoder(getattr(family, attention))
    before, visual, after, each = 3, 12, 5, 3
    length = before + visual + after
    generator = torch.Generator().manual_seed(0)
    different = torch.randn(visual // each, decoder.config.hidden_size, generator=generator)
    words = torch.randn(before + after, decoder.config.hidden_size, generator=generator)
    hidden = torch.cat([words[:before], different.repeat_interleave(each, 0), words[before:]])[None]
    places = torch.arange(visual // each).repeat_interleave(each) + before
    positions = torch.cat([torch.arange(before), places, torch.arange(after) + before + visual // each])[None]
    allowed = torch.ones(length, length).tril().bool()
    allowed[before : before + visual, before : before + visual] = True
    mask = torch.zeros(length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
    call = {"inputs_embeds": hidden, "position_ids": positions, "attention_mask": mask, "use_cache": False}
    method = Lasts(keep_tokens=visual // each, layer=1, each=each, told=told, calibrate="size")
    outcome = {}
    with torch.no_grad():
        dense = decoder(**call).last_hidden_state[0]
        for kind in ("size", None):
            with DecoderPruning(decoder, replace(method, calibrate=kind)) as pruning:
                pruning.expect([[VisualSpan(before, visual, TokenLayout.grid(3, 4))]])
                outcome[kind] = decoder(**call).last_hidden_state[0]
    torch.testing.assert_close(outcome["size"][-after:], dense[-after:], atol=1e-5, rtol=1e-4)
    assert (outcome[None][-after:] - dense[-after:]).abs().max() > 1e-3


# Kernels, batches, and every way to decode


@families
def test_eager_attention_agrees(family):
    for prompts in ([TWO], [ONE, TWO, WORDS]):
        batch = family.inputs(*prompts)
        sdpa, eager = (generate(model, batch, calibrated(KEEP, BOTH)) for model in (family.model, family.eager))
        assert torch.equal(sdpa[0], eager[0])
        assert_close(sdpa[1], eager[1])


@families
def test_a_ragged_batch_equals_its_rows_one_by_one(family):
    small = [*text(2, 30), *ONE]
    prompts = [TWO, WORDS, *([MIXED] if family.videos else []), small]
    method = calibrated(vp.CentrifugalPruner(keep_tokens=6), BOTH)
    logits = generate(family.model, family.inputs(*prompts), method)[1]
    for row, one in enumerate(prompts):
        assert_close(logits[row], generate(family.model, family.inputs(one), method)[1][0])


@pytest.mark.parametrize(("method", "kind"), IN_TURN)
@families
def test_steps_equal_the_whole_in_one_call(family, method, kind):
    """Without a cache, every step is one call of everything so far."""
    batch, method = family.inputs(TWO, ONE), calibrated(method, kind)
    options = {"do_sample": False, "max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    with vp.prune(family.model, method):
        cached, whole = (
            torch.stack(family.model.generate(**batch, **options, use_cache=cache).logits) for cache in (True, False)
        )
    assert_close(cached, whole)


@families
def test_a_static_cache_gives_the_same(family):
    batch, method = family.inputs(TWO, WORDS, ONE), calibrated(KEEP, BOTH)
    options = {"do_sample": False, "max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    with vp.prune(family.model, method):
        dynamic, static = (
            torch.stack(family.model.generate(**batch, **options, **way).logits)
            for way in ({}, {"cache_implementation": "static"})
        )
    assert_close(dynamic, static)


@kinds
@families
def test_a_dialogue_in_turns_equals_one_prompt(family, kind):
    method = calibrated(vp.CentrifugalPruner(keep_tokens=6), kind)
    for turns in ([TWO, text(6, 20), ONE], [WORDS, ONE, text(4, 27)]):
        with torch.no_grad(), vp.prune(family.model, method):
            cache = DynamicCache()
            for i in range(3):
                in_turns = prefill(family, cache, turns[: i + 1], turns[i : i + 1])
            whole = prefill(family, DynamicCache(), turns, turns)
        torch.testing.assert_close(in_turns, whole, atol=2e-4, rtol=1e-4)


@kinds
def test_beams_and_drafts_agree(model, kind):
    batch, method = inputs(prompt(), prompt(2, 9, 1), images=[0, 1]), calibrated(KEEP, kind)
    one = inputs([*prompt(), *prompt()[-3:]], images=[0])
    asked = {"do_sample": False, "max_new_tokens": 6}
    with vp.prune(model, method):
        beams = [model.generate(**batch, **asked, num_beams=3, use_cache=cache) for cache in (True, False)]
        plain = model.generate(**one, **asked)
        drafted = model.generate(**one, **asked, prompt_lookup_num_tokens=3)
        helped = model.generate(**one, **asked, assistant_model=tiny_llava("eager"))
    assert torch.equal(*beams) and torch.equal(plain, drafted) and torch.equal(plain, helped)


@pytest.mark.parametrize("renumber", [False, True])
@families
def test_dropping_before_the_decoder(family, renumber):
    """With positions kept and renumbered: in steps of a batch, and without a cache."""
    method = vp.RandomPruner(keep_tokens=5, layer=0, renumber=renumber, calibrate=BOTH)
    batch = family.inputs(TWO, ONE)
    options = {"do_sample": False, "max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    with vp.prune(family.model, method):
        cached, whole = (
            torch.stack(family.model.generate(**batch, **options, use_cache=cache).logits) for cache in (True, False)
        )
    assert_close(cached, whole)


def test_under_autocast(model):
    batch = inputs(prompt(), prompt(2, 9, 1), images=[0, 1])
    exact = generate(model, batch, calibrated(KEEP, "size"))[1]
    with torch.autocast("cpu", torch.bfloat16):
        rough = generate(model, batch, calibrated(KEEP, "size"), new=1)[1]
    assert (rough[:, 0].float() - exact[:, 0]).abs().max() < 0.1 * exact[:, 0].abs().max()


# Several stages


@dataclass(frozen=True)
class Steps(Pruner):
    """Pairs before layer 1, then threes of those before layer 3; reads the attention of layer 2."""

    needs = frozenset({"attend", "attend_next"})

    def layers(self, depth):
        return (1, 3)

    def budgets(self, tokens, depth, rounding="round"):
        return (12, 4)

    def choose(self, view):
        each = 2 if view.budget == 12 else 3
        vars(self).setdefault("seen", []).append(
            (view.attend(torch.tensor([-1])), view.attend_next(torch.tensor([-1])), view)
        )
        order = torch.arange(view.budget) * each
        into = (torch.arange(len(view.hidden)) // each).clamp(max=view.budget - 1)
        return Selection(order, order, into=into)


def stepped(kind):
    return Steps(keep_tokens=4, layer=1, calibrate=kind)


def test_sizes_add_up_through_stages(model):
    """Twelve tokens of 25, of size 2 and one of 3; then four, of size 6 and one of 7."""
    batch = inputs(prompt(), images=[0])
    with torch.no_grad(), vp.prune(model, stepped("size")):
        short = model(**batch).logits[0, -6:]
    length, first = batch["input_ids"].shape[1], 5
    halves, fourths = torch.arange(12) * 2, torch.arange(4) * 6

    def calibrate(kept, sizes):
        mask = torch.ones(length, length).tril().bool()
        gone = sorted(set(range(N)) - set(kept.tolist()))
        mask[:, [first + i for i in gone]] = False
        mask |= torch.eye(length).bool()
        terms = torch.zeros(length)
        terms[first + kept] = torch.tensor(sizes).float().log()
        mask = torch.where(mask, terms, torch.finfo(torch.float32).min)
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask[None, None]})

    layers = model.model.language_model.layers
    early, late = calibrate(halves, [2] * 11 + [3]), calibrate(fourths, [6, 6, 6, 7])
    hooks = [layers[i].register_forward_pre_hook(early, with_kwargs=True) for i in (1, 2)]
    hooks.append(layers[3].register_forward_pre_hook(late, with_kwargs=True))
    with torch.no_grad():
        masked = model(**batch).logits[0, -6:]
    for hook in hooks:
        hook.remove()
    assert_close(short, masked)


@kinds
def test_stages_in_steps_and_in_turns(model, kind):
    batch = inputs(prompt(4, 6, 0), prompt(2, 9, 1), images=[0, 1])
    asked = {"do_sample": False, "max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    with vp.prune(model, stepped(kind)):
        ways = [
            torch.stack(model.generate(**batch, **asked, **way).logits)
            for way in ({}, {"use_cache": False}, {"cache_implementation": "static"})
        ]
        alone = [
            torch.stack(model.generate(**inputs(tokens, images=[row]), **asked).logits)
            for row, tokens in enumerate([prompt(4, 6, 0), prompt(2, 9, 1)])
        ]
    for way in (*ways[1:], torch.cat(alone, dim=1)):
        assert_close(ways[0], way)


@kinds
def test_attention_that_a_later_stage_reads_is_calibrated_too(kind):
    """Rows of layer 2, and of layer 3 before its own stage, are those of a model that never drops again."""
    model, method = tiny_llava("eager"), stepped(kind)
    batch = inputs(prompt(), images=[0])
    with torch.no_grad(), vp.prune(model, method):
        found = model(**batch, output_attentions=True).attentions
    before, following, _ = method.seen[1]
    torch.testing.assert_close(before[:, 0], found[2][0, :, -1, 5:17], atol=1e-5, rtol=1e-4)

    @dataclass(frozen=True)
    class Once(Steps):
        def layers(self, depth):
            return (1,)

        def budgets(self, tokens, depth, rounding="round"):
            return (12,)

    with torch.no_grad(), vp.prune(model, Once(keep_tokens=12, layer=1, calibrate=kind)):
        found = model(**batch, output_attentions=True).attentions
    torch.testing.assert_close(following[:, 0], found[3][0, :, -1, 5:17], atol=1e-5, rtol=1e-4)


# What counts towards what


@pytest.mark.parametrize("method", EVERY, ids=lambda method: f"{method.name}-{method.layer}")
def test_every_kept_token_counts_itself_and_no_token_counts_twice(model, counted, method):
    with torch.no_grad(), vp.prune(model, calibrated(method, "size")):
        model(**inputs(prompt(), images=[0]))
    assert len(counted) == len(method.layers(LAYERS))
    for indices, group in counted:
        assert torch.equal(group[indices], torch.arange(len(indices)))
        assert group.min() >= -1 and group.max() < len(indices)
    lost = sum(int((group < 0).sum()) for _, group in counted)
    assert (lost > 0) == (method.name == "sparsevlm"), "the others lose no token, with as many neighbours as this"


def test_a_patch_that_prumerge_merges_into_none_counts_nowhere(model, counted):
    method = vp.methods.get("prumerge")(keep_tokens=4, neighbours=3, calibrate="size")
    with torch.no_grad(), vp.prune(model, method):
        model(**inputs(prompt(), images=[0]))
    ((_, group),) = counted
    assert 4 < int((group >= 0).sum()) <= min(N - 1, 4 + 4 * 3)


def test_visionzip_counts_what_its_summaries_absorbed(model, counted):
    """Dominant patches stand for themselves alone."""
    method = vp.methods.get("visionzip")(keep_tokens=9, contextual=0.3, calibrate="size")
    with torch.no_grad(), vp.prune(model, method):
        model(**inputs(prompt(), images=[0]))
    ((indices, group),) = counted
    sizes = torch.bincount(group, minlength=len(indices)).tolist()
    assert sum(sizes) == N and sizes.count(1) >= 6 and sum(sorted(sizes)[-3:]) == N - 6


def test_tokens_that_the_mask_hides_count_nowhere(model, counted):
    batch = inputs(prompt(), images=[0])
    batch["attention_mask"][0, 5 : 5 + 10] = 0
    with torch.no_grad(), vp.prune(model, calibrated(KEEP, "size")):
        model(**batch)
    ((_, group),) = counted
    assert len(group) == N - 10


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "llava_qwen"])
def test_newlines_stand_for_themselves(counted, name):
    family = next(one for one in FAMILIES if one.name == name)
    for method in (vp.RandomPruner(keep_tokens=6, newlines="of-kept-rows"), replace(KEEP, newlines="of-kept-rows")):
        counted.clear()
        batch = family.inputs(ONE)
        images = forward(family.model, batch, calibrated(method, "size"))[1]
        assert [len(indices) for indices, _ in counted] == [image.n_after for image in images]
        for indices, group in counted:
            assert torch.equal(group[indices], torch.arange(len(indices)))
        assert any((group < 0).any() for _, group in counted), "a newline whose line is gone"


# Errors, before anything runs


def test_what_it_refuses():
    for wrong, reason in (
        ({"calibrate": "distance"}, "not one of None, 'size', 'size\\+distance'"),
        ({"calibrate": "size", "size_power": -1.0}, "size_power=-1.0"),
        ({"calibrate": "size", "size_power": float("nan")}, "size_power=nan"),
        ({"size_power": 0.5}, "set calibrate"),
        ({"calibrate": "size", "compat": "released"}, "calibrates nothing"),
    ):
        with pytest.raises(PruningError, match=reason):
            vp.CentrifugalPruner(keep_tokens=6, **wrong)
    with pytest.raises(PruningError, match="calibrate='sizes'"):
        vp.methods.get("pyramiddrop")(stages=(1,), ratios=(0.5,), calibrate="sizes")


def test_words_and_receipts(model):
    method = vp.methods.from_words("random:calibrate=size+distance", {"keep_tokens": "6"}, ["size_power=0.5"])
    assert method == vp.RandomPruner(keep_tokens=6, calibrate="size+distance", size_power=0.5)
    with torch.no_grad(), vp.prune(model, method) as pruning:
        model(**inputs(prompt(), images=[0]))
    assert type(method)(**pruning.receipts[0].config) == method


def test_flash_attention_is_refused_by_name():
    model, method = tiny_llava(), calibrated(KEEP, "size")
    config = model.model.language_model.config
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(PruningError, match=r"'size'.*flash_attention_2.*sdpa"):
        vp.prune(model, method)
    config._attn_implementation = "sdpa"
    with torch.no_grad(), vp.prune(model, method), pytest.raises(PruningError, match="flash_attention_2"):
        config._attn_implementation = "flash_attention_2"
        model(**inputs(prompt(), images=[0]))


def test_a_cache_from_elsewhere_is_refused(model):
    """Copied, continued in another context, or with other rows: what its tokens stand for is unknown."""
    for method in (KEEP, vp.RandomPruner(keep_tokens=6, layer=0)):
        method, cache = calibrated(method, "size"), DynamicCache()
        more = {"input_ids": torch.tensor([[7, 8]]), "use_cache": True}
        with torch.no_grad(), vp.prune(model, method):
            model(**inputs(prompt(), images=[0]), **cache_argument(cache), use_cache=True)
            if method.layer:
                with pytest.raises(CacheError, match="stand for"):
                    model(**with_cache(more, copy.deepcopy(cache)))
        for other in (method, replace(method, calibrate=None)):
            with torch.no_grad(), vp.prune(model, other), pytest.raises(CacheError, match="stand for"):
                model(**with_cache(more, cache))


def test_rows_that_changed_are_noticed(model):
    batch = inputs(prompt(), prompt(4, 6, 1), images=[0, 1])
    cache = DynamicCache()
    with torch.no_grad(), vp.prune(model, calibrated(KEEP, "size")):
        model(**batch, **cache_argument(cache), use_cache=True)
        cache.batch_repeat_interleave(2)
        with pytest.raises(CacheError, match="2 rows became 4"):
            model(input_ids=torch.tensor([[7]] * 4), **cache_argument(cache), use_cache=True)


def test_a_prefix_cached_elsewhere(model):
    """A text prefix may come from anywhere with "size"; for distances its positions must be known."""
    prefix = text(5, 40)
    whole = inputs([*prefix, *prompt()], images=[0])
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([prefix]), **cache_argument(cache), use_cache=True)
        rest = {**whole, "input_ids": whole["input_ids"][:, 5:], **cache_argument(copy.deepcopy(cache))}
        with vp.prune(model, calibrated(KEEP, "size")):
            assert_close(model(**rest).logits[:, -1], model(**whole).logits[:, -1])
        rest |= cache_argument(copy.deepcopy(cache))
        with vp.prune(model, calibrated(KEEP, "size+distance")), pytest.raises(CacheError, match="positions of all 5"):
            model(**rest)
