"""From a command line to an answer file: the run that all ``model_vqa_*`` modules share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vlm_pruner.console import BAD_INPUT, INTERRUPTED, OneLineParser, one_line
from vlm_pruner.llava.eval import divided, options, parts, runner
from vlm_pruner.llava.eval.answers import AnswerFile, finished
from vlm_pruner.llava.eval.processes import Team, this_process, under_deepspeed
from vlm_pruner.llava.eval.questions import Item, chunk
from vlm_pruner.methods import Pruner
from vlm_pruner.provenance import environment

FAILED_ITEMS = 1  # exit code

EngineFactory = Callable[[argparse.Namespace, Pruner | None], runner.Engine[Any]]
Load = Callable[[], runner.Engine[Any]]


@dataclass(frozen=True)
class Task:
    """A benchmark's part of the run: how its questions are read, its flags, and the field that replies go to.

    ``settings``: those of its flags that affect the answers.
    """

    name: str
    read: Callable[[argparse.Namespace], list[Item]]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    reply_field: str = "text"
    description: str | None = None
    settings: tuple[str, ...] = ()


def main(task: Task, argv: Sequence[str] | None = None, engine_factory: EngineFactory | None = None) -> int:
    """Parses and runs; bad input becomes one line and exit code 2."""
    args = build_parser(task).parse_args(argv)
    try:
        return evaluate(task, args, engine_factory or load_engine)
    except (ValueError, OSError) as error:
        team = this_process()
        process = "" if team.size == 1 else f" (process {team.rank} of {team.size})"
        print(f"{task.name}: {one_line(error)}{process}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{task.name}: interrupted; the same command continues from here", file=sys.stderr)
        return INTERRUPTED


def build_parser(task: Task) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=f"python -m llava.eval.{task.name}", description=task.description,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    options.add_model_arguments(parser)
    options.add_data_arguments(parser)
    options.add_generation_arguments(parser)
    options.add_pruning_arguments(parser)
    task.add_arguments(parser)
    return parser


def evaluate(task: Task, args: argparse.Namespace, engine_factory: EngineFactory) -> int:
    """Answers the questions of ``args``; the exit code is 1 if more items failed than allowed."""
    method = options.build_method(args)
    options.check_arguments(args)
    items = chunk(task.read(args), args.num_chunks, args.chunk_idx)[: args.limit]
    config = options.describe_config(args, task.name, method, task.settings)
    description = {"config": config, "seed": args.seed, **environment()}
    load = partial(engine_factory, args, method)
    divided.check(this_process())
    with this_process() as team:
        if team.leads and (team.size > 1 or parts.left_behind(args.answers_file)):
            parts.merge(args.answers_file, description, args.retry_errors)
        if team.size == 1:
            with AnswerFile(args.answers_file, description, args.retry_errors) as answers:
                _answer(task, args, items, answers, load)
            return _conclude(task, args, items, answers)
        team.wait()
        done = finished(args.answers_file)
        with AnswerFile(parts.part_of(args.answers_file, team), description) as answers:
            left = [item for item in items if item.index not in done]
            if under_deepspeed():
                _answer_in_step(task, args, left, answers, load, team)
            else:
                _answer(task, args, team.share(left), answers, load, quiet=not team.leads)
        team.wait()
        return _conclude(task, args, items, parts.merge(args.answers_file, description)) if team.leads else 0


def _answer_in_step(
    task: Task, args: argparse.Namespace, items: Sequence[Item], answers: AnswerFile, load: Load, team: Team
) -> None:
    """Answers this process's share of ``items`` with its part of a model that is divided among all processes."""
    if not items:
        return
    engine = load()
    for group in divided.by_pictures(items):
        steps = divided.steps(engine, group, team, args.batch_size)
        runner.run(
            engine, team.share(group), answers, args.batch_size, task.reply_field, title=task.name,
            quiet=not team.leads, steps=steps,
        )  # fmt: skip


def _answer(
    task: Task, args: argparse.Namespace, items: Sequence[Item], answers: AnswerFile, load: Load, quiet: bool = False
) -> None:
    """Answers what ``answers`` lacks; loads the model only if something is missing."""
    if any(item.index not in answers.done for item in items):
        runner.run(load(), items, answers, args.batch_size, task.reply_field, title=task.name, quiet=quiet)


def load_engine(args: argparse.Namespace, method: Pruner | None) -> runner.Engine[Any]:
    """Loads the real model. The late import lets bad flags fail without waiting for transformers."""
    from vlm_pruner.llava.eval.engine import LlavaEngine

    return LlavaEngine.from_arguments(args, method)


def _conclude(task: Task, args: argparse.Namespace, items: Sequence[Item], answers: AnswerFile) -> int:
    failed = [item.index for item in items if item.index in answers.errors]
    left = sum(item.index not in answers.done for item in items)
    answered = len(items) - len(failed) - left
    print(f"{task.name}: {answered} of {len(items)} questions answered in {answers.path}", file=sys.stderr)
    if left:
        print(f"{task.name}: {left} are left; the same command continues", file=sys.stderr)
        return FAILED_ITEMS
    if not failed:
        return 0
    print(
        f"{task.name}: {len(failed)} failed (allowed: {args.allow_errors}), first: {answers.errors[failed[0]]};"
        " --retry-errors asks them again",
        file=sys.stderr,
    )
    return FAILED_ITEMS if len(failed) > args.allow_errors else 0
