"""A figure of a few questions of a run: what was kept, and what was answered with it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlm_pruner.drawing.colours import RIGHT, WRONG
from vlm_pruner.drawing.overlay import CAPTION, Style, draw_overlay
from vlm_pruner.drawing.shapes import Drawing, Text, cut
from vlm_pruner.drawing.sheet import plain, sheet, stacked
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.questions import Question, kinds_of

if TYPE_CHECKING:
    from vlm_pruner.experiments.answerer import Answerer

KINDS = ("reading", "attribute")
FIRST_SHOWN = ("vlm-pruner", "random")
SIDE = 384


def draw_examples(
    answerer: Answerer, arms: Sequence[Arm], questions: Sequence[Question], records: Iterable[Mapping[str, Any]]
) -> Drawing:
    """One question of each of two kinds: the first that the run's first arm, usually dense, answered right.

    The rule looks at no pruned answer, so the figure shows failures as they come.
    """
    right = {record["question_id"] for record in records if record["arm"] == arms[0].key and record["correct"]}
    chosen = choose_questions(questions, right)
    return stacked([_example(answerer, choose_arms(arms), question, question is chosen[-1]) for question in chosen])


def choose_questions(questions: Sequence[Question], right: Container[int]) -> list[Question]:
    """Of each of two kinds the first question in `right` (or of all), about different pictures if possible."""
    present = kinds_of(questions)
    chosen: list[Question] = []
    for kind in [kind for kind in KINDS if kind in present] or present[:2]:
        own = [question for question in questions if question.kind == kind]
        seen = {question.image for question in chosen}
        own.sort(key=lambda question: (question.question_id not in right, question.image in seen))
        chosen.append(own[0])
    return chosen


def choose_arms(arms: Sequence[Arm]) -> list[Arm]:
    """Dense, then two arms at the smallest budget: our default and random where they are among them."""
    pruned = [arm for arm in arms if arm.method is not None]
    least = [arm for arm in pruned if arm.tokens == min(other.tokens for other in pruned)]
    least.sort(key=lambda arm: FIRST_SHOWN.index(arm.name) if arm.name in FIRST_SHOWN else len(FIRST_SHOWN))
    return [arm for arm in arms if arm.is_dense] + least[:2]


def _example(answerer: Answerer, arms: Sequence[Arm], question: Question, key: bool) -> Drawing:
    """A row: the question, and for each arm what it kept, and what it answered."""
    picture, panels = answerer.picture(question), []
    for arm in arms:
        reply = answerer.answer([question], arm.method_for(0), arm.shown)[0]
        shown = plain(picture, SIDE)
        if reply.receipt is not None:
            shown = draw_overlay(picture, reply.receipt.kept(), Style(side=SIDE, numbers=False))
        panels.append((f"{arm.label}, {reply.kept} tokens", _answered(shown, reply.text, question)))
    asked = question.text.rpartition("\n")[0] or question.text  # without the instruction
    return sheet(panels, key=key, heading=f"{asked} ({question.answer})")


def _answered(shown: Drawing, answer: str, question: Question) -> Drawing:
    colour, verdict = (RIGHT, "right") if question.accepts(answer) else (WRONG, "wrong")
    text = cut(answer or "(nothing)", 17, shown.width - 80) + f" ({verdict})"
    below = Text((0, shown.height + 20), text, 17, colour)
    return replace(shown, height=shown.height + CAPTION, shapes=[*shown.shapes, below])
