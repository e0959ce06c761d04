"""The page's examples: scenes of the mini world, with questions of each kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlm_pruner.console import typed
from vlm_pruner.experiments.mini import find_questions
from vlm_pruner.experiments.questions import Question, kinds_of, read_questions
from vlm_pruner.web.uploads import Upload, accept

KINDS = ("reading", "attribute", "existence", "count")  # the embedded model's best first
COUNT = 8


@dataclass(frozen=True)
class Sample:
    """question: without its instruction on the form of the answer."""

    upload: Upload
    question: str


def samples(data: Path | None = None) -> list[Sample]:
    """Up to COUNT examples, each of another picture; none without `data` or a clone to make them in."""
    try:
        questions = read_questions(find_questions(data))
    except FileNotFoundError:
        if data is not None:
            raise
        return []
    return [_sample(question) for question in choose(questions)]


def choose(questions: list[Question]) -> list[Question]:
    """The kinds in turn: of each, the first question in the file about a picture that is not taken yet."""
    kinds = [kind for kind in KINDS if kind in kinds_of(questions)] or kinds_of(questions)
    chosen: list[Question] = []
    for turn in range(COUNT):
        taken = {question.image for question in chosen}
        own = (q for q in questions if q.kind == kinds[turn % len(kinds)] and q.image not in taken)
        chosen += [question for question in [next(own, None)] if question is not None]
    return chosen


def _sample(question: Question) -> Sample:
    upload = accept(question.image.read_bytes(), question.image.name, typed(question.image))
    return Sample(upload, question.text.rpartition("\n")[0] or question.text)
