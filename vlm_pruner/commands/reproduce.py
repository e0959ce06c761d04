"""The paper's table of one model: dense and pruned, all budgets and benchmarks, in one process that loads it once.

    bash scripts/v1_5/reproduce.sh checkpoints/llava-v1.5-7b --batch-size 8
    bash scripts/v1_5/reproduce.sh MODEL --methods "vlm-pruner vlm-pruner:1 random" --ratios 0.889
    METHODS=all BENCHMARKS="pope mme" bash scripts/v1_5/reproduce.sh MODEL
    MINI=1 bash scripts/v1_5/reproduce.sh

The benchmark scripts define the runs: each lists its commands, which then run in this process so that the checkpoint
stays loaded. Existing results are kept, an interrupted benchmark resumes where it stopped, and benchmarks without data
are listed at the end and make the exit code 1.

Flags, or the environment variables METHODS, RATIOS and BENCHMARKS: names of methods (vlm-pruner:B for a token batch
other than the paper's 16), resize (a smaller picture), blind (none), or all methods; shares of removed tokens; names of
scripts. --plan only prints what would run. DATA, MINI and ALLOW_ERRORS are the benchmark scripts' own; other flags go
to the answer generators. With several GPUs, start it once per GPU, each with its own METHODS or BENCHMARKS.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_pruner import methods, scoring
from vlm_pruner.console import BAD_INPUT, INTERRUPTED, OneLineParser
from vlm_pruner.llava.eval.checkpoint import keep_loaded
from vlm_pruner.llava.eval.plan import execute, finished, plan_of
from vlm_pruner.llava.sights import BLIND, RESIZE
from vlm_pruner.report.paper_numbers import COLUMNS
from vlm_pruner.report.paper_render import terminal
from vlm_pruner.report.paper_results import LABELS, TableError, read_results, rows_of
from vlm_pruner.report.paper_table import model_tables

BENCHMARKS = tuple(scoring.needs(name).script for name in COLUMNS)  # scripts, in the order of the paper's columns
RATIOS = ("0.667", "0.778", "0.889")  # 192, 128 and 64 of LLaVA-1.5's 576 tokens
THRESHOLD, TOKEN_BATCH = "0.8", "16"  # the paper's
MINI_METHODS = ("random", "vlm-pruner", "vlm-pruner:1")
ALL = "all"
MINI_FLAGS = ("--batch-size", "8")
NO_CHECKPOINT = "there is no checkpoint"  # as the scripts say it
INCOMPLETE = 1  # exit code


@dataclass(frozen=True)
class ScriptArm:
    """One row of the table. method: None for dense. ratio, token_batch: as the scripts take them."""

    method: str | None = None
    ratio: str = "0"
    token_batch: str = TOKEN_BATCH

    @property
    def label(self) -> str:
        if self.method is None:
            return "dense"
        batch = f":{self.token_batch}" if self.token_batch != TOKEN_BATCH else ""
        return f"{self.method}{batch} {self.ratio}"

    @property
    def numbers(self) -> list[str]:
        return ["0"] if self.method is None else [self.ratio, THRESHOLD, self.token_batch]


@dataclass(frozen=True)
class Outcome:
    """One benchmark of one arm: its result file, or the reason why there is none."""

    result: Path | None
    problem: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL"), help="checkpoint folder; not with MINI=1")
    for name, what in (("methods", "names of methods, or all"), ("ratios", "shares"), ("benchmarks", "scripts")):
        parser.add_argument(f"--{name}", default=os.environ.get(name.upper(), ""), help=f"{what} (or {name.upper()}=)")
    parser.add_argument("--plan", action="store_true", help="print what would be run, and run nothing")
    args, flags = parser.parse_known_args(argv)
    mini = bool(os.environ.get("MINI"))
    if args.model is None and not mini:
        parser.error("give the checkpoint's folder, or MINI=1 for the embedded model")
    try:
        arms = list(arms_of(args.methods, args.ratios, mini))
    except ValueError as error:
        parser.error(str(error))
    scripts = _words(args.benchmarks, BENCHMARKS)
    _print_plan(arms, scripts, args.methods)
    if args.plan:
        return 0
    environment = {**os.environ, **({"MODEL": args.model} if args.model else {})}
    try:
        with keep_loaded():
            return reproduce(arms, scripts, environment, flags or list(MINI_FLAGS if mini else ()))
    except KeyboardInterrupt:
        print("reproduce: interrupted; the same command continues from here", file=sys.stderr)
        return INTERRUPTED


def arms_of(chosen: str = "", ratios: str = "", mini: bool = False) -> Iterator[ScriptArm]:
    """Dense, then each method at every ratio. chosen, ratios: words; the defaults if there are none.

    Raises ValueError for a method that does not exist, and for a ratio that is no share.
    """
    yield ScriptArm()
    shares = _words(ratios, RATIOS)
    for ratio in shares:
        _check_ratio(ratio)
    words = _words(chosen, MINI_METHODS if mini else _papers_methods())
    for word in _all_methods() if words == [ALL] else words:
        name, _, batch = word.partition(":")
        if name == BLIND:
            yield ScriptArm(BLIND, shares[0])  # no budget: once is enough
            continue
        if name != RESIZE:
            methods.get(name)
        if batch and not batch.isdigit():
            raise ValueError(f"methods: {word!r} is not a method with a token batch, such as vlm-pruner:1")
        for ratio in shares:
            yield ScriptArm(name, ratio, batch or TOKEN_BATCH)


def _check_ratio(word: str) -> None:
    try:
        possible = 0 < float(word) < 1
    except ValueError:
        possible = False
    if not possible:
        raise ValueError(f"ratios: {word!r} is not a share of removed tokens, above 0 and below 1, such as 0.889")


def reproduce(
    arms: Sequence[ScriptArm], scripts: Sequence[str], environment: Mapping[str, str], flags: Sequence[str]
) -> int:
    """Runs what has no result yet, prints progress, and ends with the table and the list of failures."""
    jobs = [(arm, script) for arm in arms for script in scripts]
    outcomes, start = [], time.monotonic()
    for number, (arm, script) in enumerate(jobs, start=1):
        print(f"== [{number} of {len(jobs)}, {_clock(start)}] {script}, {arm.label}", file=sys.stderr, flush=True)
        outcome = run_one(arm, script, environment, flags)
        if NO_CHECKPOINT in outcome.problem:  # of no other benchmark either
            print(f"reproduce: {outcome.problem.removeprefix(f'{script}: ')}", file=sys.stderr)
            return BAD_INPUT
        print(f"   {outcome.problem or outcome.result}", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    _print_table([outcome.result for outcome in outcomes if outcome.result is not None])
    return _conclude(jobs, outcomes, start)


def run_one(arm: ScriptArm, script: str, environment: Mapping[str, str], flags: Sequence[str]) -> Outcome:
    """One benchmark of one arm; nothing is run if it has a result."""
    environment = {**environment, **({"METHOD": arm.method} if arm.method else {})}
    arguments = [f"scripts/v1_5/eval/{script}.sh", *arm.numbers, *flags]
    plan = plan_of(arguments, environment)
    if plan.problem:
        return Outcome(None, plan.problem)
    if (result := finished(plan)) is not None:
        return Outcome(result)
    problem = next((problem for command in plan.commands if (problem := execute(command))), "")
    result = finished(plan)
    return Outcome(result, problem or ("" if result else f"{script}.sh has left no result file"))


def _papers_methods() -> list[str]:
    """The paper's methods that exist here, its own first."""
    known = methods.names()
    return sorted((name for name in LABELS if name in known), key=lambda name: name != "vlm-pruner")


