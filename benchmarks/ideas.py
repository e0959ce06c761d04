"""Methods and candidates at small budgets, on several worlds, with paired intervals.

    python benchmarks/ideas.py budgets --scenes 60 --budgets 192,128,64,32,16,8
    python benchmarks/ideas.py ideas   --scenes 60 --budgets 192,128,64,32,16,8
    python benchmarks/ideas.py tune3   --scenes 40 --budgets 16,8 --split tune

`suites.py` says what each suite compares. Scenes of the splits differ; what is chosen on "tune" is reported on "test".
A run that was stopped goes on where it was. The last line is the path of a JSON document; tables lie beside it as .md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vlm_pruner as vp  # noqa: E402
from benchmarks.suites import REFERENCE, SUITES  # noqa: E402
from playground.mini.variants import WORLDS, write  # noqa: E402
from vlm_pruner.experiments.arms import DENSE, Arm  # noqa: E402
from vlm_pruner.experiments.journal import Journal  # noqa: E402
from vlm_pruner.experiments.llava_answerer import LlavaAnswerer  # noqa: E402
from vlm_pruner.experiments.mini import CHECKPOINT  # noqa: E402
from vlm_pruner.experiments.questions import Question, read_questions  # noqa: E402
from vlm_pruner.experiments.shared_run import PairedOutcomes, run_shared  # noqa: E402
from vlm_pruner.provenance import environment  # noqa: E402
from vlm_pruner.report.table import render  # noqa: E402

SEEDS = {"tune": 0, "test": 1}
Make = Callable[[int], vp.methods.Pruner]


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    started = time.perf_counter()
    suite = SUITES[args.suite]
    answerer = LlavaAnswerer.load(args.model, "cpu")
    arms = make_arms(suite, args.budgets, answerer.side**2)
    results = {world: _world(answerer, world, arms, args) for world in args.worlds}
    document = {
        "command": "benchmarks/ideas.py " + " ".join(sys.argv[1:] if argv is None else argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        "seconds": time.perf_counter() - started,
        "worlds": results,
    }
    path = args.out / f"{args.suite}-{args.split}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    print(path)


def markdown(results: dict[str, Any]) -> str:
    """The same as tables for docs/ablations.md: an arm per row, a budget per column, significant differences bold."""
    parts = []
    for world, result in results.items():
        cells = {(cell["arm"], cell["tokens"]): cell for cell in result["cells"]}
        budgets = list(dict.fromkeys(tokens for _, tokens in cells))
        names = list(dict.fromkeys(name for name, _ in cells))
        title = f"{world}: {result['n']} questions, {result['pictures']} pictures, dense {_percent(result['dense'])}"
        lines = [
            title,
            "",
            "| | " + " | ".join(str(tokens) for tokens in budgets) + " |",
            "|---" * (len(budgets) + 1) + "|",
        ]
        for name in names:
            row = [cells[name, tokens] for tokens in budgets]
            plain = name == REFERENCE
            shown = [_percent(cell["accuracy"]) if plain else _points(cell[f"against_{REFERENCE}"]) for cell in row]
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _percent(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _points(interval: dict[str, float]) -> str:
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    shown = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{shown}**" if low > 0 or high < 0 else shown


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=list(SUITES))
    parser.add_argument("--worlds", type=lambda text: text.split(","), default=list(WORLDS), metavar="NAME,NAME")
    parser.add_argument(
        "--budgets", type=lambda text: [int(word) for word in text.split(",")], default=[64, 32, 16, 8], metavar="N,N"
    )
    parser.add_argument("--split", choices=list(SEEDS), default="test")
    parser.add_argument("--scenes", type=int, default=100, help="per world (%(default)s)")
    parser.add_argument(
        "--kinds", type=lambda text: text.split(","), default=["existence", "attribute", "count", "reading"]
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "ideas")
    return parser.parse_args(argv)


def make_arms(suite: dict[str, Make], budgets: Sequence[int], tokens: int) -> list[Arm]:
    """Dense first, then budget by budget the suite's methods. A name is an arm's, whatever its settings are called."""
    arms = [Arm(DENSE, tokens)]
    return arms + [Arm(name, budget, make(budget)) for budget in budgets for name, make in suite.items()]


def _world(answerer: LlavaAnswerer, world: str, arms: list[Arm], args: argparse.Namespace) -> dict[str, Any]:
    folder = write(ROOT / "playground" / "data" / "worlds", world, args.scenes, 4, SEEDS[args.split])
    questions = [q for q in read_questions(folder / "questions.jsonl") if q.kind in args.kinds]
    header = {"world": folder.name, "kinds": args.kinds, "weights": _stamp(args.model)}
    args.out.mkdir(parents=True, exist_ok=True)
    journal = args.out / f"{folder.name}-{args.suite}.jsonl"
    with Journal(journal, header) as lines:  # arms are not in the header: more of them may be added to a journal
        outcomes = run_shared(answerer, arms, questions, lines)
    return report(world, PairedOutcomes(questions, outcomes), arms, questions)


def _stamp(model: Path) -> list[int]:
    return [file.stat().st_size for file in sorted(model.glob("*.safetensors"))] + [
        int(file.stat().st_mtime) for file in sorted(model.glob("*.safetensors"))
    ]


def report(world: str, paired: PairedOutcomes, arms: list[Arm], questions: Sequence[Question]) -> dict[str, Any]:
    """Prints a world's table; accuracies in %, differences from exact greedy at the same budget in points."""
    dense = paired.accuracy(arms[0])
    pictures = len({q.image for q in paired.questions})
    print(f"\n{world}: {len(paired.questions)} questions, {pictures} pictures, kinds {', '.join(paired.kinds)}"
          f"; dense {100 * dense.mean:.1f} [{100 * dense.low:.1f}, {100 * dense.high:.1f}]")  # fmt: skip
    rows, cells = [], []
    for arm in arms[1:]:
        accuracy = paired.accuracy(arm)
        reference = next(other for other in arms if other.name == REFERENCE and other.tokens == arm.tokens)
        difference = paired.difference(arm, reference)
        kinds = {kind: interval.mean for kind, interval in paired.by_kind(arm).items()}
        cells.append({"arm": arm.name, "tokens": arm.tokens, "accuracy": accuracy.__dict__, "kinds": kinds,
                      "against_" + REFERENCE: difference.__dict__,
                      "against_dense": paired.difference(arm, arms[0]).__dict__})  # fmt: skip
        mark = "" if not difference.excludes_zero else ("+" if difference.mean > 0 else "-")
        shown = f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
        rows.append([arm.name, f"{arm.tokens}", f"{100 * accuracy.mean:.1f}", shown, mark,
                     *(f"{100 * value:.0f}" for value in kinds.values())])  # fmt: skip
    print(render(["arm", "tokens", "accuracy", f"minus {REFERENCE}", "", *(kind[:5] for kind in paired.kinds)], rows))
    return {"n": len(paired.questions), "pictures": pictures, "kinds": paired.kinds, "left_out": paired.left_out,
            "dense": dense.__dict__, "cells": cells}  # fmt: skip


if __name__ == "__main__":
    main()
