"""The guarantees of pruning, for every supported family in tests/families.py."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Barrier, Event, Thread

import pytest
import torch

import vlm_pruner as vp
from tests.families import FAMILIES, FILM, MIXED, ONE, TWO, WORDS, Family, Prompt, films, pictures
from tests.running import assert_close, dropped, forward, generate, hooks, state
from tests.tiny_qwen import IMAGE, LAYERS, VIDEO

METHOD = vp.CentrifugalPruner(keep_tokens=6)
ALL = vp.CentrifugalPruner(reduction_ratio=0.0)
pytestmark = pytest.mark.filterwarnings("ignore::vlm_pruner.decoder.pruning.PruningWarning")


def column(name: str, prompt: Prompt):
    """A parameter that belongs in a column of the table in docs/families.md."""
    return pytest.param(prompt, marks=pytest.mark.column(name), id=name)


FILMS = [column("video", FILM), pytest.param(MIXED, marks=pytest.mark.column("video"), id="beside a picture")]


def needs_videos(family: Family, prompt: Prompt) -> Prompt:
    if films([prompt]) and not family.videos:
        pytest.skip("takes no videos")
    return prompt


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


def masked(family, model, batch, positions, layer, **more):
    """The dense model's output, with `positions` out of sight in the layers from `layer` on."""
    length = batch["input_ids"].shape[1]
    visible = torch.ones(length, length).tril().bool()
    visible[:, positions] = False
    visible |= torch.eye(length).bool()  # a dropped query must see something; nobody looks at its result
    mask = torch.zeros(length, length).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]

    def hide(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    layers = family.decoder(model).layers[layer:]
    hooks = [module.register_forward_pre_hook(hide, with_kwargs=True) for module in layers]
    out = forward(model, batch, **more)[0]
    for hook in hooks:
        hook.remove()
    return out


# What is kept


@pytest.mark.parametrize("prompt", [column("single", ONE), column("multi-image", TWO), *FILMS])
def test_every_visual_has_a_budget_of_its_own(family, prompt):
    batch = family.inputs(needs_videos(family, prompt))
    called, generated = forward(family.model, batch, METHOD)[1], generate(family.model, batch, METHOD)[2]
    assert called == generated, "generate encodes pictures beforehand, and withholds their sizes"
    assert len(called) == len(pictures([prompt])) + family.frames * len(films([prompt]))
    assert all(image.n_after == 6 == len(image.indices) for image in called)
    places = [image.span[0] + o for image in called for o in image.offsets or range(image.n_before)]
    ids = batch["input_ids"][0]
    visual = (ids == IMAGE) | (ids == VIDEO)
    assert places == visual.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("prompt", FILMS)
def test_frames_may_have_a_budget_each(family, prompt):
    batch = family.inputs(needs_videos(family, prompt))
    method = vp.CentrifugalPruner(keep_tokens=4, per_frame=True)
    whole, frames = forward(family.model, batch, METHOD)[1], forward(family.model, batch, method)[1]
    times = [sorted({where[0] for where in image.coords}) for image in frames if len(image.coords[0]) == 3]
    assert all(len(time) == 1 for time in times), "a span for every frame"
    assert [image.n_after for image in frames] == [min(4, image.n_before) for image in frames]
    assert sum(image.n_before for image in frames) == sum(image.n_before for image in whole)
    assert len(frames) >= 3 * len(films([prompt]))


def test_pictures_of_different_sizes_have_layouts_of_their_own(family):
    found = forward(family.model, family.inputs(TWO), ALL)[1]
    for image in found:
        coords = torch.tensor(image.coords)
        assert len(coords.unique(dim=0)) == image.n_before, "no two tokens in one place"
    if not family.fixed and family.name != "llava_onevision":  # whose pictures side by side are base alone
        assert found[0].n_before != found[1].n_before


# Exactness


@pytest.mark.column("keep-all identity")
def test_keeping_everything_is_the_dense_model_bit_for_bit(family):
    for prompt in family.prompts.values():
        batch = family.inputs(prompt)
        dense, kept = generate(family.model, batch), generate(family.model, batch, ALL)
        assert torch.equal(dense[1], kept[1]) and torch.equal(dense[0], kept[0])
        assert all(image.n_after == image.n_before for image in kept[2])


@pytest.mark.column("drop = mask")
@pytest.mark.parametrize("layer", range(1, LAYERS))
def test_dropping_equals_masking(family, layer):
    """A token that is gone and one that no later layer may look at are the same, phases and DeepStack included."""
    method = vp.CentrifugalPruner(keep_tokens=5, self_weight=1.0, layer=layer)
    for prompt in family.prompts.values():
        batch = family.inputs(prompt)
        short, images = forward(family.model, batch, method)
        long = masked(family, family.model, batch, dropped(images), layer)
        assert_close(short.logits[:, -2:], long.logits[:, -2:])
        dense = forward(family.model, batch)[0]
        assert (short.logits[:, -1] - dense.logits[:, -1]).abs().max() > 1e-3


def test_hidden_states_and_attentions_are_those_of_the_tokens_that_are_left(family):
    """Up to layer K they are long and dense; from there they hold the kept positions, in order."""
    method = vp.CentrifugalPruner(keep_tokens=5, self_weight=1.0)
    batch = family.inputs(TWO)
    asked = {"output_hidden_states": True, "output_attentions": True}
    short, images = forward(family.eager, batch, method, **asked)
    gone = dropped(images)
    long = masked(family, family.eager, batch, gone, method.layer, **asked)
    length = batch["input_ids"].shape[1]
    left = torch.tensor([i for i in range(length) if i not in gone])
    assert len(short.hidden_states) == LAYERS + 1 and len(short.attentions) == LAYERS
    for i, (own, dense) in enumerate(zip(short.hidden_states, long.hidden_states, strict=True)):
        assert_close(own, dense if i <= method.layer else dense[:, left])
    for i, (own, dense) in enumerate(zip(short.attentions, long.attentions, strict=True)):
        assert_close(own, dense if i < method.layer else dense[:, :, left][..., left])


@pytest.mark.column("eager/SDPA")
def test_eager_attention_agrees(family):
    for prompts in ([TWO], [FILM, TWO] if family.videos else [ONE, TWO]):
        batch = family.inputs(*prompts)
        sdpa, eager = generate(family.model, batch, METHOD), generate(family.eager, batch, METHOD)
        assert torch.equal(sdpa[0], eager[0])
        assert_close(sdpa[1], eager[1])


@pytest.mark.column("batch")
def test_a_ragged_batch_equals_its_rows_one_by_one(family):
    prompts = [TWO, WORDS, *([MIXED] if family.videos else []), ONE]
    batch = family.inputs(*prompts)
    tokens, logits, images = generate(family.model, batch, METHOD)
    for row, prompt in enumerate(prompts):
        own = family.inputs(prompt)
        alone = generate(family.model, own, METHOD if prompt is not WORDS else None)
        assert torch.equal(tokens[row], alone[0][0])
        assert_close(logits[row], alone[1][0])
        padding = batch["input_ids"].shape[1] - own["input_ids"].shape[1]
        together = [(image.span[0] - padding, image.indices) for image in images if image.row == row]
        assert together == [(image.span[0], image.indices) for image in alone[2]]


# No trace is left, and no two runs meet


def test_the_model_is_as_it_was_afterwards(family):
    model, batch = family.model, family.inputs(TWO)
    dense, pruned = forward(model, batch)[0].logits, forward(model, batch, METHOD)[0].logits
    count, before = hooks(model), state(model)
    assert torch.equal(forward(model, batch)[0].logits, dense)
    layers = family.decoder(model).layers
    for where in (model.model.get_submodule(family.tower), layers[1], layers[3]):
        failing = where.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), vp.prune(model, METHOD) as pruning:
            model(**batch)
        failing.remove()
        assert hooks(model) == count and state(model) == before
        assert torch.equal(forward(model, batch)[0].logits, dense)
        with torch.no_grad(), pruning:
            assert torch.equal(model(**batch).logits, pruned)
    assert hooks(model) == count and state(model) == before


