"""LLaVA-Video and LLaVA-OneVision in their original layout against runs of the original code."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import conformance
from PIL import Image
from safetensors.torch import load_file

from llava.conversation import conv_templates
from llava.mm_utils import process_images
from llava.model.builder import load_model
from llava.model.multimodal_prompt import prepare_prompt
from llava.video_prompt import sample_frames, time_instruction


@cache
def kit() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder = conformance("llava_qwen")
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return expected, load_file(folder / "expected.safetensors")


def load(name: str, changes: dict[str, Any], folder: Path) -> Any:
    """A model of the kit with keys of its config.json changed, from a copy, as the kit may be read-only."""
    for source in conformance("llava_qwen").iterdir():
        if source.is_dir():
            shutil.copytree(source, folder / source.name, copy_function=shutil.copyfile)
            (folder / source.name).chmod(0o755)
    config = folder / name / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), **changes}))
    return load_model(folder / name, dtype="float32")


def picture(name: str) -> Image.Image:
    expected, tensors = kit()
    described = expected["pictures"][name]
    pixels = tensors[described["base"]].numpy()
    return Image.fromarray(pixels.repeat(described["repeat"], 0).repeat(described["repeat"], 1))


def items(model: Any, run: dict[str, Any]) -> list[torch.Tensor]:
    expected, tensors = kit()
    processor = model.get_vision_tower().image_processor
    values = []
    for item in run["items"]:
        if item["kind"] == "image":
            values.append(process_images([picture(item["name"])], processor, model.config)[0])
        else:
            frames = [Image.fromarray(frame) for frame in tensors[expected["films"][item["name"]]].numpy()]
            values.append(processor.preprocess(frames, return_tensors="pt")["pixel_values"])
    return values


@cache
def groups() -> list[list[dict[str, Any]]]:
    """Runs of one model with one configuration."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in kit()[0]["runs"]:
        found.setdefault(run["model"] + json.dumps(run["config_overrides"], sort_keys=True), []).append(run)
    return list(found.values())


@pytest.mark.parametrize("part", range(4))
def test_runs_equal_the_original_code(part: int, tmp_path: Path) -> None:
    """Tokens, lengths, places of pictures and newlines, logits and embeddings of every run."""
    for number, runs in enumerate(groups()[part::4]):
        model = load(runs[0]["model"], runs[0]["config_overrides"], tmp_path / str(number))
        for run in runs:
            check(model, run)


def check(model: Any, run: dict[str, Any]) -> None:
    tensors, name = kit()[1], run["name"]
    images = items(model, run)
    assert [list(image.shape) for image in images] == run["pixel_shapes"], name
    sizes = [tuple(size) if size else None for size in run["image_sizes_wh"]]
    about = {"images": images or None, "image_sizes": sizes or None, "modalities": run["modalities"] or None}
    ids = torch.tensor([run["prompt"]])
    embeds = check_prompt(model, prepare_prompt(model.model, ids, None, **about), run)
    assert (embeds.sum(1) - tensors[run["embeds_sum"]]).abs().max() < 1e-3, name
    if "embeds4" in run:
        assert (embeds[:, :4] - tensors[run["embeds4"]]).abs().max() < 1e-4, name
    answer = model.generate(
        ids,
        **about,
        do_sample=False,
        max_new_tokens=8,
        repetition_penalty=run["generate"]["repetition_penalty"],
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert answer.sequences[0].tolist() == run["tokens"], name
    assert (torch.cat(answer.logits) - tensors[run["logits"]]).abs().max() < 1e-3, name


def check_prompt(model: Any, prompt: Any, run: dict[str, Any]) -> torch.Tensor:
    """Returns the embeddings [T, d]."""
    embeds, spans = prompt.inputs_embeds[0], prompt.visual_spans[0]
    assert embeds.shape[0] == run["sequence_length"], run["name"]
    assert [[span.start, span.length] for span in spans] == run["visual_spans"], run["name"]
    newlines = (embeds == model.model.image_newline).all(dim=1)
    found = [newlines[span.start : span.stop].nonzero()[:, 0].tolist() for span in spans]
    assert found == run["newline_positions_in_spans"], run["name"]
    return embeds


def test_frames_and_their_times_equal_the_original_code() -> None:
    for case in kit()[0]["sampling"]:
        total, own_fps = case["total_frames"], case["average_fps"]
        indices, times = sample_frames(
            total, own_fps, fps=case["fps"], most=case["max_frames_num"], force=case["force_sample"]
        )
        assert indices == case["frame_indices"]
        assert time_instruction(total / own_fps, times) == case["instruction"]


def test_prompts_equal_the_original_code() -> None:
    for case in kit()[0]["prompts"]:
        conversation = conv_templates[case["conv_template"]].copy()
        for number, turn in enumerate(case["turns"]):
            conversation.append_message(conversation.roles[number % 2], turn)
        conversation.append_message(conversation.roles[1], None)
        assert conversation.get_prompt() == case["prompt"]
        assert conversation.sep == case["stop"]
