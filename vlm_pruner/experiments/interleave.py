"""Every arm answers a batch before the next batch begins, so that a slow minute of the machine meets all arms alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.journal import Journal
from vlm_pruner.experiments.questions import Question
from vlm_pruner.methods import Pruner

_Round = TypeVar("_Round")


@dataclass(frozen=True)
class Reply:
    """One answer and what it cost. `seconds` is the batch's generation time divided by the batch's size."""

    text: str
    seconds: float
    kv_bytes: int
    kept: int


class Answerer(Protocol):
    """A model that answers a batch of questions, dense (`method` None) or pruned."""

    def ask(self, batch: Sequence[Question], method: Pruner | None) -> list[Reply]: ...


def run(
    answerer: Answerer,
    arms: Sequence[Arm],
    batches: Sequence[Sequence[Question]],
    journal: Journal,
    advance: Callable[[int], object],
) -> None:
    """Answer what the journal lacks, and write it there batch by batch. `advance(n)` is told of n more answers."""
    done = {(record["arm"], record["question_id"]) for record in journal.records}
    advance(sum((arm.key, q.question_id) in done for arm in arms for batch in batches for q in batch))
    warm = False
    for turn, batch, arm in schedule(batches, arms):
        missing = [question for question in batch if (arm.key, question.question_id) not in done]
        if not missing:
            continue
        if not warm:
            answerer.ask(missing, None)  # the first call pays for allocations and lazy set-up: not counted
            warm = True
        replies = answerer.ask(missing, arm.method_for(turn))
        journal.write(_record(arm, q, reply) for q, reply in zip(missing, replies, strict=True))
        advance(len(missing))


def schedule(rounds: Iterable[_Round], arms: Sequence[Arm]) -> Iterator[tuple[int, _Round, Arm]]:
    """(number of the round, round, arm). The order of arms turns with every round, so that none is always first."""
    for turn, item in enumerate(rounds):
        for index in range(len(arms)):
            yield turn, item, arms[(turn + index) % len(arms)]


def _record(arm: Arm, question: Question, reply: Reply) -> dict[str, Any]:
    verdict = {"kind": question.kind, "expected": question.answer, "correct": question.accepts(reply.text)}
    return {"arm": arm.key, "question_id": question.question_id, **verdict, **asdict(reply)}