def test_all_families_at_once():
    methods = [METHOD, vp.CentrifugalPruner(reduction_ratio=0.5, layer=1), vp.RandomPruner(keep_tokens=5, layer=3)]
    runs = [(family.model, family.inputs(TWO), methods[i % 3]) for i, family in enumerate(FAMILIES)]
    alone = [forward(*run)[0].logits for run in runs]
    with torch.no_grad(), ExitStack() as stack:
        for model, _, method in runs:
            stack.enter_context(vp.prune(model, method))
        for _ in range(2):
            for (model, batch, _), logits in zip(runs, alone, strict=True):
                assert torch.equal(model(**batch).logits, logits)


def test_two_threads_in_one_context_do_not_mix(family):
    """They meet before layers 1 and 3, so that each runs between the other's steps."""
    model, batches = family.model, [family.inputs(ONE), family.inputs(TWO)]
    alone = [forward(model, batch, METHOD) for batch in batches]
    barrier, found = Barrier(2, timeout=60), {}

    def meet(*_):
        barrier.wait()

    def run(i):
        with torch.no_grad():
            found[i] = model(**batches[i]).logits

    layers = family.decoder(model).layers
    with vp.prune(model, METHOD) as pruning:
        meetings = [layers[i].register_forward_pre_hook(meet) for i in (1, 3)]
        threads = [Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for meeting in meetings:
            meeting.remove()
    for i, (out, _) in enumerate(alone):
        assert_close(found[i], out.logits)
    kept = sorted([image.indices for image in receipt.images] for receipt in pruning.receipts)
    assert kept == sorted([image.indices for image in images] for _, images in alone)


def test_a_dense_run_in_another_thread_stays_dense():
    """It has run one layer when pruning is switched on; and no second context opens meanwhile, wherever."""
    family = FAMILIES[0]
    model, batch = family.model, family.inputs(ONE)
    dense, pruned = forward(model, batch)[0].logits, forward(model, batch, METHOD)[0].logits
    started, go, found = Event(), Event(), []

    def wait(*_):
        started.set()
        assert go.wait(60)

    def run():
        with torch.no_grad():
            found.append(model(**batch).logits)
        try:
            vp.prune(model, METHOD).__enter__()
        except RuntimeError as error:
            found.append(str(error))

    pause = model.model.language_model.layers[1].register_forward_pre_hook(wait)
    thread = Thread(target=run)
    thread.start()
    assert started.wait(60)
    pause.remove()
    with torch.no_grad(), vp.prune(model, METHOD):
        logits = model(**batch).logits
        go.set()
        thread.join()
    assert torch.equal(logits, pruned) and torch.equal(found[0], dense)
    assert "already" in found[1]


# Cost


def test_a_layer_costs_one_call_and_lists_are_made_when_read(family):
    """DeepStack, which adds to what later layers get, is one more."""
    with torch.no_grad(), vp.prune(family.model, METHOD) as pruning:
        calls = [len(layer._forward_pre_hooks) for layer in family.decoder(family.model).layers]
        family.model(**family.inputs(TWO))
    assert calls[METHOD.layer + 1 :] == [2 if family.name.startswith("qwen3") else 1] * (LAYERS - METHOD.layer - 1)
    receipt = pruning.receipts[0]
    assert "images" not in vars(receipt)
    assert receipt.images is receipt.images and all(type(image.indices) is list for image in receipt.images)


def test_the_prompts_have_pictures():
    assert [len(pictures([prompt])) for prompt in (ONE, TWO, FILM, MIXED, WORDS)] == [1, 2, 0, 1, 0]
