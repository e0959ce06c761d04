"""Every arm answers every question once, as fast as the cores allow: for comparisons in which nothing is timed.

All arms answer a batch before the next one begins, because they share the pictures' features and, where they prune
behind the same layers, what these make of the prompts (`replay`). Several processes take batches in turn; one of them
writes.
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
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.journal import Journal
from vlm_pruner.experiments.llava_answerer import LlavaAnswerer, Look
from vlm_pruner.experiments.questions import Question
from vlm_pruner.experiments.replay import Replay

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """A batch, its number in the run, which seeds what is drawn, and the arms that have not answered all of it."""

    benchmark: str
    turn: int
    batch: list[Question]
    arms: list[Arm]


@dataclass(frozen=True)
class Worker:
    """How a process gets its model. threads: of torch; None leaves them."""

    checkpoint: Path
    device: str
    threads: int | None = None


def jobs_of(
    benchmark: str, batches: Sequence[list[Question]], arms: Sequence[Arm], records: Sequence[Record], first: int = 0
) -> list[Job]:
    """What the records lack. A batch that an arm has answered in part is answered again by it."""
    done = {(r["arm"], r["question_id"]) for r in records if r["benchmark"] == benchmark}
    jobs = []
    for turn, batch in enumerate(batches, start=first):
        missing = [arm for arm in arms if any((arm.key, question.question_id) not in done for question in batch)]
        if missing:
            jobs.append(Job(benchmark, turn, batch, missing))
    return jobs


def answer(answerer: LlavaAnswerer, job: Job) -> list[Record]:
    """The records of one job, arm by arm."""
    records: list[Record] = []
    depth = max((arm.method.layer for arm in job.arms if arm.method is not None), default=0)
    with Replay(answerer.model.get_model(), depth):
        for arm in job.arms:
            looks = answerer.look(job.batch, arm.method_for(job.turn))
            records += [record(arm, job.benchmark, *pair) for pair in zip(job.batch, looks, strict=True)]
    return records


def record(arm: Arm, benchmark: str, question: Question, look: Look) -> Record:
    """One answer. kept: in order of selection, counted within the picture; None for the dense model."""
    return {
        "arm": arm.key,
        "benchmark": benchmark,
        "question_id": question.question_id,
        "kind": question.kind,
        "expected": question.answer,
        "text": look.reply.text,
        "correct": question.accepts(look.reply.text),
        "kept": None if look.receipt is None else look.receipt.order,
    }


def refusal(answerer: LlavaAnswerer, arm: Arm, question: Question) -> str | None:
    """Why the arm cannot run on this model, found out by asking it; None if it can."""
    try:
        answerer.look([question], arm.method_for(0))
    except PruningError as error:
        return str(error)
    return None


def run(
    worker: Worker, answerer: LlavaAnswerer, jobs: Sequence[Job], journal: Journal, processes: int,
    advance: Callable[[int], object],
) -> None:  # fmt: skip
    """Answer the jobs; records reach the journal when a batch is done. `advance(n)` is told of n more answers."""
    for records in _in_turn(answerer, jobs) if processes == 1 else _in_parallel(worker, jobs, processes):
        journal.write(records)
        advance(len(records))


def _in_turn(answerer: LlavaAnswerer, jobs: Sequence[Job]) -> Iterator[list[Record]]:
    for job in jobs:
        yield answer(answerer, job)


_mine: LlavaAnswerer | None = None  # of a process of the pool


def _start(worker: Worker) -> None:
    global _mine
    if worker.threads:
        torch.set_num_threads(worker.threads)
    _mine = LlavaAnswerer.load(worker.checkpoint, worker.device)


def _answer_here(job: Job) -> list[Record]:
    assert _mine is not None
    return answer(_mine, job)


def _in_parallel(worker: Worker, jobs: Sequence[Job], processes: int) -> Iterator[list[Record]]:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(worker,)) as pool:
        pending = [pool.submit(_answer_here, job) for job in jobs]
        try:
            for future in as_completed(pending):
                yield future.result()
        finally:
            for future in pending:
                future.cancel()
