"""`vlm-pruner compare`: methods x budgets x benchmarks, with intervals, verdicts and one way of counting.

Everything that is slow or needs torch is imported when the run starts, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vlm_pruner.console import shown, words
from vlm_pruner.experiments.mini import CHECKPOINT, check_checkpoint, find_questions
from vlm_pruner.experiments.questions import Question, balanced_sample, kinds_of, read_questions
from vlm_pruner.provenance import weights_sha256

if TYPE_CHECKING:
    from vlm_pruner.experiments.arms import Arm, ModelFacts
    from vlm_pruner.experiments.journal import Journal
    from vlm_pruner.experiments.llava_answerer import LlavaAnswerer
    from vlm_pruner.experiments.verdicts import Cell, Rules

EXAMPLES = """examples:
  vlm-pruner compare                                       all methods at 192, 128 and 64 tokens, 480 questions
  vlm-pruner compare --methods dense,random,fastv,vlm-pruner,vlm-pruner:token_batch=16 --budget 64,32
  vlm-pruner compare --budget avg:250,flops:0.5            at equal average tokens, at equal FLOPs
  vlm-pruner compare --model DIR --questions-file mine/questions.jsonl --holm

A run that was stopped goes on where it was when the same command is given again. docs/comparison.md: how to read it.
"""
UNFINISHED = "answers.unfinished.jsonl"


@dataclass(frozen=True)
class Benchmark:
    """A question file, and the questions of it that are asked."""

    name: str
    path: Path
    questions: list[Question]


@dataclass(frozen=True)
class NotRun:
    """An arm that the model or the method refuses; it is shown with the reason."""

    name: str
    label: str
    budget: str
    reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods", type=words, default=["all"], metavar="NAME,NAME",
        help="all, or names; NAME:field=value[:field=value] for settings (all)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", "--budgets", dest="budgets", type=words, default=["192", "128", "64"], metavar="B,B",
        help="64 (tokens), ratio:0.889, avg:64 (mean over layers), flops:0.3 (share of dense) (192,128,64)",
    )  # fmt: skip
    parser.add_argument("--questions", type=int, default=480, metavar="N", help="of each file, at most (%(default)s)")
    parser.add_argument(
        "--questions-file", type=Path, nargs="+", metavar="FILE",
        help="JSON lines: question_id, image (in images/ beside it), text, kind, answer; default: the embedded world",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, metavar="DIR", help="LLaVA checkpoint; default: the embedded"
    )
    parser.add_argument("--out", type=Path, default=Path("results/compare"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws questions, random's tokens, resamples (%(default)s)")
    parser.add_argument("--resamples", type=int, default=10_000, metavar="N", help="of the bootstrap (%(default)s)")
    parser.add_argument("--holm", action="store_true", help="verdicts corrected for the number of comparisons")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts at once (%(default)s)")
    parser.add_argument(
        "--processes", type=int, default=None, metavar="N", help="default: one per core, four at most",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Answer, judge, and write table.txt, table.md, results.json, answers.jsonl and accuracy.png into --out."""
    started = time.perf_counter()
    _check(args)
    check_checkpoint(args.model)
    benchmarks = _read_benchmarks(args)
    from vlm_pruner.experiments.llava_answerer import LlavaAnswerer, check_device
    from vlm_pruner.experiments.verdicts import Rules, judge

    check_device(args.device)
    rules = Rules(args.resamples, args.seed, holm=args.holm)
    print(f"loading {shown(args.model)}", file=sys.stderr, flush=True)
    answerer = LlavaAnswerer.load(args.model, args.device)
    facts = answerer.facts(q for benchmark in benchmarks for q in benchmark.questions)
    arms, not_run = possible_arms(args, facts, answerer, benchmarks[0].questions[0])
    header = _describe(args, arms, benchmarks)
    journal = _answer(answerer, arms, benchmarks, args, header)
    cells = judge(arms, {b.name: b.questions for b in benchmarks}, journal.records, rules)
    journal.path.replace(args.out / "answers.jsonl")
    seconds = time.perf_counter() - started
    _report(args, facts, arms, not_run, benchmarks, cells, rules, header, seconds, answerer.side)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("questions", "batch_size", "resamples"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    if args.processes is not None and args.processes < 1:
        raise ValueError(f"--processes is {args.processes}; it must be at least 1")
    if args.device != "cpu" and (args.processes or 1) > 1:
        raise ValueError(f"--processes {args.processes} with --device {args.device}: several share cores, not a device")
    if not args.budgets:
        raise ValueError("--budget is empty; give one or more, for example --budget 192,64")


def _read_benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    """The question files, by the names of their folders, with as many questions of each kind as possible."""
    found: list[Benchmark] = []
    for path in args.questions_file or [find_questions(None)]:
        everything = read_questions(path)
        name = path.resolve().parent.name
        if any(other.name == name for other in found):
            raise ValueError(f"two question files are called {name!r} by their folder ({path}); rename one folder")
        sample = balanced_sample(everything, min(args.questions, len(everything)), args.seed)
        found.append(Benchmark(name, path, sorted(sample, key=lambda q: kinds_of(everything).index(q.kind))))
    return found


def possible_arms(
    args: argparse.Namespace, facts: ModelFacts, answerer: LlavaAnswerer, question: Question
) -> tuple[list[Arm], list[NotRun]]:
    """Every arm that was asked for: those that run, and those that do not, with the reason.

    Raises ValueError for a method that does not exist and a budget that is none.
    """
    from vlm_pruner.errors import PruningError
    from vlm_pruner.experiments.answering import refusal
    from vlm_pruner.experiments.arms import DENSE, Arm, dense_arm, make_arm, read_budget
    from vlm_pruner.methods import maker

    names = _names(args.methods)
    for name in names:
        _ = name == DENSE or maker(name)
    arms = [dense_arm(facts)] if DENSE in names else []
    not_run: list[NotRun] = []
    for budget in [read_budget(word, facts.visual) for word in args.budgets]:
        for name in names:
            if name == DENSE:
                continue
            try:
                arm = make_arm(name, budget, facts, args.seed)
                reason = refusal(answerer, arm, question)
            except PruningError as error:
                arm, reason = Arm(name, 0), str(error)
            if reason is None:
                arms.append(arm)
            else:
                not_run.append(NotRun(name, arm.label, str(budget), reason))
    if not arms:
        raise ValueError(f"no arm can be run; the first reason: {not_run[0].label}: {not_run[0].reason}")
    return arms, not_run


def _names(words: Sequence[str]) -> list[str]:
    """`all`: dense and every method there is, also the one that needs more than settings: it is named as not run."""
    from vlm_pruner import methods

    if "all" not in words:
        return list(dict.fromkeys(words))
    first = ["dense", "random", "vlm-pruner-16", "vlm-pruner"]
    every = [*first, *(name for name in methods.names() if name not in first), "cdpruner"]
    return list(dict.fromkeys([*every, *(word for word in words if word != "all")]))


def _describe(args: argparse.Namespace, arms: Sequence[Arm], benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    """All that decides the answers; a journal with another description is not continued."""
    return {
        "model": shown(args.model),
        "weights_sha256": weights_sha256(args.model),
        "benchmarks": [
            {"name": b.name, "path": shown(b.path), "asked": [q.question_id for q in b.questions], "sha256": _digest(b)}
            for b in benchmarks
        ],
        "seed": args.seed,
        "batch_size": args.batch_size,
        "device": args.device,
        "arms": [{"key": arm.key, **arm.describe()} for arm in arms],
    }  # fmt: skip


def _digest(benchmark: Benchmark) -> str:
    asked = [[question.text, question.answer] for question in benchmark.questions]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _answer(
    answerer: LlavaAnswerer,
    arms: Sequence[Arm],
    benchmarks: Sequence[Benchmark],
    args: argparse.Namespace,
    header: dict[str, Any],
) -> Journal:
    from vlm_pruner.experiments import answering
    from vlm_pruner.experiments.journal import Journal, say_how_it_starts

    processes = args.processes or _default_processes(args.device)
    worker = answering.Worker(args.model, args.device, _threads(processes))
    total = len(arms) * sum(len(b.questions) for b in benchmarks)
    with Journal(args.out / UNFINISHED, header) as journal:
        say_how_it_starts(journal)
        jobs, first = [], 0
        for benchmark in benchmarks:
            batches = answerer.batches(benchmark.questions, args.batch_size)
            jobs += answering.jobs_of(benchmark.name, batches, arms, journal.records, first)
            first += len(batches)
        left = sum(len(job.batch) * len(job.arms) for job in jobs)
        with tqdm(total=total, initial=total - left, unit=" answers", ncols=80, file=sys.stderr) as bar:
            answering.run(worker, answerer, jobs, journal, min(processes, max(1, len(jobs))), bar.update)
    return journal


def _default_processes(device: str) -> int:
    """One for each core that torch would use, up to four: batches of a small model do not fill several threads."""
    import torch

    return 1 if device != "cpu" else min(4, torch.get_num_threads())


def _threads(processes: int) -> int | None:
    import torch

    return None if processes == 1 else max(1, torch.get_num_threads() // processes)


def _report(
    args: argparse.Namespace, facts: ModelFacts, arms: Sequence[Arm], not_run: Sequence[NotRun],
    benchmarks: Sequence[Benchmark], cells: Sequence[Cell], rules: Rules, header: dict[str, Any], seconds: float,
    side: int,
) -> None:  # fmt: skip
    from vlm_pruner.experiments.verdicts import comparisons
    from vlm_pruner.provenance import environment
    from vlm_pruner.report import charts
    from vlm_pruner.report.compare_table import markdown, terminal

    notes = "\n".join(_notes(facts, not_run, cells, rules, benchmarks))
    text = f"model {shown(args.model)}, {facts.visual} visual tokens per picture\n\n{terminal(cells)}\n\n{notes}"
    print(text)
    results = {
        "command": "vlm-pruner compare",
        "format": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": seconds,
        "environment": environment(),
        "config": header,
        "model": {"path": shown(args.model), "grid": [side, side], "visual_tokens": facts.visual,
                  "depth": facts.shape.layers if facts.shape else None, "text_tokens": facts.text,
                  "decoder": asdict(facts.shape) if facts.shape else None},
        "statistics": {**asdict(rules), "unit": "picture", "comparisons": comparisons(cells)},
        "benchmarks": [_benchmark(b) for b in benchmarks],
        "items": [_item(b.name, q) for b in benchmarks for q in b.questions],
        "arms": [_arm(arm) for arm in arms],
        "not_run": [asdict(one) for one in not_run],
        "cells": [cell.describe() for cell in cells],
        "journal": "answers.jsonl",
    }  # fmt: skip
    (args.out / "table.txt").write_text(text + "\n", encoding="utf-8")
    (args.out / "table.md").write_text(f"# Comparison\n\n{markdown(cells)}\n\n{notes}\n", encoding="utf-8")
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    names = [args.out / name for name in ("table.txt", "table.md", "results.json", "answers.jsonl")]
    names += charts.write_if_installed(args.out / "accuracy.png", charts.accuracy, results)
    print(f"\n{seconds:.0f} s; written:", *(f"  {shown(name)}" for name in names), sep="\n")


def _notes(
    facts: ModelFacts, not_run: Sequence[NotRun], cells: Sequence[Cell], rules: Rules, benchmarks: Sequence[Benchmark]
) -> list[str]:
    from vlm_pruner.experiments.verdicts import comparisons

    count, pictures = comparisons(cells), len({q.image for b in benchmarks for q in b.questions})
    corrected = sum(d.verdict != "not distinguishable" for c in cells for d in c.against.values())
    lines = [
        "accuracy: exact match, mean over kinds, in %; avg: visual tokens, mean over the decoder's layers;",
        f"  FLOPs: of the decoder's prefill with {facts.text} text tokens, of dense; loyal: % answers equal to dense",
        f"differences in points, paired, [{100 * rules.level:g} % interval] by bootstrap over {pictures} pictures"
        f" ({rules.resamples} resamples):",
        "  + better, - worse, ~ not distinguishable at this n; by kind: marks against dense",
    ]
    if rules.holm:
        lines.append(f"verdicts after Holm's correction for {count} comparisons: {corrected} are clear")
    else:
        expected = count * (1 - rules.level)
        lines.append(
            f"{count} comparisons, {corrected} of them clear; with no differences at all, about {expected:.0f}"
        )
        lines.append("  would look clear by chance: --holm corrects for that")
    if rules.holm and 2 * count / (rules.resamples + 1) > 1 - rules.level:
        lines.append(f"  too few resamples for any to be clear: give --resamples {100 * count} or more")
    by_reason: dict[tuple[str, str], list[str]] = {}
    for one in not_run:
        by_reason.setdefault((one.label, one.reason), []).append(one.budget)
    lines += [f"not run: {label} at {', '.join(at)}: {reason}" for (label, reason), at in by_reason.items()]
    return lines


def _benchmark(benchmark: Benchmark) -> dict[str, Any]:
    kinds = [question.kind for question in benchmark.questions]
    return {
        "name": benchmark.name,
        "path": shown(benchmark.path),
        "n": len(kinds),
        "pictures": len({question.image for question in benchmark.questions}),
        "kinds": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
    }


def _item(benchmark: str, question: Question) -> dict[str, Any]:
    own = {"question_id": question.question_id, "image": shown(question.image), "text": question.text}
    return {"benchmark": benchmark, **own, "kind": question.kind, "answer": question.answer}


def _arm(arm: Arm) -> dict[str, Any]:
    from vlm_pruner.cost.accounting import planned_steps

    account = arm.accounting
    steps = [] if account is None else planned_steps(arm.method, account.visual, len(account.kept))
    return {
        "key": arm.key,
        **arm.describe(),
        "budget": None if arm.method is None else arm.key.partition("@")[2],
        "chosen": arm.chosen,
        "tokens": steps[-1][1] if steps else arm.tokens,
        "budget_tokens": arm.tokens,
        "steps": steps,
        "accounting": None if account is None else account.to_dict(),
    }
