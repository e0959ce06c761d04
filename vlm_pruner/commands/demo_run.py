"""`vlm-pruner demo-run`: the embedded model answers questions about pictures, dense and pruned.

Everything that is slow or needs torch is imported when the run starts, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vlm_pruner.console import shown, words
from vlm_pruner.experiments.mini import CHECKPOINT, check_checkpoint, find_questions
from vlm_pruner.experiments.questions import Question, balanced_sample, kinds_of, read_questions
from vlm_pruner.provenance import weights_sha256

if TYPE_CHECKING:
    from vlm_pruner.experiments.arms import Arm
    from vlm_pruner.experiments.llava_answerer import LlavaAnswerer
    from vlm_pruner.experiments.summary import ArmSummary


EXAMPLES = """examples:
  vlm-pruner demo-run
  vlm-pruner demo-run --questions 600 --budgets 64,32,16
  vlm-pruner demo-run --methods dense,vlm-pruner --out results/mine

A run that was stopped goes on where it was when the same command is given again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--questions", type=int, default=300, metavar="N", help="number of questions (%(default)s)")
    parser.add_argument(
        "--budgets", "--budget", dest="budgets", type=words, default=["192", "128", "64"], metavar="B,B",
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
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/demo"), metavar="DIR", help="results (%(default)s)")
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, metavar="DIR", help="checkpoint; default: the embedded"
    )
    parser.add_argument(
        "--data", type=Path, default=None, metavar="DIR", help="holds mini/questions.jsonl; default: made when missing"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate all arms, print the table, write it, results.json, answers.jsonl and kept.png into --out."""
    started = time.perf_counter()
    _check_numbers(args)
    check_checkpoint(args.model)
    everything = read_questions(find_questions(args.data))
    questions = balanced_sample(everything, args.questions, args.seed)
    from vlm_pruner.experiments.arms import make_arms
    from vlm_pruner.experiments.llava_answerer import LlavaAnswerer, check_device

    check_device(args.device)
    print(f"loading {shown(args.model)}", file=sys.stderr, flush=True)
    answerer = LlavaAnswerer.load(args.model, args.device)
    arms = make_arms(args.methods, args.budgets, answerer.facts(questions), args.seed)
    header = _describe_config(args, arms, questions) | {"kinds": kinds_of(everything)}
    records, journal_file = _answer(answerer, arms, questions, args, header)
    report(answerer, arms, questions, records, header, args.out, started)
    journal_file.replace(args.out / "answers.jsonl")  # complete: the next run starts anew
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("questions", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")


def _describe_config(args: argparse.Namespace, arms: Sequence[Arm], questions: Sequence[Question]) -> dict[str, Any]:
    """All that decides the answers; a journal with another description is not continued."""
    asked = [[question.question_id, question.text, question.answer] for question in questions]
    return {
        "model": shown(args.model),
        "weights_sha256": weights_sha256(args.model),
        "questions": len(questions),
        "questions_sha256": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "seed": args.seed,
        "batch_size": args.batch_size,
        "device": args.device,
        "arms": [arm.describe() for arm in arms],
    }


def _answer(
    answerer: LlavaAnswerer,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    args: argparse.Namespace,
    header: dict[str, Any],
) -> tuple[list[dict[str, Any]], Path]:
    from vlm_pruner.experiments import interleave
    from vlm_pruner.experiments.journal import Journal, say_how_it_starts

    batches = answerer.batches(questions, args.batch_size)
    with Journal(args.out / "answers.unfinished.jsonl", header) as journal:
        say_how_it_starts(journal)
        with tqdm(total=len(arms) * len(questions), unit=" answers", ncols=80, mininterval=0.5, file=sys.stderr) as bar:
            interleave.run(answerer, arms, batches, journal, bar.update)
    return journal.records, journal.path


def report(
    answerer: LlavaAnswerer,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    records: list[dict[str, Any]],
    header: dict[str, Any],
    out: Path,
    started: float,
) -> None:
    """Print the table, write table.txt, results.json and kept.png."""
    from vlm_pruner.drawing.sheet import save_sheet
    from vlm_pruner.experiments.summary import summarise
    from vlm_pruner.provenance import environment
    from vlm_pruner.report.examples import draw_examples

    summaries = summarise(arms, records, header["kinds"])
    vision = answerer.vision_seconds / answerer.pictures if answerer.pictures else None  # None: all was done before
    text = _text(summaries, questions, header, vision)
    print(text)
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    save_sheet(draw_examples(answerer, arms, questions, records), out / "kept.png")
    results = {
        "command": "vlm-pruner demo-run",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": header,
        "environment": environment(),
        "n": len(questions),
        "vision_seconds_per_picture": vision,
        "wall_seconds": time.perf_counter() - started,
        "arms": [summary.describe() for summary in summaries],
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    names = [out / name for name in ("table.txt", "results.json", "answers.jsonl", "kept.png")]
    print(
        f"\n{time.perf_counter() - started:.0f} s in all; written:", *(f"  {shown(name)}" for name in names), sep="\n"
    )


def _text(
    summaries: Sequence[ArmSummary], questions: Sequence[Question], header: dict[str, Any], vision: float | None
) -> str:
    from vlm_pruner.report.comparison import comparison_table, difference_table

    pictures = len({question.image for question in questions})
    dense = next((s for s in summaries if s.arm.method is None), None)
    lines = [
        f"model {header['model']}",
        f"{len(questions)} questions of {len(kinds_of(questions))} kinds about {pictures} pictures",
        "",
        comparison_table(summaries),
        "",
        difference_table(summaries),
        "",
        "accuracy: exact match, mean over kinds, in % ± standard error",
        "kept: visual tokens per picture behind layer 2 of the decoder",
        "time: generation per question"
        + (f", relative to dense ({1000 * dense.seconds.mean:.0f} ms)" if dense else "")
        + f" in batches of up to {header['batch_size']};",
        "  the vision tower"
        + ("" if vision is None else f" ({1000 * vision:.0f} ms per picture)")
        + " is the same for all and not in it",
        "KV MB: keys and values per question at the end of the answer",
        "B=16: the token batch of the paper's tables; our default is 1, exact greedy",
    ]
    return "\n".join(lines)
