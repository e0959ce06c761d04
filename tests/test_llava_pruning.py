"""LLaVA pruned: against the released code's outputs, against our own golden run, and through both doors."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlm_pruner as vp
from llava.model.builder import load_model
from tests import llava_tiny
from tests.conformance import conformance
from tests.running import hooks
from vlm_pruner.decoder.cache_names import cache_of
from vlm_pruner.errors import PruningError

NEW = {"do_sample": False, "max_new_tokens": 8}
GOLDEN = Path(__file__).parent / "golden" / "llava_tiny.json"


# Against the released code.


@cache
def kit():
    folder = conformance("llava")
    runs = json.loads((folder / "expected.json").read_text())["runs"]
    return load_model(folder / "llava-tiny"), runs, load_file(folder / "expected.safetensors")


def released_method(run: dict) -> vp.CentrifugalPruner:
    settings = {name: run[name] for name in ("layer", "reduction_ratio", "threshold", "token_batch", "pivots")}
    return vp.CentrifugalPruner(**settings, compat="released")


def generate(model, ids, pixels, **options):
    out = model.generate(
        ids, images=pixels, image_sizes=[(336, 336)], output_logits=True, return_dict_in_generate=True, **NEW, **options
    )
    return out.sequences[0].tolist(), torch.stack(out.logits, dim=1)[0]


def test_every_run_of_the_released_code():
    model, runs, tensors = kit()
    assert runs
    for run in runs:
        prompt = f"p{run['prompt']}"
        model.model.method = released_method(run)
        tokens, logits = generate(model, tensors[f"{prompt}.input_ids"], tensors[f"{prompt}.pixel_values"])
        [receipt] = model.model.receipts
        model.model.method = None
        assert receipt.images[0].indices == run["retained"], run["logits"]
        assert receipt.images[0].span == (run["image_start"], 576)
        assert tokens == run["tokens"], run["logits"]
        assert (logits - tensors[run["logits"]]).abs().max() < 1e-3, run["logits"]


def test_the_other_door_gives_the_same():
    model, runs, tensors = kit()
    run = runs[-1]
    prompt = f"p{run['prompt']}"
    with vp.prune(model, released_method(run)) as pruning:
        tokens, _ = generate(model, tensors[f"{prompt}.input_ids"], tensors[f"{prompt}.pixel_values"])
    assert tokens == run["tokens"]
    assert pruning.receipts[0].images[0].indices == run["retained"]


# Against our own golden run, so that a clone alone is tested.


def golden_runs() -> list[dict]:
    """Small runs; VLM_PRUNER_WRITE_GOLDEN=1 writes what comes out into the golden file."""
    model = llava_tiny.model()
    runs = []
    for settings in (
        {"keep_tokens": 36},
        {"keep_tokens": 12},
        {"reduction_ratio": 0.778, "token_batch": 4},
        {"keep_tokens": 9, "layer": 1},
        {"keep_tokens": 9, "layer": 3, "compat": "released", "token_batch": 16},
    ):
        model.model.method = vp.CentrifugalPruner(**settings)
        tokens = model.generate(llava_tiny.prompt_ids(), images=llava_tiny.pixels(0), **NEW)[0].tolist()
        image = model.model.receipts[-1].images[0]
        runs.append({"settings": settings, "indices": image.indices, "order": image.order, "tokens": tokens})
    return runs


def test_golden():
    runs = golden_runs()
    if os.environ.get("VLM_PRUNER_WRITE_GOLDEN"):
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    assert runs == json.loads(GOLDEN.read_text())


# Properties.


@pytest.fixture
def model():
    return llava_tiny.model()


def test_keeping_all_equals_the_dense_model_bit_for_bit(model):
    ids, pixels = llava_tiny.prompt_ids(), llava_tiny.pixels(0)
    dense = generate(model, ids, pixels)
    model.model.method = vp.CentrifugalPruner(keep_tokens=36)
    pruned = generate(model, ids, pixels)
    assert pruned[0] == dense[0] and torch.equal(pruned[1], dense[1])


def test_cache_is_short_from_the_pruned_layer_on(model):
    model.model.method = vp.CentrifugalPruner(keep_tokens=12)
    ids = llava_tiny.prompt_ids()
    out = model.generate(ids, images=llava_tiny.pixels(0), return_dict_in_generate=True, **NEW)
    lengths = [cache_of(out).get_seq_length(layer) for layer in range(4)]
    dense = 36 + ids.shape[1] - 1 + 7  # the last new token is never fed
    assert lengths == [dense, dense, dense - 24, dense - 24]


def test_nothing_is_left_behind(model):
    ids, pixels = llava_tiny.prompt_ids(), llava_tiny.pixels(0)
    dense, before = generate(model, ids, pixels)[1], hooks(model)  # the first run adds transformers' own hooks
    model.model.method = vp.CentrifugalPruner(keep_tokens=12)
    pruned = generate(model, ids, pixels)[1]
    assert hooks(model) == before
    model.model.method = None
    assert torch.equal(generate(model, ids, pixels)[1], dense)
    assert not torch.allclose(pruned, dense)


def test_an_exception_inside_leaves_nothing_behind(model, monkeypatch):
    generate(model, llava_tiny.prompt_ids(), llava_tiny.pixels(0))  # the first run adds transformers' own hooks
    before = hooks(model)
    model.model.method = vp.CentrifugalPruner(keep_tokens=12)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="on purpose"):
        patch.setattr(model.model.layers[3].mlp, "forward", fail)
        model.generate(llava_tiny.prompt_ids(), images=llava_tiny.pixels(0), **NEW)
    assert hooks(model) == before
    assert model.generate(llava_tiny.prompt_ids(), images=llava_tiny.pixels(0), **NEW).shape == (1, 8)


def fail(*args):
    raise RuntimeError("on purpose")


def test_both_conventions_prune_alike(model):
    ids, pixels = llava_tiny.prompt_ids(), llava_tiny.pixels(0)
    place = int((ids[0] == -200).nonzero()[0])
    expanded = torch.cat([ids[:, :place], torch.full((1, 36), -200), ids[:, place + 1 :]], dim=1)
    model.model.method = vp.CentrifugalPruner(keep_tokens=9)
    new = model.generate(ids, images=pixels, **NEW)
    full = model.generate(expanded, pixel_values=pixels, **NEW)
    assert torch.equal(full[:, expanded.shape[1] :], new)
    first, second = model.model.receipts
    assert first == second


def test_ragged_batches_prune_like_single_prompts(model):
    model.model.method = vp.CentrifugalPruner(keep_tokens=9)
    singles = [llava_tiny.prompt_ids(0, 5, 7), llava_tiny.prompt_ids(1, 3, 4)]
    ids, mask = torch.zeros(2, 13, dtype=torch.long), torch.zeros(2, 13, dtype=torch.long)
    for row, single in enumerate(singles):
        ids[row, : single.shape[1]], mask[row, : single.shape[1]] = single, 1
    batch = model.generate(ids, images=llava_tiny.pixels(0, 1), attention_mask=mask, **NEW)
    kept = [image.indices for image in model.model.receipts[-1].images]
    for row, single in enumerate(singles):
        assert torch.equal(batch[row : row + 1], model.generate(single, images=llava_tiny.pixels(row), **NEW))
        assert model.model.receipts[-1].images[0].indices == kept[row]


@pytest.mark.parametrize("setting", ["eager", "static"])
def test_other_attention_and_caches_give_the_same(model, setting):
    model.model.method = vp.CentrifugalPruner(keep_tokens=9)
    ids, pixels = llava_tiny.prompt_ids(), llava_tiny.pixels(0)
    expected = generate(model, ids, pixels)
    if setting == "eager":
        model.set_attn_implementation("eager")
    tokens, logits = generate(model, ids, pixels, **({"cache_implementation": "static"} if setting == "static" else {}))
    assert tokens == expected[0]
    assert torch.allclose(logits, expected[1], atol=1e-4)


def test_several_pictures_have_a_budget_each(model):
    model.model.method = vp.CentrifugalPruner(keep_tokens=9)
    ids = torch.cat([llava_tiny.prompt_ids(0), llava_tiny.prompt_ids(1)], dim=1)
    model.generate(ids, images=llava_tiny.pixels(0, 1), **NEW)
    images = model.model.receipts[-1].images
    assert [(image.span, image.n_after) for image in images] == [((5, 36), 9), ((53, 36), 9)]


def test_anyres_pictures_are_one_span(model):
    pinpoints = [[84, 168], [168, 84], [168, 168]]
    model = llava_tiny.model(mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=pinpoints)
    model.model.method = vp.CentrifugalPruner(keep_tokens=20)
    tiles = [llava_tiny.pixels(0, 1, 2)]
    model.generate(llava_tiny.prompt_ids(), images=tiles, image_sizes=[(168, 84)], **NEW)
    [image] = model.model.receipts[-1].images
    assert (image.n_before, image.n_after) == (36 + 6 * 13, 20)


def test_settings_that_do_not_fit(model):
    with pytest.raises(PruningError, match="layer=4"):
        model.model.method = vp.CentrifugalPruner(keep_tokens=9, layer=4)
    assert model.model.method is None
    with pytest.raises(PruningError, match=r"keep_tokens=37, .* only 36"):
        vp.prune(model, vp.CentrifugalPruner(keep_tokens=37))
    with pytest.raises(PruningError, match=r"keep_tokens=37, .* only 36"):
        model.model.method = vp.CentrifugalPruner(keep_tokens=37)
    assert model.model.method is None
    model.model.method = vp.CentrifugalPruner(keep_tokens=9)
    with pytest.raises(PruningError, match="already prunes with its own method"):
        vp.prune(model, vp.CentrifugalPruner(keep_tokens=9))
