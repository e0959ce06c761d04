"""`vlm-pruner budget`: finds the smallest budget of each method that keeps the dense model's accuracy.

Slow imports and torch load when the run starts, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from vlm_pruner.commands.options import add_experiment_arguments
from vlm_pruner.console import at_least, words
from vlm_pruner.experiments.mini import check_checkpoint
from vlm_pruner.experiments.questions import question_sets
from vlm_pruner.experiments.worlds import find_world

SCENES, PER_KIND = 300, 1  # of the embedded world, where no file is given

EXAMPLES = """examples:
  vlm-pruner budget
  vlm-pruner budget --methods vlm-pruner,vlm-pruner:token_batch=16,divprune --keep-share 0.98
  vlm-pruner budget --model DIR --questions-file mine/questions.jsonl --device cuda

Half of the pictures find the budget, the other half confirms it. To resume a run that was stopped, give the same
command again. docs/comparison.md: how it decides.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods", type=words, default=["random", "vlm-pruner"], metavar="NAME,NAME",
        help="methods; NAME:field=value[:field=value] for settings (random,vlm-pruner)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-share", type=float, default=0.99, metavar="S", help="of the dense accuracy, to keep (%(default)s)"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="C", help="of the one-sided bound (%(default)s)"
    )
    parser.add_argument(
        "--questions-file", type=Path, metavar="FILE",
        help="JSON lines: question_id, image (in images/ beside it), text, kind, answer; default: the embedded world",
    )  # fmt: skip
    parser.add_argument("--questions", type=int, default=4000, metavar="N", help="at most (%(default)s)")
    add_experiment_arguments(parser, "results/budget")
    parser.add_argument("--seed", type=int, default=0, help="splits the pictures, draws and resamples (%(default)s)")
    parser.add_argument("--resamples", type=int, default=10_000, metavar="N", help="of the bootstrap (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts at once (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="(%(default)s; each loads the model)")


def run(args: argparse.Namespace) -> int:
    """Searches, prints the table, and writes it, budget.json and answers.jsonl into --out."""
    started = time.perf_counter()
    from vlm_pruner.experiments import experiment, search
    from vlm_pruner.experiments.verdicts import Rules
    from vlm_pruner.report import budget_table, results

    at_least(1, questions=args.questions)
    goal = search.Goal(args.keep_share, args.confidence)
    settings = experiment.Settings(
        args.model, args.out, args.device, args.seed, args.batch_size, args.processes, prefixes=True,
        rules=Rules(args.resamples, args.seed),
    )  # fmt: skip
    if not args.methods:
        raise ValueError("--methods is empty; name one or more, for example --methods vlm-pruner,divprune")
    check_checkpoint(args.model)
    path = args.questions_file or find_world("default", SCENES, PER_KIND, args.seed + 1)
    done = search.run(settings, question_sets([path], args.questions, args.seed)[0], args.methods, goal)
    seconds = time.perf_counter() - started
    text, document = budget_table.text(done), budget_table.document(done, seconds)
    print(text)
    results.write_into(args.out, {"table.txt": text, "budget.json": document})
    done.journal.path.replace(args.out / "answers.jsonl")
    return 0
