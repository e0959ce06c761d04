"""`vlm-pruner compare`: compares methods x budgets x benchmarks, with intervals, verdicts and one way of counting.

Slow imports and torch load when the run starts, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vlm_pruner.commands.options import add_experiment_arguments
from vlm_pruner.console import at_least, words
from vlm_pruner.experiments.mini import check_checkpoint, find_questions
from vlm_pruner.experiments.questions import check_pictures, question_sets

EXAMPLES = """examples:
  vlm-pruner compare                       # all methods, 192, 128, 64 tokens
  vlm-pruner compare --methods dense,random,fastv,vlm-pruner,vlm-pruner:token_batch=16 --budget 64,32
  vlm-pruner compare --budget avg:250,flops:0.5     # at equal mean, equal FLOPs
  vlm-pruner compare --model DIR --questions-file mine/questions.jsonl --holm

To resume a run that was stopped, give the same command again. docs/comparison.md: how to read it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods", type=words, default=["all"], metavar="NAME,NAME",
        help="all, or names (see vlm-pruner methods), dense, resize (a smaller picture), blind (none), or "
        "FILE.py:CLASS; NAME:field=value for settings (all)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", "--budgets", "--keep", dest="budgets", type=words, default=["192", "128", "64"], metavar="B,B",
        help="64 (tokens), ratio:0.889, avg:64 (mean over layers), flops:0.3 (share of dense) (192,128,64)",
    )  # fmt: skip
    parser.add_argument("--questions", type=int, default=480, metavar="N", help="of each file, at most (%(default)s)")
    parser.add_argument(
        "--questions-file", type=Path, nargs="+", metavar="FILE",
        help="JSON lines: image (in images/ beside it), text, answer (docs/own_data.md); default: the embedded world",
    )  # fmt: skip
    add_experiment_arguments(parser, "results/compare")
    parser.add_argument("--seed", type=int, default=0, help="draws questions, random's tokens, resamples (%(default)s)")
    parser.add_argument("--resamples", type=int, default=10_000, metavar="N", help="of the bootstrap (%(default)s)")
    parser.add_argument("--holm", action="store_true", help="verdicts corrected for the number of comparisons")
    parser.add_argument(
        "--time-questions", type=int, default=5, metavar="N",
        help="answered one by one, to time arms where resize is among them; 0: do not time (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts at once (%(default)s)")
    parser.add_argument(
        "--processes", type=int, default=None, metavar="N", help="default: one per core, four at most",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Answers, judges, and writes table.txt, table.md, results.json, answers.jsonl and accuracy.png into --out."""
    check_checkpoint(args.model)
    from vlm_pruner.experiments import experiment
    from vlm_pruner.experiments.arms import possible_arms
    from vlm_pruner.experiments.verdicts import Rules
    from vlm_pruner.report import charts, referee_table, results
    from vlm_pruner.report.compare_table import markdown

    at_least(1, questions=args.questions)
    if not args.methods:
        raise ValueError("--methods is empty; name one or more, for example --methods vlm-pruner,divprune")
    settings = experiment.Settings(
        args.model, args.out, args.device, args.seed, args.batch_size, args.processes,
        clock=max(0, args.time_questions), rules=Rules(args.resamples, args.seed, holm=args.holm),
    )  # fmt: skip
    if not args.budgets:
        raise ValueError("--budget is empty; give one or more, for example --budget 192,64")
    benchmarks = question_sets(args.questions_file or [find_questions(None)], args.questions, args.seed)
    check_pictures(benchmarks)
    arms = partial(possible_arms, _names(args.methods), args.budgets)
    done = experiment.run(settings, benchmarks, lambda facts, refusal: arms(facts, args.seed, refusal))
    text, notes = results.text(done), "\n".join(results.notes(done))
    text += "\n\n" + referee_table.text(done) if done.matches else ""
    print(text)
    document = results.document(done, "compare")
    table = f"# Comparison\n\n{markdown(done.cells)}\n\n{notes}{referee_table.markdown(done)}"
    drawn = charts.write_if_installed(args.out / "accuracy.png", charts.accuracy, document)
    results.write(done, {"table.txt": text, "table.md": table, "results.json": document}, drawn)
    return 0


def _names(words: Sequence[str]) -> list[str]:
    """Expands `all` to every arm, including methods that need more than settings, reported as not run."""
    from vlm_pruner import methods

    if "all" not in words:
        return list(dict.fromkeys(words))
    first = ["dense", "blind", "resize", "random", "vlm-pruner-16", "vlm-pruner"]
    every = [*first, *(name for name in methods.names(every=True) if name not in first)]
    return list(dict.fromkeys([*every, *(word for word in words if word != "all")]))
