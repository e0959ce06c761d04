"""LLaVA-NeXT checkpoints in both layouts give transformers' own logits, dense, and keep the same tokens, pruned."""

from __future__ import annotations

import json

import pytest
import torch

import vlm_pruner as vp
from llava.model.builder import load_model
from llava.model.checkpoint import CheckpointError
from tests import llava_tiny
from tests.tiny_llava_next import (
    CANVASES,
    EXTREME,
    IMAGE,
    SIZES,
    inputs,
    tiles,
    tiny_llava_next,
    write_original,
    write_transformers,
)

NEW = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def theirs():
    return tiny_llava_next()


@pytest.fixture(scope="module", params=["original", "transformers"])
def ours(request, theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write = write_original if request.param == "original" else write_transformers
    model = load_model(write(theirs, folder))
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model


def llavas_call(size: tuple[int, int]) -> dict:
    return {"input_ids": llava_tiny.prompt_ids(0), "images": [tiles(size)], "image_sizes": [size]}


def test_configuration(ours):
    config = ours.config
    assert (config.image_aspect_ratio, config.mm_patch_merge_type) == ("anyres", "spatial_unpad")
    assert config.image_grid_pinpoints == [[width, height] for height, width in CANVASES]
    assert torch.count_nonzero(ours.model.image_newline)


@pytest.mark.parametrize("size", SIZES[:3] + EXTREME)
def test_logits_equal_transformers(ours, theirs, size):
    with torch.no_grad():
        expected = theirs(**inputs(theirs, size)).logits
        assert torch.allclose(ours(**llavas_call(size)).logits, expected, atol=1e-4)


def test_transformers_convention(ours, theirs):
    call = inputs(theirs, SIZES[0], SIZES[3])
    ours.config.image_token_index = IMAGE  # the original layout has no placeholder of its own
    with torch.no_grad():
        seen = call["attention_mask"].bool()
        assert torch.allclose(ours(**call).logits[seen], theirs(**call).logits[seen], atol=1e-4)
    assert torch.equal(ours.generate(**call, **NEW), theirs.generate(**call, **NEW))
    flat = {**call, "pixel_values": torch.cat([tiles(SIZES[0], 0), tiles(SIZES[3], 1)])}
    assert torch.equal(ours.generate(**flat, **NEW), theirs.generate(**flat, **NEW))


@pytest.mark.parametrize("compat", [None, "released"])
def test_pruned_answers_equal_transformers(ours, theirs, compat):
    size, method = SIZES[0], vp.CentrifugalPruner(keep_tokens=20, compat=compat)
    with vp.prune(theirs, method) as expected:
        answer = theirs.generate(**inputs(theirs, size), **NEW)
    with vp.prune(ours, method) as pruning:
        new = ours.generate(**llavas_call(size), **NEW)
    assert pruning.receipts[-1].images == expected.receipts[-1].images
    assert new[0].tolist() == answer[0, -5:].tolist()


def test_bad_pinpoints(theirs, tmp_path):
    folder = write_transformers(theirs, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_grid_pinpoints": "many"}))
    with pytest.raises(CheckpointError, match="image_grid_pinpoints is 'many'"):
        load_model(folder)
