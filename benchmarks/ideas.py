"""Methods and candidates at small budgets, on several worlds, with paired intervals.

    python benchmarks/ideas.py budgets --scenes 60 --budgets 192,128,64,32,16,8
    python benchmarks/ideas.py ideas   --scenes 60 --budgets 192,128,64,32,16,8
    python benchmarks/ideas.py tune3   --scenes 40 --budgets 16,8 --split tune

`suites.py` says what each suite compares. Scenes of the splits differ; what is chosen on "tune" is reported on "test".
A stopped run resumes. The last line is the path of a JSON document; tables are beside it as .md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vlm_pruner as vp  # noqa: E402
from benchmarks.suites import REFERENCE, SUITES  # noqa: E402
from playground.mini.questions import KINDS  # noqa: E402
from playground.mini.variants import WORLDS, write  # noqa: E402
from vlm_pruner.console import DENSE  # noqa: E402
from vlm_pruner.experiments import experiment  # noqa: E402
from vlm_pruner.experiments.arms import Arm  # noqa: E402
from vlm_pruner.experiments.bootstrap import Interval  # noqa: E402
from vlm_pruner.experiments.mini import CHECKPOINT  # noqa: E402
from vlm_pruner.experiments.questions import QuestionSet, read_questions  # noqa: E402
from vlm_pruner.experiments.verdicts import Rules  # noqa: E402
from vlm_pruner.provenance import environment  # noqa: E402
from vlm_pruner.report.table import render  # noqa: E402

SEEDS = {"tune": 0, "test": 1}
Make = Callable[[int], vp.methods.Pruner]


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    started = time.perf_counter()
    suite = SUITES[args.suite]
    results = {world: _world(world, suite, args) for world in args.worlds}
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
        "--kinds", type=lambda text: text.split(","), default=list(KINDS), metavar="NAME,NAME", help="(%(default)s)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "ideas")
    return parser.parse_args(argv)


def make_arms(suite: dict[str, Make], budgets: Sequence[int], tokens: int) -> list[Arm]:
    """Dense first, then budget by budget the suite's methods. A name is an arm's, whatever its settings are called."""
    arms = [Arm(DENSE, tokens)]
    return arms + [Arm(name, budget, make(budget)) for budget in budgets for name, make in suite.items()]


def _world(world: str, suite: dict[str, Make], args: argparse.Namespace) -> dict[str, Any]:
    folder = write(ROOT / "playground" / "data" / "worlds", world, args.scenes, 4, SEEDS[args.split])
    path = folder / "questions.jsonl"
    asked = QuestionSet(folder.name, path, [q for q in read_questions(path) if q.kind in args.kinds])
    rules = Rules(references=(REFERENCE, DENSE))
    out = args.out / f"{folder.name}-{args.suite}"
    settings = experiment.Settings(args.model, out, args.device, prefixes=True, answerable=True, rules=rules)
    return report(
        world, experiment.run(settings, [asked], lambda facts, _: (make_arms(suite, args.budgets, facts.visual), []))
    )


def report(world: str, done: experiment.Experiment) -> dict[str, Any]:
    """Prints a world's table; accuracies in %, differences from exact greedy at the same budget in points."""
    dense, *pruned = done.cells
    pictures, kinds = len({q.image for q in done.judged}), list(dense.kinds)
    shown_dense = _percent(asdict(dense.accuracy))
    print(
        f"\n{world}: {len(done.judged)} questions, {pictures} pictures, kinds {', '.join(kinds)}; dense {shown_dense}"
    )
    rows, cells = [], []
    for cell in pruned:
        against = {name: difference.interval for name, difference in cell.against.items()}
        difference = against.get(REFERENCE, Interval(0.0, 0.0, 0.0, len(done.judged), 1.0))  # the reference itself
        means = {kind: interval.mean for kind, interval in cell.kinds.items()}
        cells.append({"arm": cell.arm.name, "tokens": cell.arm.tokens, "accuracy": asdict(cell.accuracy),
                      "kinds": means, "against_" + REFERENCE: asdict(difference),
                      "against_dense": asdict(against[DENSE])})  # fmt: skip
        mark = "" if not difference.excludes_zero else ("+" if difference.mean > 0 else "-")
        rows.append([cell.arm.name, f"{cell.arm.tokens}", f"{100 * cell.accuracy.mean:.1f}",
                     _points(asdict(difference)).strip("*"), mark,
                     *(f"{100 * mean:.0f}" for mean in means.values())])  # fmt: skip
    print(render(["arm", "tokens", "accuracy", f"minus {REFERENCE}", "", *(kind[:5] for kind in kinds)], rows))
    return {"n": len(done.judged), "pictures": pictures, "kinds": kinds, "left_out": done.left_out,
            "dense": asdict(dense.accuracy), "cells": cells}  # fmt: skip


if __name__ == "__main__":
    main()
