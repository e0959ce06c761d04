"""What figures show selections of: the photographs and two mini scenes, and the embedded model that chooses."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_pruner.bench.mini import ROOT, check_checkpoint, find_questions
from vlm_pruner.methods import Pruner
from vlm_pruner.show.kept import Kept

PHOTOS = ROOT / "playground" / "photos"
QUESTION = "What is in the picture?"


class Chooser:
    """The model, opened when it is first needed."""

    def __init__(self, checkpoint: Path) -> None:
        check_checkpoint(checkpoint)
        self.checkpoint = checkpoint

    @cached_property
    def chat(self) -> Any:
        from vlm_pruner.chat import load

        return load(self.checkpoint)

    def kept(self, picture: Image.Image, method: Pruner) -> Kept:
        return Kept.of(self.chat.ask(picture, QUESTION, method, max_new_tokens=1).images[0])


def photo(name: str) -> Image.Image:
    """A photograph of the repository. Raises llava.images.ImageReadError if it is missing."""
    from llava.images import read_image

    return read_image(PHOTOS / f"{name}.jpg")


def scene(number: int) -> Image.Image:
    """The `number`-th picture (from 0) of the mini world's questions, which are made if they are not there yet."""
    from llava.images import read_image
    from vlm_pruner.bench.questions import read_questions

    pictures = list(dict.fromkeys(question.image for question in read_questions(find_questions(None))))
    return read_image(pictures[number])
