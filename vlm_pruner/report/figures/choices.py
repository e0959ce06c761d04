"""The pictures of figures, photographs and mini scenes, and the embedded model that selects their tokens."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vlm_pruner.experiments.mini import check_checkpoint, find_questions
from vlm_pruner.methods import Pruner
from vlm_pruner.provenance import ROOT
from vlm_pruner.receipts import Kept

PHOTOS = ROOT / "playground" / "photos"
QUESTION = "What is in the picture?"


class Chooser:
    """The model that selects."""

    def __init__(self, checkpoint: Path) -> None:
        from vlm_pruner.asking import load

        check_checkpoint(checkpoint)
        self.chat = load(checkpoint)

    def kept(self, picture: Image.Image, method: Pruner) -> Kept:
        return self.chat.ask(picture, QUESTION, method, max_new_tokens=1).images[0].kept()


def photo(name: str) -> Image.Image:
    """A photograph of the repository. Raises vlm_pruner.images.ImageReadError if it is missing."""
    from vlm_pruner.images import read_image

    return read_image(PHOTOS / f"{name}.jpg")


def mini_scene(number: int) -> Image.Image:
    """The `number`-th picture (from 0) of the mini benchmark. Makes the benchmark if it is missing."""
    from vlm_pruner.experiments.questions import read_questions
    from vlm_pruner.images import read_image

    pictures = list(dict.fromkeys(question.image for question in read_questions(find_questions(None))))
    return read_image(pictures[number])
