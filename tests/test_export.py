"""`vlm-pruner export-hf`: what transformers loads from it answers as the original does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from playground.mini.benchmarks import scenes
from tests import tiny_original
from vlm_pruner.cli import main
from vlm_pruner.llava import export as exporting
from vlm_pruner.llava.conversation import conv_templates
from vlm_pruner.llava.export import chat_template, export
from vlm_pruner.llava.mm_utils import process_images, tokenizer_image_token
from vlm_pruner.llava.model.builder import load_pretrained_model
from vlm_pruner.llava.model.checkpoint import CheckpointError

MINI = Path(__file__).parents[1] / "playground" / "mini" / "checkpoint"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(MINI, tmp_path_factory.mktemp("export") / "mini")


def dialogue(text: str) -> str:
    turns = conv_templates["vicuna_v1"].copy()
    turns.append_message(turns.roles[0], f"<image>\n{text}")
    turns.append_message(turns.roles[1], None)
    return turns.get_prompt()


@pytest.mark.parametrize("size", [(336, 336), (336, 200)])  # the second is padded to a square
def test_the_embedded_model_answers_the_same(exported, size):
    picture = next(scenes("export", 1))[1].image.resize(size)
    prompt = dialogue("What color is the star?\nAnswer the question using a single word or phrase.")
    tokenizer, original, image_processor, _ = load_pretrained_model(str(MINI), device="cpu")
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    pixels = process_images([picture], image_processor, original.config)
    model = LlavaForConditionalGeneration.from_pretrained(exported, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(exported)
    batch = processor(text=[prompt], images=[picture], return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], pixels.float(), atol=0.02, rtol=0)
    with torch.no_grad():
        wanted = original(input_ids=ids, images=pixels, image_sizes=[picture.size]).logits[0, -1]
        batch["pixel_values"] = pixels.float()
        found = model(**batch).logits[0, -1]
    torch.testing.assert_close(found[: len(wanted)], wanted, atol=1e-4, rtol=1e-4)
    assert int(found.argmax()) == int(wanted.argmax())


def test_the_chat_template_writes_the_prompt_that_the_model_was_trained_on(exported):
    processor = AutoProcessor.from_pretrained(exported)
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content}]
    written = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert written == "<s>" + dialogue("What is this?")
    messages += [{"role": "assistant", "content": "A star"}, {"role": "user", "content": "Which color?"}]
    written = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert written == f"<s>{dialogue('What is this?')} A star</s>USER: Which color? ASSISTANT:"


def test_the_image_token_cannot_win_an_argmax(exported):
    model = LlavaForConditionalGeneration.from_pretrained(exported)
    table, pad = model.lm_head.weight, model.config.text_config.pad_token_id
    assert torch.equal(table[model.config.image_token_id], table[pad]) and pad < model.config.image_token_id


def test_llava_next_is_written_with_its_tiles(tmp_path):
    config = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    config |= {"image_grid_pinpoints": [[56, 28], [28, 56]]}
    parts = tiny_original.parts(**config)
    for part in parts:
        part.save_pretrained(tmp_path / "original")
    written = export(tmp_path / "original", tmp_path / "written")
    raw = json.loads((written / "config.json").read_text())
    assert raw["image_grid_pinpoints"] == [[28, 56], [56, 28]]
    model = LlavaNextForConditionalGeneration.from_pretrained(written)
    assert torch.equal(model.model.image_newline, parts[1].model.image_newline)


def test_large_checkpoints_are_written_in_parts(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_SHARD", 2**20)
    written = export(MINI, tmp_path / "mini")
    assert len(list(written.glob("model-*.safetensors"))) > 2
    whole, divided = (LlavaForConditionalGeneration.from_pretrained(one).state_dict() for one in (exported, written))
    assert whole.keys() == divided.keys() and all(torch.equal(whole[name], divided[name]) for name in whole)


def test_what_cannot_be_written_is_refused_with_the_reason(exported, tmp_path, capsys):
    with pytest.raises(CheckpointError, match="is not empty"):
        export(MINI, exported)
    with pytest.raises(CheckpointError, match="in transformers' layout already"):
        export(exported, tmp_path / "again")
    with pytest.raises(
        CheckpointError, match=r"no chat template for the prompt format 'mpt'; there is one for .*vicuna_v1"
    ):
        chat_template("mpt")
    assert main(["export-hf", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_command_prints_the_folder(tmp_path, capsys):
    assert main(["export-hf", str(MINI), str(tmp_path / "served")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "served")
