"""`vlm-pruner demo-run`: compares four arms on the embedded model, timed, and draws examples.

Slow imports and torch load when the run starts, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_pruner.commands.options import add_experiment_arguments
from vlm_pruner.console import at_least, words, wrapped
from vlm_pruner.experiments.mini import check_checkpoint, find_questions
from vlm_pruner.experiments.questions import QuestionSet, balanced_sample, kinds_of, read_questions

if TYPE_CHECKING:
    from vlm_pruner.experiments.experiment import Experiment

EXAMPLES = """examples:
  vlm-pruner demo-run
  vlm-pruner demo-run --questions 600 --budgets 64,32,16
  vlm-pruner demo-run --methods dense,vlm-pruner --out results/mine

To resume a run that was stopped, give the same command again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--questions", type=int, default=300, metavar="N", help="number of questions (%(default)s)")
    parser.add_argument(
        "--budgets", "--budget", "--keep", dest="budgets", type=words, default=["192", "128", "64"], metavar="B,B",
        help="64 (tokens kept), ratio:0.889, avg:250 (mean over layers), flops:0.5 (share of dense) (192,128,64)",
    )  # fmt: skip
    parser.add_argument(
        "--methods",
        type=words,
        default=["dense", "random", "vlm-pruner-16", "vlm-pruner"],
        metavar="NAME,NAME",
        help="dense,random,vlm-pruner-16,vlm-pruner; -16 is the token batch of the paper's tables",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the questions and random's tokens (%(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="prompts generated at once (%(default)s)"
    )
    add_experiment_arguments(parser, "results/demo")
    parser.add_argument(
        "--data", type=Path, default=None, metavar="DIR", help="holds mini/questions.jsonl; default: made when missing"
    )


def run(args: argparse.Namespace) -> int:
    """Answers, prints the table, and writes it, results.json, answers.jsonl and kept.png into --out."""
    check_checkpoint(args.model)
    from vlm_pruner.drawing.sheet import save_sheet
    from vlm_pruner.experiments import experiment
    from vlm_pruner.experiments.arms import DENSE, possible_arms
    from vlm_pruner.experiments.verdicts import Rules
    from vlm_pruner.report import results
    from vlm_pruner.report.examples import draw_examples

    at_least(1, questions=args.questions)
    rules = Rules(seed=args.seed, references=(DENSE,))
    settings = experiment.Settings(
        args.model, args.out, args.device, args.seed, args.batch_size, timed=True, rules=rules
    )
    path = find_questions(args.data)
    everything = read_questions(path)
    kinds = kinds_of(everything)
    asked = sorted(balanced_sample(everything, args.questions, args.seed), key=lambda q: kinds.index(q.kind))
    arms = partial(possible_arms, args.methods, args.budgets)
    done = experiment.run(
        settings, [QuestionSet("mini", path, asked)], lambda facts, refusal: arms(facts, args.seed, refusal)
    )
    seconds = done.answerer.vision_seconds / done.answerer.pictures if done.answerer.pictures else None
    text = results.text(done, _how_timed(done, seconds))
    print(text)
    drawn = save_sheet(draw_examples(done.answerer, done.arms, asked, done.journal.records), args.out / "kept.png")
    document = results.document(done, "demo-run") | {"vision_seconds_per_picture": seconds}
    results.write(done, {"table.txt": text, "results.json": document}, drawn)
    return 0


def _how_timed(done: Experiment, vision_seconds: float | None) -> list[str]:
    """vision_seconds: per picture; None if an earlier run gave all answers."""
    dense = next((done.measured[arm.key] for arm in done.arms if arm.is_dense), None)
    relative = "" if dense is None else f", relative to dense ({1000 * dense.seconds:.0f} ms)"
    vision = "" if vision_seconds is None else f" ({1000 * vision_seconds:.0f} ms per picture)"
    return [
        wrapped(
            f"time: generation per question{relative} in batches of up to {done.settings.batch_size}; "
            f"the vision tower{vision} is the same for all and not in it",
            "  ",
        ),
        "KV MB: keys and values per question at the end of the answer",
        "B=16: the token batch of the paper's tables; our default is 1, exact greedy",
    ]
