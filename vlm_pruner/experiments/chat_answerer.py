"""Any checkpoint that `vlm-pruner ask` opens, answering the questions of an experiment one by one.

Slower than `LlavaAnswerer`, which shares pictures and layers among arms: here every arm runs the whole model, vision
tower included, on every question, just as a user's program would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from vlm_pruner import asking
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.arms import NO_PICTURE, Grid, ModelFacts
from vlm_pruner.experiments.llava_answerer import ANSWER_TOKENS, LlavaAnswerer, Reply
from vlm_pruner.experiments.questions import Question
from vlm_pruner.images import read_image
from vlm_pruner.methods import Pruner
from vlm_pruner.methods.random import RandomPruner

ONE_GRID = ("stretch", "pad", "crop")  # ways in which every picture lies on the same grid


class ChatAnswerer(LlavaAnswerer):
    """Asks questions of one picture each. An answer's `seconds` include the vision tower."""

    def __init__(self, chat: asking.Chat, max_new_tokens: int = ANSWER_TOKENS) -> None:
        self.chat, self.model, self.max_new_tokens = chat, chat.model, max_new_tokens
        self.vision_seconds, self.pictures = 0.0, 0
        self._where: dict[str, Any] = {"grid": None}

    @classmethod
    def load(cls, checkpoint: Path, device: str, max_new_tokens: int = ANSWER_TOKENS) -> ChatAnswerer:
        """Raises ValueError as `asking.load` does."""
        return cls(asking.load(checkpoint, device=device), max_new_tokens)

    @property
    def where(self) -> dict[str, Any]:
        """How pictures lie on the grid of tokens; no grid if they differ. Known after `facts`."""
        return self._where

    def batches(self, questions: Iterable[Question], size: int) -> list[list[Question]]:
        return [[question] for question in questions]

    def replay(self, layers: int, prefixes: bool) -> AbstractContextManager[object]:
        return nullcontext()

    def answer(
        self, batch: Sequence[Question], method: Pruner | None, grid: Grid | None = None, exactly: int | None = None
    ) -> list[Reply]:
        """Greedy answers. Raises PruningError for a method that does not fit, and for an arm that changes pictures."""
        if grid not in (None, NO_PICTURE) or exactly is not None:
            raise PruningError("only a LLaVA checkpoint in the original layout can be asked about resized pictures")
        return [self._reply(question, method, shown=grid is None) for question in batch]

    def _reply(self, question: Question, method: Pruner | None, shown: bool) -> Reply:
        pictures = [read_image(question.image)] if shown else []
        answer = self.chat.ask(pictures, question.text, method, max_new_tokens=self.max_new_tokens)
        receipt = answer.images[0] if len(answer.images) == 1 else None
        return Reply(answer.text, answer.seconds, answer.kv_bytes, answer.kept, receipt, answer.tokens)

    def picture(self, question: Question) -> Image.Image:
        return read_image(question.image)

    def facts(self, questions: Iterable[Question]) -> ModelFacts:
        """Of the median picture and question: families differ in how many tokens they make of a picture."""
        asked = list(questions)
        firsts = {question.image: question for question in reversed(asked)}
        prompts = {path: self.chat.prompt(read_image(path), one.text) for path, one in firsts.items()}
        visual = [prompt.visual_tokens for prompt in prompts.values()]
        if len(set(visual)) == 1:
            self._where = self._one_grid(asked[0])
        text = int(median(prompt.text_tokens for prompt in prompts.values()))
        shape = DecoderShape.of(self.chat.decoder.config)
        return ModelFacts(int(median(visual)), shape, text, self.model.dtype.itemsize)

    def _one_grid(self, question: Question) -> dict[str, Any]:
        answer = self.chat.ask(
            read_image(question.image), question.text, RandomPruner(reduction_ratio=0.5, layer=1), max_new_tokens=1
        )  # fmt: skip
        fit = answer.images[0].fit if len(answer.images) == 1 else None
        if fit is None or fit.kind not in ONE_GRID or fit.frames != 1:
            return {"grid": None}
        return {"grid": [fit.rows, fit.columns], "fit": asdict(fit)}
