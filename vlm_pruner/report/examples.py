"""A figure of a few questions of a run: what was kept, and what was answered with it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.questions import Question, kinds_of
from vlm_pruner.receipts import ImageReceipt
from vlm_pruner.report.picture import Example, Panel, draw_figure

if TYPE_CHECKING:
    from vlm_pruner.experiments.llava_answerer import LlavaAnswerer

KINDS = ("reading", "attribute")
FIRST_SHOWN = ("vlm-pruner", "random")


def draw_examples(
    answerer: LlavaAnswerer, arms: Sequence[Arm], questions: Sequence[Question], records: Iterable[Mapping[str, Any]]
) -> Image.Image:
    """One question of each of two kinds: the first that the run's first arm, usually dense, answered right.

    The rule looks at no pruned answer, so the figure shows failures as they come.
    """
    right = {record["question_id"] for record in records if record["arm"] == arms[0].key and record["correct"]}
    chosen = choose_questions(questions, right)
    return draw_figure([_example(answerer, choose_arms(arms), q) for q in chosen], (answerer.side, answerer.side))


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
    return [arm for arm in arms if arm.method is None] + least[:2]


def in_order(receipt: ImageReceipt) -> list[tuple[float, float]]:
    """(x, y) of the kept tokens in order of selection."""
    places = dict(zip(receipt.indices, receipt.coords, strict=True))
    return [(float(places[token][0]), float(places[token][1])) for token in receipt.order]


def _example(answerer: LlavaAnswerer, arms: Sequence[Arm], question: Question) -> Example:
    panels = []
    for arm in arms:
        look = answerer.look([question], arm.method_for(0))[0]
        kept = None if look.receipt is None else in_order(look.receipt)
        title = f"{arm.label}, {look.reply.kept} tokens"
        panels.append(Panel(title, look.reply.text, question.accepts(look.reply.text), kept))
    instruction_removed = question.text.rpartition("\n")[0] or question.text
    return Example(answerer.picture(question), instruction_removed, question.answer, panels)
