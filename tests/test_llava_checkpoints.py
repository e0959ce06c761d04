"""Checkpoints as people have them: each loads, or one line says exactly what is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llava.mm_utils import process_images
from llava.model.builder import load_model, load_pretrained_model
from llava.model.checkpoint import CheckpointError
from tests import llava_tiny


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    llava_tiny.write_tokenizer(llava_tiny.write_original(folder))
    return folder


@pytest.fixture
def checkpoint(kit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kit, tmp_path / "kit")) / "llava"


def change(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


@pytest.mark.parametrize("name", ["llava-v1.5-7b-lora", "lora", "LoRA-merged", "explorative"])
def test_a_name_that_contains_lora_is_a_name(checkpoint: Path, name: str) -> None:
    folder = checkpoint.rename(checkpoint.with_name(name))
    assert load_pretrained_model(folder, None, name)[1].config.name_or_path == str(folder)


PROJECTOR = "model.mm_projector."


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.", ""], ids=["peft", "base_model", "plain"])
@pytest.mark.parametrize("merged_has_it", [True, False])
def test_a_merged_lora_takes_what_was_trained_in_full(checkpoint: Path, prefix: str, merged_has_it: bool) -> None:
    merged = load_file(checkpoint / "model.safetensors")
    trained = {name: tensor + 1 for name, tensor in merged.items() if name.startswith(PROJECTOR)}
    torch.save({prefix + name: tensor for name, tensor in trained.items()}, checkpoint / "non_lora_trainables.bin")
    if not merged_has_it:
        kept = {name: tensor for name, tensor in merged.items() if name not in trained}
        save_file(kept, checkpoint / "model.safetensors")
    state = load_model(checkpoint).state_dict()
    assert trained and all(torch.equal(state[name].half(), tensor.half()) for name, tensor in trained.items())


def test_a_merged_lora_without_its_projector_is_refused(checkpoint: Path) -> None:
    merged = load_file(checkpoint / "model.safetensors")
    kept = {name: tensor for name, tensor in merged.items() if not name.startswith(PROJECTOR)}
    save_file(kept, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks model\.mm_projector\."):
        load_model(checkpoint)


def vocabulary(checkpoint: Path) -> tuple[int, int]:
    """Tokens of the tokenizer and rows of the embeddings."""
    tokenizer, model, *_ = load_pretrained_model(checkpoint)
    return len(tokenizer), model.config.vocab_size


@pytest.mark.parametrize("patch", [True, False])
def test_marks_that_the_tokenizer_lacks_are_added_where_the_model_has_rows_for_them(
    checkpoint: Path, patch: bool
) -> None:
    known, rows = vocabulary(checkpoint)
    if rows < known + 3:
        grow(checkpoint, known + 3)
    change(checkpoint / "config.json", mm_use_im_start_end=True, mm_use_im_patch_token=patch)
    tokenizer, *_ = load_pretrained_model(checkpoint)
    marks = [*(["<im_patch>"] if patch else []), "<im_start>", "<im_end>"]
    assert [tokenizer(mark, add_special_tokens=False).input_ids for mark in marks] == [
        [known + place] for place in range(len(marks))
    ]


def test_marks_without_trained_rows_are_refused(checkpoint: Path) -> None:
    known, _ = vocabulary(checkpoint)
    grow(checkpoint, known)
    change(checkpoint / "config.json", mm_use_im_start_end=True)
    with pytest.raises(CheckpointError, match="lacks <im_patch>, <im_start>, <im_end>"):
        load_pretrained_model(checkpoint)


def grow(checkpoint: Path, rows: int) -> None:
    """Give the embeddings so many rows, or take some."""
    tensors = load_file(checkpoint / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.zeros(rows, tensors[name].shape[1])])[:rows].contiguous()
    save_file(tensors, checkpoint / "model.safetensors")
    change(checkpoint / "config.json", vocab_size=rows)


MISFITS = [
    {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28}},
    {"crop_size": {"height": 84, "width": 56}},
    {"do_center_crop": False},
    {"do_resize": False, "do_center_crop": False},
    {"size": {"longest_edge": 7}},
]


@pytest.mark.parametrize("settings", MISFITS, ids=str)
def test_a_processor_that_does_not_fit_the_tower_is_told_with_its_file(
    checkpoint: Path, settings: dict[str, Any]
) -> None:
    path = checkpoint.parent / "clip" / "preprocessor_config.json"
    change(path, **settings)
    with pytest.raises(CheckpointError, match=r"clip/preprocessor_config\.json .*vision tower's own repository"):
        load_pretrained_model(checkpoint)


@pytest.mark.parametrize("size", ["shortest_edge", "height and width"])
@pytest.mark.parametrize("aspect_ratio", ["pad", "anyres", None])
def test_processors_that_fit_give_the_towers_pixels(checkpoint: Path, size: str, aspect_ratio: str | None) -> None:
    path = checkpoint.parent / "clip" / "preprocessor_config.json"
    side = json.loads((checkpoint.parent / "clip" / "config.json").read_text())["image_size"]
    change(path, size={"shortest_edge": side} if size == "shortest_edge" else {"height": side, "width": side})
    change(checkpoint / "config.json", image_aspect_ratio=aspect_ratio, image_grid_pinpoints=[[side, 2 * side]])
    _, model, processor, _ = load_pretrained_model(checkpoint)
    pixels = process_images([Image.new("RGB", (60, 90))], processor, model.config)[0]
    assert pixels.shape[-2:] == (side, side)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "in 4 bits .*bitsandbytes, which is not installed"),
        ({"load_in_8bit": True}, "in 8 bits .*bitsandbytes, which is not installed"),
        ({"quant_method": "awq", "bits": 4}, "quantised by awq"),
    ],
)
def test_a_quantised_checkpoint_names_what_it_needs(
    checkpoint: Path, quantization: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    change(checkpoint / "config.json", quantization_config=quantization)
    for load in (load_model, load_pretrained_model):
        with pytest.raises(CheckpointError, match=expected):
            load(checkpoint)
