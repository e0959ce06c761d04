"""The embedded model as vLLM serves it, held-out questions about its world, and their answers in transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vlm_pruner as vp
from playground.mini.benchmarks import balanced, scenes
from playground.mini.questions import KINDS
from vlm_pruner.llava.conversation import conv_templates
from vlm_pruner.llava.export import export
from vlm_pruner.serving.wish import AT_INPUT, FROM_CLIP, parse

CHECKPOINT = Path(__file__).parents[2] / "playground" / "mini" / "checkpoint"
WORK = "VLM_PRUNER_TEST_FOLDER"  # where the script keeps the exported model and the references for all files
COUNT = int(os.environ.get("VLM_PRUNER_TEST_QUESTIONS", "200"))
NEW = 8
BATCH = 12  # questions at once in transformers

WISHES: dict[str, Any] = {
    "dense": None,
    "192": {"keep_tokens": 192},
    "128": {"keep_tokens": 128},
    "64": {"keep_tokens": 64},
    "divprune 64": {"method": "divprune", "keep_tokens": 64},
    "residual 64": {"method": "residual", "keep_tokens": 64},
}
BY_CLASS_TOKEN: dict[str, Any] = {
    f"{method} 64": {"method": method, "keep_tokens": 64} for method in ("fastervlm", "holov", "scope")
}


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    picture: Image.Image

    @property
    def prompt(self) -> str:
        dialogue = conv_templates["vicuna_v1"].copy()
        dialogue.append_message(dialogue.roles[0], f"<image>\n{self.text}")
        dialogue.append_message(dialogue.roles[1], None)
        return dialogue.get_prompt()


@cache
def questions(count: int = COUNT) -> list[Question]:
    found: list[Question] = []
    for index, (rng, scene) in enumerate(scenes("vllm", -(-count // len(KINDS)) + 1)):
        picture = Image.fromarray(np.asarray(scene.image))
        for kind in KINDS:
            if len(found) < count and (question := balanced(rng, scene, kind, index)):
                found.append(Question(question.prompt, question.answer, picture))
    return found


def checkpoint(folder: Path) -> Path:
    """The exported model; written once for all files that share a folder."""
    shared = Path(os.environ.get(WORK, folder)) / "mini"
    return shared if shared.exists() else export(CHECKPOINT, shared)


def references(folder: Path, names: Iterable[str], count: int, renumber: bool = False) -> dict[str, list[list[int]]]:
    """Token ids of the first `count` questions' answers under each wish, by transformers and `vlm_pruner.prune`."""
    model = checkpoint(folder)
    path = model.parent / f"references{'-renumbered' if renumber else ''}.json"
    known: dict[str, list[list[int]]] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in names if len(known.get(name, [])) < count]
    if missing:
        known |= _in_transformers(model, missing, count, renumber)
        path.write_text(json.dumps(known))
    return {name: known[name][:count] for name in names}


@torch.no_grad()
def _in_transformers(folder: Path, names: Sequence[str], count: int, renumber: bool) -> dict[str, list[list[int]]]:
    model, processor = load(folder)
    found: dict[str, list[list[int]]] = {name: [] for name in names}
    asked = {"do_sample": False, "max_new_tokens": NEW}
    for start in range(0, count, BATCH):
        some = questions()[start : min(start + BATCH, count)]
        prompts, pictures = [one.prompt for one in some], [one.picture for one in some]
        batch = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
        for name in names:
            made = parse((WISHES | BY_CLASS_TOKEN)[name], AT_INPUT | FROM_CLIP)
            if made is None:
                out = model.generate(**batch, **asked)
            else:
                with vp.prune(model, replace(made.method, renumber=renumber)):
                    out = model.generate(**batch, **asked)
            found[name] += [until_end(row[batch["input_ids"].shape[1] :].tolist()) for row in out]
    return found


def load(folder: Path) -> tuple[Any, Any]:
    """(model, processor) of transformers."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def until_end(ids: list[int], end: int = 2) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
