"""`vlm-pruner ablate`: compares the paper's ablations of VLM-Pruner, beside the paper's figures.

Slow imports and torch load when the run starts, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_pruner.commands.options import BUDGETS, add_experiment_arguments
from vlm_pruner.console import words, wrapped
from vlm_pruner.experiments.mini import check_checkpoint
from vlm_pruner.experiments.questions import QuestionSet, kinds_of, read_questions
from vlm_pruner.experiments.worlds import find_world

if TYPE_CHECKING:
    from vlm_pruner.experiments.arms import Arm, ModelFacts, NotRun
    from vlm_pruner.experiments.experiment import Experiment
    from vlm_pruner.report.ablation_table import AblationRow

PER_KIND = 4

EXAMPLES = """examples:
  vlm-pruner ablate
  vlm-pruner ablate --budget 16 --token-batch 1 --out results/ablations-16
  vlm-pruner ablate --world crowded --scenes 50

To resume a run that was stopped, give the same command again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", "--budgets", "--keep", default="64", metavar="B", help=f"{BUDGETS} (%(default)s)")
    parser.add_argument(
        "--token-batch",
        type=int,
        default=16,
        metavar="N",
        help="of the default that is varied: the paper's (%(default)s)",
    )
    parser.add_argument("--world", default="default", help="default, crowded or cluttered scenes (%(default)s)")
    parser.add_argument(
        "--scenes", type=int, default=100, metavar="N", help="pictures, some 20 questions each (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the scenes (%(default)s)")
    parser.add_argument("--kinds", type=words, metavar="NAME,NAME", help="kinds asked; default: all")
    add_experiment_arguments(parser, "results/ablations")
    parser.add_argument(
        "--questions", type=Path, default=None, metavar="FILE", help="question file, pictures in images/ beside it"
    )


def run(args: argparse.Namespace) -> int:
    """Answers, prints the table, and writes table.txt, ablations.json and answers.jsonl into --out."""
    if args.kinds == []:
        raise ValueError("--kinds is empty; name one or more, for example --kinds existence,reading, or leave it out")
    check_checkpoint(args.model)
    from vlm_pruner.cost.budgets import Budget
    from vlm_pruner.experiments import experiment
    from vlm_pruner.experiments.ablations import DEFAULT, ablation_arms
    from vlm_pruner.experiments.arms import tokens_kept
    from vlm_pruner.experiments.verdicts import Rules
    from vlm_pruner.methods import CentrifugalPruner
    from vlm_pruner.report import results

    asked = _read(args)
    settings = experiment.Settings(
        args.model, args.out, args.device, args.seed, prefixes=True, answerable=True, rules=Rules(references=(DEFAULT,))
    )
    budget = Budget.parse(args.budget)

    def arms(facts: ModelFacts, refusal: Any) -> tuple[list[Arm], list[NotRun]]:
        kept = tokens_kept(budget, partial(CentrifugalPruner, token_batch=args.token_batch), facts)
        return ablation_arms(kept, facts.visual, args.token_batch), []

    described = {
        "world": asked.name,
        "questions": len(asked.questions),
        "pictures": len({question.image for question in asked.questions}),
        "budget": int(budget.value) if budget.kind == "tokens" else str(budget),
        "token_batch": args.token_batch,
    }
    done = experiment.run(settings, [asked], arms, described)
    rows = _rows(done, args.token_batch)
    text = _text(done, rows)
    print(text)
    document = results.document(done, "ablate") | {
        "kinds": kinds_of(done.judged), "left_out": done.left_out, "rows": [row.describe() for row in rows],
    }  # fmt: skip
    results.write(done, {"table.txt": text, "ablations.json": document})
    return 0


def _read(args: argparse.Namespace) -> QuestionSet:
    path = args.questions or find_world(args.world, args.scenes, PER_KIND, args.seed)
    questions = read_questions(path)
    unknown = set(args.kinds or ()) - set(kinds_of(questions))
    if unknown:
        raise ValueError(
            f"no questions of kind {', '.join(sorted(unknown))}; there are {', '.join(kinds_of(questions))}"
        )
    asked = [question for question in questions if args.kinds is None or question.kind in args.kinds]
    return QuestionSet(args.world if args.questions is None else str(args.questions), path, asked)


def _rows(done: Experiment, token_batch: int) -> list[AblationRow]:
    from vlm_pruner.experiments.ablations import DEFAULT, by_key
    from vlm_pruner.experiments.bootstrap import Interval
    from vlm_pruner.report.ablation_table import AblationRow

    known = by_key(token_batch)
    zero = Interval(0.0, 0.0, 0.0, len(done.judged), 1.0)  # the default minus itself
    return [
        AblationRow(
            cell.arm.name,
            known.get(cell.arm.name),
            cell.accuracy,
            cell.against[DEFAULT].interval if cell.against else zero,
            cell.arm.method.config() if cell.arm.method else {},
        )
        for cell in done.cells
    ]


def _text(done: Experiment, rows: Sequence[AblationRow]) -> str:
    from vlm_pruner.report.ablation_table import ablation_table

    header: dict[str, Any] = done.header
    lines = [
        f"{header['budget']} visual tokens, default with token batch {header['token_batch']}, world {header['world']}",
        f"{len(done.judged)} questions about {header['pictures']} pictures: {', '.join(kinds_of(done.judged))}",
        f"left out, the dense model guesses: {', '.join(done.left_out) or 'none'}",
    ]
    notes = [
        "accuracy: exact match, mean over kinds, in %; minus default: paired difference in points with the 95 % "
        "interval of a bootstrap over pictures",
        "paper: LLaVA-1.5-7B at 64 tokens, difference in points of % of dense; agrees or contradicts: its direction, "
        "where our interval excludes 0; n.d.: not distinguishable",
    ]
    table = ablation_table(rows)
    return "\n".join(
        [*(wrapped(line, "  ") for line in lines), "", table, "", *(wrapped(note, "  ") for note in notes)]
    )
