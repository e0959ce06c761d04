"""Checks that labels and questions match: other releases of a benchmark use the same ids for other questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from vlm_pruner.scoring.base import Coverage, ScoreError
from vlm_pruner.scoring.records import Answer

K = TypeVar("K")


def holds(prompt: str, question: str) -> bool:
    """Whether a prompt contains the question, ignoring white space and case."""
    return _plain(question) in _plain(prompt)


def check_prompts(
    replies: Iterable[tuple[K, Answer]], question: Callable[[K], object], coverage: Coverage, data: object
) -> Coverage:
    """Adds to `coverage` the number of prompts that ask something else. question: its text in the benchmark, if known.

    Raises ScoreError if more than half of them do: the labels then belong to other questions.
    """
    asked = [(answer, text) for key, answer in replies if answer.prompt and isinstance(text := question(key), str)]
    strayed = [(answer, text) for answer, text in asked if not holds(answer.prompt, text)]
    if 2 * len(strayed) > len(asked):
        answer, text = strayed[0]
        raise ScoreError(
            f"{len(strayed)} of {len(asked)} prompts do not ask what {data} has under their id, first line"
            f" {answer.line}: the prompt is {_short(answer.prompt)}, the question {_short(text)}; use the release that"
            " was asked (docs/evaluation.md)"
        )
    return replace(coverage, strayed=len(strayed))


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
