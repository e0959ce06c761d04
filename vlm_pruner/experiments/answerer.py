"""What an experiment asks of a model, whichever family it is of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlm_pruner.experiments.arms import ModelFacts
from vlm_pruner.experiments.questions import Question
from vlm_pruner.llava.sights import Grid, Sight
from vlm_pruner.methods import Pruner
from vlm_pruner.receipts import ImageReceipt

ANSWER_TOKENS = 16  # at most: the questions ask for a word, a phrase or a letter


@dataclass(frozen=True)
class Reply:
    """One answer and what it cost.

    seconds, kv_bytes: the batch's generation time and cache, divided by the batch's size. kept: visual tokens from the
    pruned layer on. receipt: None for the dense model. tokens: new ones, the end included. confidence: the probability
    of the whole answer, if known. vision_seconds: of the batch's tower and projector, divided by the batch's size; None
    where `seconds` include them.
    """

    text: str
    seconds: float
    kv_bytes: int
    kept: int
    receipt: ImageReceipt | None = None
    tokens: int = 0
    confidence: float | None = None
    vision_seconds: float | None = None


class Answerer(ABC):
    """Asks a model questions of one picture each.

    vision_seconds, pictures: the time spent before generation, and on how many pictures of full size, so far.
    """

    model: Any
    max_new_tokens: int
    vision_seconds = 0.0
    pictures = 0

    @property
    @abstractmethod
    def where(self) -> dict[str, Any]:
        """How pictures lie on the grid of tokens, for a result file."""

    @abstractmethod
    def facts(self, questions: Iterable[Question]) -> ModelFacts:
        """What budgets are solved and costs are counted with. Raises ValueError for a model that has none."""

    @abstractmethod
    def answer(
        self, batch: Sequence[Question], method: Pruner | None, shown: Grid | Sight | None = None,
        exactly: int | None = None,
    ) -> list[Reply]:  # fmt: skip
        """Greedy answers to a batch. Raises PruningError for a method, or a smaller picture, that does not fit.

        shown: how pictures are shown, if not whole: as rows x columns of visual tokens, (0, 0) for none, or, in
        families that take any size, as a Sight says. exactly: new tokens, even beyond the answer's end, for timing.
        """

    @abstractmethod
    def picture(self, question: Question) -> Image.Image:
        """The picture as the vision tower's grid covers it."""

    def batches(self, questions: Iterable[Question], size: int, by_picture: bool = False) -> list[list[Question]]:
        """Batches of at most `size`. by_picture: of questions about as few pictures as possible."""
        return [[question] for question in questions]

    def replay(self, layers: int, prefixes: bool) -> AbstractContextManager[object]:
        """While open, what the arms have in common may be computed once; see `Replay`."""
        return nullcontext()

    @abstractmethod
    def forget(self) -> None:
        """Drops the batch's encoded pictures, so that the next answer encodes them again."""
