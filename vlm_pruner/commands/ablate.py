"""`vlm-pruner ablate`: the paper's ablations of VLM-Pruner on the embedded model and world, beside the paper's figures.

Everything that is slow or needs torch is imported when the run starts, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_pruner.experiments.mini import CHECKPOINT, check_checkpoint
from vlm_pruner.experiments.questions import Question, kinds_of, read_questions
from vlm_pruner.experiments.worlds import find_world
from vlm_pruner.provenance import environment, weights_sha256

if TYPE_CHECKING:
    from vlm_pruner.experiments.arms import Arm
    from vlm_pruner.experiments.shared_run import Outcomes, PairedOutcomes
    from vlm_pruner.report.ablation_table import AblationRow

PER_KIND = 4

EXAMPLES = """examples:
  vlm-pruner ablate
  vlm-pruner ablate --budget 16 --token-batch 1 --out results/ablations-16
  vlm-pruner ablate --world crowded --scenes 50

A run that was stopped goes on where it was when the same command is given again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", type=int, default=64, metavar="N", help="visual tokens kept (%(default)s)")
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
    parser.add_argument(
        "--kinds",
        type=lambda text: text.split(","),
        default=None,
        metavar="NAME,NAME",
        help="kinds asked; default: all",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/ablations"), metavar="DIR", help="results (%(default)s)"
    )
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, metavar="DIR", help="LLaVA checkpoint; default: the embedded"
    )
    parser.add_argument(
        "--questions", type=Path, default=None, metavar="FILE", help="question file, pictures in images/ beside it"
    )


def run(args: argparse.Namespace) -> int:
    """Answer, print the table; write table.txt, ablations.json and the journal answers.jsonl into --out."""
    started = time.perf_counter()
    check_checkpoint(args.model)
    questions = _read(args)
    from vlm_pruner.experiments.ablations import VARIATIONS, ablation_arms, fits
    from vlm_pruner.experiments.llava_answerer import LlavaAnswerer, check_device
    from vlm_pruner.experiments.shared_run import PairedOutcomes

    check_device(args.device)
    answerer = LlavaAnswerer.load(args.model, args.device)
    variations = [variation for variation in VARIATIONS if fits(variation, args.budget)]
    arms = ablation_arms(args.budget, answerer.side**2, args.token_batch, variations)
    header = _config(args, arms, questions)
    paired = PairedOutcomes(questions, _answer(answerer, arms, questions, args.out / "answers.jsonl", header))
    _report(paired, arms, header, args.out, started)
    return 0


def _read(args: argparse.Namespace) -> list[Question]:
    path = args.questions or find_world(args.world, args.scenes, PER_KIND, args.seed)
    questions = read_questions(path)
    unknown = set(args.kinds or ()) - set(kinds_of(questions))
    if unknown:
        raise ValueError(
            f"no questions of kind {', '.join(sorted(unknown))}; there are {', '.join(kinds_of(questions))}"
        )
    return [question for question in questions if args.kinds is None or question.kind in args.kinds]


def _config(args: argparse.Namespace, arms: Sequence[Arm], questions: Sequence[Question]) -> dict[str, Any]:
    """All that decides the answers; a journal with another description is not continued."""
    return {
        "model": args.model.name,
        "weights_sha256": weights_sha256(args.model),
        "world": args.world if args.questions is None else str(args.questions),
        "seed": args.seed,
        "questions": len(questions),
        "pictures": len({question.image for question in questions}),
        "budget": args.budget,
        "token_batch": args.token_batch,
        "device": args.device,
        "arms": [{"key": arm.key, "settings": arm.method.config() if arm.method else None} for arm in arms],
    }


def _answer(
    answerer: Any, arms: Sequence[Arm], questions: Sequence[Question], path: Path, header: dict[str, Any]
) -> Outcomes:
    from tqdm import tqdm

    from vlm_pruner.experiments.journal import Journal
    from vlm_pruner.experiments.shared_run import run_shared

    with Journal(path, header) as journal:
        if journal.records:
            print(f"going on after {len(journal.records)} records of an earlier run", file=sys.stderr)
        with tqdm(total=header["pictures"], unit="picture", mininterval=0.5, file=sys.stderr) as bar:
            return run_shared(answerer, arms, questions, journal, bar.update)


def _report(paired: PairedOutcomes, arms: Sequence[Arm], header: dict[str, Any], out: Path, started: float) -> None:
    rows = _rows(paired, arms, header["token_batch"])
    text = _text(paired, rows, header)
    print(text)
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    results = {
        "command": "vlm-pruner ablate",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": header,
        "environment": environment(),
        "n": len(paired.questions),
        "kinds": paired.kinds,
        "left_out": paired.left_out,
        "wall_seconds": time.perf_counter() - started,
        "rows": [row.describe() for row in rows],
    }
    (out / "ablations.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{time.perf_counter() - started:.0f} s in all; written: {out / 'ablations.json'}")


def _rows(paired: PairedOutcomes, arms: Sequence[Arm], token_batch: int) -> list[AblationRow]:
    from vlm_pruner.experiments.ablations import by_key
    from vlm_pruner.report.ablation_table import AblationRow

    known, default = by_key(token_batch), arms[1]
    return [
        AblationRow(
            arm.name,
            known.get(arm.name),
            paired.accuracy(arm),
            paired.difference(arm, default),
            arm.method.config() if arm.method else {},
        )
        for arm in arms
    ]


def _text(paired: PairedOutcomes, rows: Sequence[AblationRow], header: dict[str, Any]) -> str:
    from vlm_pruner.report.ablation_table import ablation_table

    lines = [
        f"{header['budget']} visual tokens, default with token batch {header['token_batch']}, world {header['world']}",
        f"{len(paired.questions)} questions about {header['pictures']} pictures: {', '.join(paired.kinds)}",
        f"left out, the dense model guesses: {', '.join(paired.left_out) or 'none'}",
        "",
        ablation_table(rows),
        "",
        "accuracy: exact match, mean over kinds, in %; minus default: paired difference in",
        "  points with the 95 % interval of a bootstrap over pictures",
        "paper: LLaVA-1.5-7B at 64 tokens, difference in points of % of dense; agrees or",
        "  contradicts: its direction, where our interval excludes 0; n.d.: not distinguishable",
    ]
    return "\n".join(lines)
