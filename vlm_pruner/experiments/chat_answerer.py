"""Any checkpoint that `vlm-pruner ask` opens, answering the questions of an experiment one by one.

Slower than `LlavaAnswerer`, which shares pictures and layers among arms: here every arm runs the whole model, vision
tower included, on every question, just as a user's program would.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from vlm_pruner import asking
from vlm_pruner.asking.processed import ProcessedChat
from vlm_pruner.asking.smaller import Shrinker, takes_any_size
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.answerer import ANSWER_TOKENS, Answerer, Reply
from vlm_pruner.experiments.arms import NO_PICTURE, Grid, ModelFacts
from vlm_pruner.experiments.questions import Question
from vlm_pruner.images import read_image
from vlm_pruner.llava.sights import Sight
from vlm_pruner.methods import Pruner
from vlm_pruner.methods.random import RandomPruner

ONE_GRID = ("stretch", "pad", "crop")  # ways in which every picture lies on the same grid


class ChatAnswerer(Answerer):
    """A model behind a `Chat`. An answer's `seconds` include the vision tower."""

    def __init__(self, chat: asking.Chat, max_new_tokens: int = ANSWER_TOKENS) -> None:
        self.chat, self.model, self.max_new_tokens = chat, chat.model, max_new_tokens
        self._smaller: dict[Sight, tuple[asking.Chat, Shrinker]] = {}
        self._where: dict[str, Any] = {"grid": None}

    @classmethod
    def load(cls, checkpoint: Path, device: str, max_new_tokens: int = ANSWER_TOKENS) -> ChatAnswerer:
        """Raises ValueError as `asking.load` does."""
        return cls(asking.load(checkpoint, device=device), max_new_tokens)

    @property
    def where(self) -> dict[str, Any]:
        """How pictures lie on the grid of tokens; no grid if they differ. Known after `facts`."""
        return self._where

    def answer(
        self, batch: Sequence[Question], method: Pruner | None, shown: Grid | Sight | None = None,
        exactly: int | None = None,
    ) -> list[Reply]:  # fmt: skip
        """Greedy answers. Raises PruningError for a method, or a smaller picture, that does not fit the model."""
        if isinstance(shown, tuple) and shown != NO_PICTURE:
            raise PruningError(f"resize is not possible here: {_why_not_smaller(self.chat)}; prune, or use blind")
        return [self._reply(question, method, shown, exactly) for question in batch]

    def _reply(
        self, question: Question, method: Pruner | None, shown: Grid | Sight | None, exactly: int | None
    ) -> Reply:
        chat, pictures = self.chat, [] if shown == NO_PICTURE else [read_image(question.image)]
        if isinstance(shown, Sight):
            chat, shrink = self._shrunk(shown)
            pictures = [shrink(picture) for picture in pictures]
        answer = chat.ask(
            pictures, question.text, method, max_new_tokens=exactly or self.max_new_tokens, min_new_tokens=exactly,
            confidence=exactly is None,
        )  # fmt: skip
        receipt = answer.images[0] if len(answer.images) == 1 else None
        return Reply(
            answer.text, answer.seconds, answer.kv_bytes, answer.kept, receipt, answer.tokens, answer.confidence
        )

    def _shrunk(self, sight: Sight) -> tuple[asking.Chat, Shrinker]:
        """The model with a processor of its own, which does not enlarge small pictures."""
        if sight not in self._smaller:
            assert isinstance(self.chat, ProcessedChat)
            processor = copy.copy(self.chat.processor)
            processor.image_processor = copy.deepcopy(processor.image_processor)
            self._smaller[sight] = ProcessedChat(self.model, processor, self.chat.name), Shrinker(processor, sight)
        return self._smaller[sight]

    def forget(self) -> None:
        """There is nothing to drop: each answer encodes its picture."""

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
        any_size = isinstance(self.chat, ProcessedChat) and takes_any_size(self.chat.processor.image_processor)
        return ModelFacts(int(median(visual)), shape, text, self.model.dtype.itemsize, any_size)

    def _one_grid(self, question: Question) -> dict[str, Any]:
        answer = self.chat.ask(
            read_image(question.image), question.text, RandomPruner(reduction_ratio=0.5, layer=1), max_new_tokens=1
        )  # fmt: skip
        fit = answer.images[0].fit if len(answer.images) == 1 else None
        if fit is None or fit.kind not in ONE_GRID or fit.frames != 1:
            return {"grid": None}
        return {"grid": [fit.rows, fit.columns], "fit": asdict(fit)}


def _why_not_smaller(chat: asking.Chat) -> str:
    """Why a smaller picture does not have fewer visual tokens in this model, or none that could be shown."""
    kind = type(chat.model).__name__
    tiles = "cuts pictures into tiles, whose number follows from their shape and not from their size"
    if isinstance(chat, ProcessedChat):
        images = chat.processor.image_processor
        if hasattr(images, "image_grid_pinpoints") or hasattr(images, "crop_to_patches"):
            return f"{chat.name} ({kind}) {tiles}"
        return f"{chat.name} ({kind}) scales pictures to one size, or by their longest side, whatever their pixels"
    return f"{chat.name} ({kind}) {tiles}"
