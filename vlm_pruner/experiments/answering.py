"""Lets every arm answer every question once: as fast as the cores allow, or timed.

Untimed, all arms answer a batch before the next one starts, because they share the pictures' features and, if they
prune after the same layers, those layers' output (`replay`). Several processes take batches in turn; one of them
writes. Timed, arms share nothing and take turns, so that a slow minute of the machine affects all alike.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_pruner.errors import PruningError
from vlm_pruner.experiments import opening
from vlm_pruner.experiments.answerer import Answerer, Reply
from vlm_pruner.experiments.arms import Arm, turned
from vlm_pruner.experiments.journal import Journal
from vlm_pruner.experiments.questions import Question
from vlm_pruner.experiments.shared_choice import once_per_picture
from vlm_pruner.experiments.workers import end_with_parent

Record = Mapping[str, Any]
Advance = Callable[[int], object]  # called with the number of new answers


@dataclass(frozen=True)
class Round:
    """A batch and the arms that have not answered all of it.

    turn: its number in the run, which seeds what is drawn. prefixes: as for `Replay`.
    """

    benchmark: str
    turn: int
    batch: list[Question]
    arms: list[Arm]
    prefixes: bool = False


@dataclass(frozen=True)
class Worker:
    """How a process loads its model. threads: torch's; None leaves the number unchanged."""

    checkpoint: Path
    device: str
    threads: int | None = None


def rounds_of(
    benchmark: str,
    batches: Sequence[list[Question]],
    arms: Sequence[Arm],
    records: Sequence[Record],
    first: int = 0,
    prefixes: bool = False,
) -> list[Round]:
    """The rounds that the records lack. An arm that answered part of a batch answers all of it again."""
    done = {(r["arm"], r["question_id"]) for r in records if r["benchmark"] == benchmark}
    rounds = []
    for turn, batch in enumerate(batches, start=first):
        missing = [arm for arm in arms if any((arm.key, question.question_id) not in done for question in batch)]
        if missing:
            rounds.append(Round(benchmark, turn, batch, missing, prefixes))
    return rounds


def answer(answerer: Answerer, one: Round) -> list[Record]:
    """Answers one round, arm by arm, with the first layers computed once."""
    depth = max((arm.method.layer for arm in one.arms if arm.method is not None), default=0)
    with answerer.replay(depth, one.prefixes):
        return [record for arm in one.arms for record in _records(answerer, one, arm)]


def _records(answerer: Answerer, one: Round, arm: Arm, timed: bool = False) -> list[Record]:
    method = arm.method_for(one.turn)
    if method is not None and one.prefixes and not timed:
        method = once_per_picture(method)
    replies = answerer.answer(one.batch, method, *_shown(arm))
    return [_record(arm, one.benchmark, *pair, timed) for pair in zip(one.batch, replies, strict=True)]


def _shown(arm: Arm) -> tuple[Any, ...]:
    """How the picture is shown, if not whole."""
    return () if arm.shown is None else (arm.shown,)


def _record(arm: Arm, benchmark: str, question: Question, reply: Reply, timed: bool) -> Record:
    """The record of one answer. kept: in order of selection, counted within the picture; None if dense."""
    costs = {"seconds": reply.seconds, "kv_bytes": reply.kv_bytes} if timed else {}
    return {
        "arm": arm.key,
        "benchmark": benchmark,
        "question_id": question.question_id,
        "kind": question.kind,
        "expected": question.answer,
        "text": reply.text,
        "correct": question.accepts(reply.text),
        "kept": None if reply.receipt is None else reply.receipt.order,
        "tokens": reply.tokens,
        **({} if reply.confidence is None else {"confidence": round(reply.confidence, 4)}),
        **costs,
    }


def refusal(answerer: Answerer, arm: Arm, question: Question) -> str | None:
    """Why the arm cannot run on this model, found by trying; None if it can."""
    try:
        answerer.answer([question], arm.method_for(0), *_shown(arm))
    except PruningError as error:
        return str(error)
    return None


def run(
    worker: Worker, answerer: Answerer, rounds: Sequence[Round], journal: Journal, processes: int, advance: Advance
) -> None:
    """Answers the rounds. Records reach the journal when a round is done."""
    done = (answer(answerer, one) for one in rounds) if processes == 1 else _in_parallel(worker, rounds, processes)
    for records in done:
        journal.write(records)
        advance(len(records))


def run_timed(answerer: Answerer, rounds: Sequence[Round], journal: Journal, advance: Advance) -> None:
    """Answers the rounds with rotating order of arms. The very first call, which pays for set-up, does not count."""
    for number, one in enumerate(rounds):
        if number == 0:
            answerer.answer(one.batch, None)
        for arm in turned(one.arms, one.turn):
            records = _records(answerer, one, arm, timed=True)
            journal.write(records)
            advance(len(records))


_mine: Answerer | None = None  # of a process of the pool


def _start(worker: Worker) -> None:
    global _mine
    end_with_parent()
    if worker.threads:
        torch.set_num_threads(worker.threads)
    _mine = opening.load(worker.checkpoint, worker.device)


def _answer_here(one: Round) -> list[Record]:
    assert _mine is not None
    return answer(_mine, one)


def _in_parallel(worker: Worker, rounds: Sequence[Round], processes: int) -> Iterator[list[Record]]:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(worker,)) as pool:
        pending = [pool.submit(_answer_here, one) for one in rounds]
        try:
            for future in as_completed(pending):
                yield future.result()
        finally:
            for future in pending:
                future.cancel()
