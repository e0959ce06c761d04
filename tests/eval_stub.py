"""A stub model for tests of the runner: deterministic replies, real files, no transformers.

Run as a program it is an answer generator with the whole command line, which tests kill and start again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval import evaluate, model_vqa_loader
from llava.eval.images import open_image
from llava.eval.questions import Question
from llava.eval.runner import Reply


class StubEngine:
    """Replies with the picture's size and the question's length."""

    model_id = "stub"

    def __init__(self, folder: Path, stop_after: int = 0) -> None:
        """stop_after: batches after which it waits to be killed; 0 for never."""
        self.folder = folder
        self.stop_after = stop_after
        self.batches: list[int] = []

    def prepare(self, question: Question) -> tuple[str, tuple[int, int]]:
        (image,) = question.images
        return question.asked, open_image(self.folder, image).size

    def generate(self, batch: Sequence[tuple[str, tuple[int, int]]]) -> list[Reply]:
        while self.stop_after and len(self.batches) == self.stop_after:
            time.sleep(1)
        self.batches.append(len(batch))
        return [Reply(f"{len(asked)} é {size[0]}x{size[1]}", {"method": "stub"}) for asked, size in batch]


def stub_engine(args: argparse.Namespace, method: Any) -> StubEngine:
    return StubEngine(Path(args.image_folder), int(os.environ.get("STUB_STOP_AFTER", "0")))


if __name__ == "__main__":
    sys.exit(evaluate.main(model_vqa_loader.TASK, engine_factory=stub_engine))
