"""The embedded model as vLLM serves it, and held-out questions about its world."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from playground.mini.benchmarks import balanced, scenes
from playground.mini.questions import KINDS
from vlm_pruner.llava.conversation import conv_templates
from vlm_pruner.llava.export import export

CHECKPOINT = Path(__file__).parents[2] / "playground" / "mini" / "checkpoint"


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
def questions(count: int) -> list[Question]:
    found: list[Question] = []
    for index, (rng, scene) in enumerate(scenes("vllm", count)):
        picture = Image.fromarray(np.asarray(scene.image))
        for kind in KINDS:
            if len(found) < count and (question := balanced(rng, scene, kind, index)):
                found.append(Question(question.prompt, question.answer, picture))
    return found


def checkpoint(folder: Path) -> Path:
    return export(CHECKPOINT, folder)
