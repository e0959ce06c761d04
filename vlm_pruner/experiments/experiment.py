"""One experiment: arms answer questions, a journal keeps the answers, and a judge turns them into verdicts.

`vlm-pruner compare` is this; `demo-run` and `ablate` are the same with other arms, questions and columns.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vlm_pruner.asking.opening import check_device
from vlm_pruner.console import at_least, shown
from vlm_pruner.experiments import answering, clock, opening, verdicts
from vlm_pruner.experiments.answerer import Answerer
from vlm_pruner.experiments.arms import RESIZE, Arm, ModelFacts, NotRun
from vlm_pruner.experiments.clock import Timing
from vlm_pruner.experiments.journal import Journal, say_how_it_starts
from vlm_pruner.experiments.questions import Question, QuestionSet
from vlm_pruner.experiments.referee import Match, matches
from vlm_pruner.experiments.timings import Measured, measure
from vlm_pruner.experiments.verdicts import Cell, Rules
from vlm_pruner.provenance import weights_sha256

UNFINISHED = "answers.unfinished.jsonl"
TIMES = "times.json"
MOST_PROCESSES = 4

Refusal = Callable[[Arm], str | None]  # why an arm cannot run on this model
Plan = Callable[[ModelFacts, Refusal], tuple[list[Arm], list[NotRun]]]


@dataclass(frozen=True)
class Settings:
    """How to run and judge the experiment.

    batch_size: prompts at once. processes: None means one per core, at most four.
    prefixes: questions about one picture share it in every layer, which costs exactness to float rounding (`replay`).
    timed: arms take turns, share nothing and run in one process, so that their times are comparable.
    clock: number of questions, answered one by one, to measure every arm's time with; 0 measures none.
    answerable: judge only the kinds of question that the dense model answers better than a fixed answer would.
    """

    model: Path
    out: Path
    device: str = "cpu"
    seed: int = 0
    batch_size: int = 16
    processes: int | None = None
    prefixes: bool = False
    timed: bool = False
    clock: int = 0
    answerable: bool = False
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, resamples=self.rules.resamples, processes=self.processes)
        if self.device != "cpu" and (self.processes or 1) > 1:
            raise ValueError(
                f"--processes {self.processes} with --device {self.device}: processes share cores, not a device"
            )


@dataclass(frozen=True)
class Experiment:
    """A finished experiment. left_out: kinds of question not judged. measured: by arm's key, if timed.

    matches: pruned arms against smaller pictures, where those were compared.
    """

    settings: Settings
    answerer: Answerer
    facts: ModelFacts
    arms: list[Arm]
    not_run: list[NotRun]
    benchmarks: list[QuestionSet]
    header: dict[str, Any]
    journal: Journal
    cells: list[Cell]
    left_out: list[str]
    measured: dict[str, Measured]
    started: float
    matches: list[Match] = field(default_factory=list)

    @property
    def judged(self) -> list[Question]:
        return [q for b in self.benchmarks for q in b.questions if q.kind not in self.left_out]

    @property
    def wall_seconds(self) -> float:
        return time.perf_counter() - self.started

    def finish(self) -> None:
        """Marks the run as reported: the same command then starts over."""
        (self.settings.out / TIMES).unlink(missing_ok=True)
        self.journal.path.replace(self.settings.out / "answers.jsonl")


def run(
    settings: Settings, benchmarks: Sequence[QuestionSet], plan: Plan, described: Mapping[str, Any] | None = None
) -> Experiment:
    """Loads the model, lets every arm answer every question that the journal lacks, and judges.

    described: added to the journal's header. A journal with a different header is set aside.
    """
    started = time.perf_counter()
    check_device(settings.device)
    print(f"loading {shown(settings.model)}", file=sys.stderr, flush=True)
    answerer = opening.load(settings.model, settings.device)
    facts = answerer.facts(question for benchmark in benchmarks for question in benchmark.questions)
    arms, not_run = plan(facts, lambda arm: answering.refusal(answerer, arm, benchmarks[0].questions[0]))
    timing = _timing(settings, answerer, arms, facts, benchmarks[0].questions)
    arms = [*arms, *timing.more]
    header = {**_describe(settings, arms, benchmarks), **(described or {})}
    journal = _answer(settings, answerer, arms, benchmarks, header)
    judged = {benchmark.name: benchmark.questions for benchmark in benchmarks}
    left_out: list[str] = []
    if settings.answerable:
        judged, left_out = verdicts.answerable(arms[0], judged, journal.records, settings.rules)
    cells = verdicts.judge(arms, judged, journal.records, settings.rules)
    measured = measure(arms, journal.records) if settings.timed else {}
    fought = matches(arms, judged, journal.records, settings.rules, timing.costs, timing.rivals)
    return Experiment(
        settings, answerer, facts, arms, not_run, list(benchmarks), header, journal, cells, left_out, measured, started,
        fought,
    )  # fmt: skip


def _timing(
    settings: Settings, answerer: Answerer, arms: Sequence[Arm], facts: ModelFacts, questions: Sequence[Question]
) -> Timing:
    if not settings.clock or not any(arm.name == RESIZE for arm in arms):
        return Timing()
    about = {"model": weights_sha256(settings.model), "device": settings.device, "n": settings.clock}
    print("measuring times", file=sys.stderr, flush=True)
    return clock.timing(answerer, arms, facts, list(questions[: settings.clock]), settings.out / TIMES, about)


def _describe(settings: Settings, arms: Iterable[Arm], benchmarks: Iterable[QuestionSet]) -> dict[str, Any]:
    """Describes everything that affects the answers."""
    return {
        **describe(settings, benchmarks),
        "arms": [{"key": arm.key, **arm.describe()} for arm in arms],
    }  # fmt: skip


def describe(settings: Settings, benchmarks: Iterable[QuestionSet]) -> dict[str, Any]:
    """Describes everything that affects the answers, but for the arms."""
    return {
        "model": shown(settings.model),
        "weights_sha256": weights_sha256(settings.model),
        "benchmarks": [
            {"name": b.name, "path": shown(b.path), "asked": [q.question_id for q in b.questions], "sha256": _digest(b)}
            for b in benchmarks
        ],
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "device": settings.device,
    }


def _digest(benchmark: QuestionSet) -> str:
    asked = [
        [question.text, question.answer, *([] if question.match == "exact" else [question.match])]
        for question in benchmark.questions
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _answer(
    settings: Settings, answerer: Answerer, arms: Sequence[Arm], benchmarks: Sequence[QuestionSet],
    header: dict[str, Any],
) -> Journal:  # fmt: skip
    total = len(arms) * sum(len(benchmark.questions) for benchmark in benchmarks)
    with Journal(settings.out / UNFINISHED, header) as journal:
        say_how_it_starts(journal)
        rounds, first = [], 0
        for benchmark in benchmarks:
            batches = answerer.batches(benchmark.questions, settings.batch_size, settings.prefixes)
            rounds += answering.rounds_of(benchmark.name, batches, arms, journal.records, first, settings.prefixes)
            first += len(batches)
        fill(settings, answerer, journal, rounds, total)
    return journal


def fill(
    settings: Settings, answerer: Answerer, journal: Journal, rounds: Sequence[answering.Round], total: int
) -> None:
    """Lets the rounds' arms answer, and writes it into the open journal. total: answers when it is full."""
    processes = min(_processes(settings), max(1, len(rounds)))
    threads = None if processes == 1 else max(1, torch.get_num_threads() // processes)
    worker = answering.Worker(settings.model, settings.device, threads)
    left = sum(len(one.batch) * len(one.arms) for one in rounds)
    with tqdm(total=total, initial=total - left, unit=" answers", ncols=80, file=sys.stderr) as bar:
        if settings.timed:
            answering.run_timed(answerer, rounds, journal, bar.update)
        else:
            answering.run(worker, answerer, rounds, journal, processes, bar.update)


def _processes(settings: Settings) -> int:
    """By default one per core that torch would use, up to four: a small model's batches do not fill several threads."""
    if settings.timed:
        return 1
    fitting = 1 if settings.device != "cpu" else min(MOST_PROCESSES, torch.get_num_threads())
    return settings.processes or fitting
