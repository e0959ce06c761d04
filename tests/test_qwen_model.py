"""The paper's Qwen2-VL: against the released code's outputs, against our own golden run, and through both doors."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, Qwen2VLForConditionalGeneration, Qwen2VLModel

import vlm_pruner as vp
from Qwen2VL_VLMPruner.modeling_qwen2_vl_self import VLMPruner, VLMPrunerForConditionalGeneration
from tests import tiny_qwen
from tests.conformance import conformance
from tests.running import hooks
from tests.tiny_qwen import image, inputs, text
from tests.versions import skip_before
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.decoder.pruning import PruningWarning
from vlm_pruner.errors import PruningError

GOLDEN = Path(__file__).parent / "golden" / "qwen2_vl_tiny.json"


def generate(model, batch, new=8):
    """Greedy tokens [new] and their logits [new, vocabulary]."""
    options = {"do_sample": False, "max_new_tokens": new, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**batch, **options)
    return out.sequences[0, -new:].tolist(), torch.stack(out.logits, dim=1)[0]


# Against the released code.


@cache
def kit():
    folder = conformance("qwen2_vl")
    model = VLMPrunerForConditionalGeneration.from_pretrained(folder / "qwen2-vl-tiny", dtype=torch.float32)
    runs = json.loads((folder / "expected.json").read_text())["runs"]
    return model.eval(), runs, load_file(folder / "expected.safetensors")


def kit_inputs(run: dict) -> dict[str, torch.Tensor]:
    model, _, tensors = kit()
    prompt = f"p{run['prompt']}"
    ids = tensors[f"{prompt}.input_ids"]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
        "pixel_values": tensors[f"{prompt}.pixel_values"].float(),
        "image_grid_thw": tensors[f"{prompt}.image_grid_thw"],
    }


def kit_method(run: dict, visual_tokens: int) -> vp.CentrifugalPruner:
    """ "released" is what the released code does; "merged" differs from our default in rounding the budget down."""
    settings = {name: run[name] for name in ("layer", "threshold", "token_batch", "pivots")}
    if run["geometry"] == "released":
        return vp.CentrifugalPruner(reduction_ratio=run["reduction_ratio"], compat="released", **settings)
    return vp.CentrifugalPruner(keep_tokens=int(visual_tokens * (1 - run["reduction_ratio"])), **settings)


@pytest.mark.parametrize("geometry", ["released", "merged"])
def test_every_run_of_the_released_code(geometry):
    model, runs, tensors = kit()
    runs = [run for run in runs if run["geometry"] == geometry]
    assert runs
    for run in runs:
        batch = kit_inputs(run)
        model.model.method = kit_method(run, int(batch["mm_token_type_ids"].sum()))
        tokens, logits = generate(model, batch)
        [receipt] = model.model.receipts
        model.model.method = None
        assert receipt.images[0].indices == run["retained"], run["logits"]
        assert tokens == run["tokens"], run["logits"]
        assert (logits - tensors[run["logits"]]).abs().max() < 1e-3, run["logits"]


def test_the_published_layout_loads_as_in_transformers():
    model, runs, _ = kit()
    folder = conformance("qwen2_vl") / "qwen2-vl-tiny"
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    assert model.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in model.state_dict().items())
    with vp.prune(theirs, kit_method(runs[-1], int(kit_inputs(runs[-1])["mm_token_type_ids"].sum()))) as pruning:
        assert generate(theirs, kit_inputs(runs[-1]))[0] == runs[-1]["tokens"]
    assert pruning.receipts[0].images[0].indices == runs[-1]["retained"]


# Against our own golden run, so that a clone alone is tested.


@cache
def tiny() -> VLMPrunerForConditionalGeneration:
    return tiny_qwen.prepare(VLMPrunerForConditionalGeneration(tiny_qwen.config("qwen2_vl")))


BATCH = inputs("qwen2_vl", [*text(4, 1), image(5, 7, 1), *text(6, 2), image(3, 4, 2), *text(3, 3)])
NEW = 6


@pytest.fixture
def model():
    yield tiny()
    tiny().model.method = None


def golden_runs(model) -> list[dict]:
    """Small runs; VLM_PRUNER_WRITE_GOLDEN=1 writes what comes out into the golden file."""
    runs = []
    for settings in (
        {"reduction_ratio": 0.0},
        {"keep_tokens": 8},
        {"reduction_ratio": 0.667, "token_batch": 4},
        {"keep_tokens": 6, "layer": 1},
        {"reduction_ratio": 0.7, "layer": 3, "compat": "released"},
    ):
        model.model.method = vp.CentrifugalPruner(**settings)
        tokens, _ = generate(model, BATCH, NEW)
        images = model.model.receipts[-1].images
        runs.append({"settings": settings, "orders": [one.order for one in images], "tokens": tokens})
    return runs


def test_golden(model):
    runs = golden_runs(model)
    if os.environ.get("VLM_PRUNER_WRITE_GOLDEN"):
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    assert runs == json.loads(GOLDEN.read_text())


# Properties.


def test_without_a_method_it_is_the_dense_model(model):
    assert isinstance(model.model, VLMPruner) and isinstance(model.model, Qwen2VLModel)
    assert model.model.method is None and model.model.receipts == []
    expected = generate(tiny_qwen.model("qwen2_vl"), BATCH, NEW)
    for method in (None, vp.CentrifugalPruner(reduction_ratio=0.0)):
        model.model.method = method
        tokens, logits = generate(model, BATCH, NEW)
        assert tokens == expected[0] and torch.equal(logits, expected[1])


def test_both_doors_give_the_same_and_neither_opens_inside_the_other(model):
    method = vp.CentrifugalPruner(keep_tokens=8)
    with vp.prune(model, method) as pruning:
        outside = generate(model, BATCH, NEW)
    count = hooks(model)
    model.model.method = method
    inside = generate(model, BATCH, NEW)
    assert hooks(model) == count
    assert inside[0] == outside[0] and torch.equal(inside[1], outside[1])
    assert model.model.receipts[-1].images == pruning.receipts[-1].images
    with vp.prune(model, method), pytest.raises(RuntimeError, match="already"):
        generate(model, BATCH, NEW)


def test_arguments_may_be_positional(model):
    model.model.method = vp.CentrifugalPruner(keep_tokens=8)
    named = ("input_ids", "attention_mask")
    rest = {name: value for name, value in BATCH.items() if name not in named}
    with torch.no_grad():
        by_name = model.model(**BATCH).last_hidden_state
        by_place = model.model(*(BATCH[name] for name in named), **rest).last_hidden_state
    assert torch.equal(by_name, by_place) and by_name.shape[1] == BATCH["input_ids"].shape[1] - 47 + 16


def test_the_released_code_places_tokens_on_the_grid_of_patches(model):
    model.model.method = vp.CentrifugalPruner(reduction_ratio=0.5, compat="released")
    with torch.no_grad():
        model(**BATCH)
    first, second = model.model.receipts[-1].images
    assert (first.n_after, second.n_after) == (17, 12), "budget rounded down, second image left alone"
    assert first.coords == [[i % 14, i // 14] for i in first.indices]


def test_settings_that_do_not_fit(model):
    with pytest.raises(PruningError, match="layer=4"):
        model.model.method = vp.CentrifugalPruner(keep_tokens=8, layer=4)
    assert model.model.method is None
    model.model.method = vp.CentrifugalPruner(keep_tokens=36)
    with pytest.warns(PruningWarning, match="only 35"):
        generate(model, BATCH, NEW)
    assert [image.n_after for image in model.model.receipts[0].images] == [35, 12]


def test_saved_checkpoints_load_again(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = VLMPrunerForConditionalGeneration.from_pretrained(tmp_path)
    body = VLMPruner.from_pretrained(tmp_path)
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor) and torch.equal(theirs.state_dict()[name], tensor)
    assert all(torch.equal(body.state_dict()[name], tensor) for name, tensor in model.model.state_dict().items())


def test_a_new_image_in_a_dialogue_that_generate_goes_on_with(model):
    """transformers wants all grids for positions but features of new images alone, so those are encoded beforehand."""
    skip_before("5.23", "does not take features that were encoded beforehand")
    model.model.method = vp.CentrifugalPruner(keep_tokens=6)
    first, second = [*text(4, 1), image(5, 7, 1), *text(6, 2)], [*text(2, 4), image(3, 4, 2), *text(3, 3)]
    cache = DynamicCache()
    answer = model.generate(**inputs("qwen2_vl", first), **cache_argument(cache), do_sample=False, max_new_tokens=4)
    whole = inputs("qwen2_vl", [*first, *answer[0, -4:].tolist(), *second])
    new = inputs("qwen2_vl", second)
    with torch.no_grad():
        features = model.get_image_features(new["pixel_values"], new["image_grid_thw"])
    given = {name: whole[name] for name in ("input_ids", "mm_token_type_ids", "image_grid_thw")}
    options = {"do_sample": False, "max_new_tokens": 4}
    continued = model.generate(**given, mm_encoder_outputs={"image": features}, **cache_argument(cache), **options)
    kept = [one.indices for receipt in model.model.receipts for one in receipt.images]
    assert continued.tolist() == model.generate(**whole, **options).tolist()
    assert kept == [one.indices for one in model.model.receipts[-1].images]