def _all_methods() -> list[str]:
    """Every method that prunes pictures with settings alone, ours first and with both token batches."""
    others = [name for name in methods.names() if name != "vlm-pruner"]
    return ["vlm-pruner", "vlm-pruner:1", *others]


def _words(given: str, default: Sequence[str]) -> list[str]:
    return given.replace(",", " ").split() or list(default)


def _print_plan(arms: Sequence[ScriptArm], scripts: Sequence[str], chosen: str) -> None:
    runs = len(arms) * len(scripts)
    print(
        f"plan: {len(arms)} arms x {len(scripts)} benchmarks = {runs} runs; those that have a result are kept\n"
        f"  benchmarks: {', '.join(scripts)}\n  arms: {', '.join(arm.label for arm in arms)}",
        file=sys.stderr,
    )
    if chosen.strip() == ALL:
        print("  not among them: cdpruner, which needs embeddings of each question (docs/methods.md)", file=sys.stderr)


def _clock(start: float) -> str:
    seconds = int(time.monotonic() - start)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _print_table(results: Sequence[Path]) -> None:
    try:
        rows = rows_of(read_results(results))
    except TableError as error:
        print(f"no table: {error}", file=sys.stderr)
        return
    if rows:
        print(terminal(model_tables(rows)))


def _conclude(jobs: Sequence[tuple[ScriptArm, str]], outcomes: Sequence[Outcome], start: float) -> int:
    missing = [(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True) if outcome.problem]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} done in {_clock(start)}", file=sys.stderr)
    for (arm, script), outcome in missing:
        print(f"not done: {script}, {arm.label}: {outcome.problem}", file=sys.stderr)
    return INCOMPLETE if missing else 0


if __name__ == "__main__":
    sys.exit(main())
