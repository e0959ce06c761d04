"""Arms on pictures with many questions each, from a journal or anew, and their paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_pruner.experiments.arms import DENSE, Arm
from vlm_pruner.experiments.bootstrap import Interval, PictureBootstrap
from vlm_pruner.experiments.journal import Journal
from vlm_pruner.experiments.questions import Question

if TYPE_CHECKING:
    from vlm_pruner.experiments.llava_answerer import LlavaAnswerer

Outcomes = dict[str, dict[int, bool]]  # arm's key -> question_id -> whether the answer was right


def by_picture(questions: Sequence[Question]) -> dict[Path, list[Question]]:
    """The questions of each picture, both in order of appearance."""
    groups: dict[Path, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.image, []).append(question)
    return groups


def run_shared(
    answerer: LlavaAnswerer,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    journal: Journal,
    advance: Callable[[int], object] = lambda count: None,
) -> Outcomes:
    """Answers what the journal lacks, and writes it there picture by picture. `advance(n)` is told of n pictures done.

    A method with a seed gets another one for every picture.
    """
    from vlm_pruner.experiments.shared_picture import SharedPicture

    done = {(record["arm"], record["picture"]) for record in journal.records}
    for turn, (image, group) in enumerate(by_picture(questions).items()):
        missing = [arm for arm in arms if (arm.key, image.name) not in done]
        if missing:
            shared = SharedPicture(answerer, image, group)
            journal.write(_record(arm, group, shared.outcomes(arm.method_for(turn))) for arm in missing)
        advance(1)
    return _outcomes(journal, arms)


def _record(arm: Arm, group: Sequence[Question], outcomes: Sequence[bool]) -> dict[str, object]:
    ids = [question.question_id for question in group]
    right = [number for number, outcome in zip(ids, outcomes, strict=True) if outcome]
    return {"arm": arm.key, "picture": group[0].image.name, "asked": ids, "right": right}


def _outcomes(journal: Journal, arms: Sequence[Arm]) -> Outcomes:
    outcomes: Outcomes = {arm.key: {} for arm in arms}
    for record in journal.records:
        if record["arm"] in outcomes:
            right = set(record["right"])
            outcomes[record["arm"]].update((number, number in right) for number in record["asked"])
    return outcomes


class PairedOutcomes:
    """Accuracies and paired differences of arms over the kinds of question that the dense model can answer.

    A kind counts if the dense model's accuracy is above the share of its most frequent answer, by its interval:
    where the model guesses, every method loses as little as it has, and differences are thinned out for nothing.
    `kinds` are the kinds that count, `left_out` the others. Raises ValueError if none counts.
    """

    def __init__(
        self, questions: Sequence[Question], outcomes: Outcomes, resamples: int = 10_000, seed: int = 0
    ) -> None:
        dense = next(right for key, right in outcomes.items() if key.startswith(f"{DENSE}@"))
        every = PictureBootstrap([q.image for q in questions], [q.kind for q in questions], resamples, seed)
        accuracy = every.by_kind([dense[q.question_id] for q in questions])
        self.kinds = [kind for kind in every.kinds if accuracy[kind].low > _most_frequent(questions, kind)]
        self.left_out = [kind for kind in every.kinds if kind not in self.kinds]
        if not self.kinds:
            raise ValueError("the dense model answers no kind of question better than one fixed answer would")
        self.questions = [q for q in questions if q.kind in self.kinds]
        self._outcomes = outcomes
        self._bootstrap = PictureBootstrap(
            [q.image for q in self.questions], [q.kind for q in self.questions], resamples, seed
        )

    def accuracy(self, arm: Arm) -> Interval:
        """Mean over kinds."""
        return self._bootstrap.over_kinds(self._values(arm))

    def by_kind(self, arm: Arm) -> Mapping[str, Interval]:
        return self._bootstrap.by_kind(self._values(arm))

    def difference(self, arm: Arm, other: Arm) -> Interval:
        """Mean over kinds of `arm` minus `other` on the same questions."""
        pairs = zip(self._values(arm), self._values(other), strict=True)
        return self._bootstrap.over_kinds([ours - theirs for ours, theirs in pairs])

    def _values(self, arm: Arm) -> list[float]:
        right = self._outcomes[arm.key]
        return [float(right[question.question_id]) for question in self.questions]


def _most_frequent(questions: Sequence[Question], kind: str) -> float:
    answers = Counter(question.answer for question in questions if question.kind == kind)
    return max(answers.values()) / answers.total()
