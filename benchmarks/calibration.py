"""What calibration changes: methods x budgets x {off, size, size+distance} x {positions kept, renumbered} x folding.

    python benchmarks/calibration.py --scenes 210              # answers, then the table
    python benchmarks/calibration.py --scenes 210 --report     # the table of a run that was stopped

All arms answer the same questions of a mini world, on scenes that neither training nor tuning saw, part by part: a
stopped run resumes, and its table covers the parts that all arms have answered. Differences are paired, with 95 %
intervals that resample pictures. The last line is the path of a JSON document; the tables are beside it as .md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from playground.mini.variants import WORLDS, write  # noqa: E402
from vlm_pruner.console import words  # noqa: E402
from vlm_pruner.experiments import experiment  # noqa: E402
from vlm_pruner.experiments.arms import DENSE, make_arms  # noqa: E402
from vlm_pruner.experiments.bootstrap import DIFFERENCE, SHARE, PictureBootstrap  # noqa: E402
from vlm_pruner.experiments.mini import CHECKPOINT  # noqa: E402
from vlm_pruner.experiments.questions import Question, QuestionSet, read_questions  # noqa: E402
from vlm_pruner.experiments.verdicts import Rules  # noqa: E402
from vlm_pruner.provenance import environment  # noqa: E402

SEED = 17  # of scenes that nothing else uses
KINDS = ("existence", "attribute", "count", "relation", "reading", "choice")
PARTS = 7
GROUPS = {
    "main": ["vlm-pruner", "vlm-pruner:self_weight=1", "residual", "divprune:layer=2"],
    "more": ["residual:self_weight=1", "random", "residual-question", "dart", "pyramiddrop", "sparsevlm", "fastv"],
    "tower": ["visionzip", "visionzip:contextual=0", "vispruner", "fastervlm", "prumerge", "prumerge:neighbours=0"],
}
POSITIONS = {"kept": "", "renumbered": ":renumber=true"}
CALIBRATIONS = {"off": "", "size": ":calibrate=size", "size+distance": ":calibrate=size+distance"}

Answers = Mapping[tuple[str, int], bool]  # (arm's key, question) -> right


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    folder = write(ROOT / "playground" / "data" / "worlds", args.world, args.scenes, 1, SEED)
    parts = _parts([q for q in read_questions(folder / "questions.jsonl") if q.kind in KINDS], folder, args.parts)
    out = args.out / f"{'own' if args.methods else args.group}-{folder.name}"
    if not args.report:
        settings = experiment.Settings(args.model, out, args.device, batch_size=args.batch_size,
                                       processes=args.processes, rules=Rules(100, references=(DENSE,)))  # fmt: skip
        names = [*([DENSE] if args.dense else []), *(_name(*one) for one in _combinations(args))]
        experiment.run(settings, parts, lambda facts, _: (make_arms(names, args.budgets, facts), []))
    answers = _answers(out / experiment.UNFINISHED)
    report = _report(args, parts, answers)
    path = out.with_suffix(".json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))
    print(path)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=list(GROUPS), default="main", help="of methods (%(default)s)")
    parser.add_argument("--methods", type=words, metavar="NAME,NAME", help="in place of the group's")
    parser.add_argument("--calibrations", type=words, default=list(CALIBRATIONS), help="of off, size, size+distance")
    parser.add_argument("--positions", type=words, default=list(POSITIONS), help="of kept, renumbered")
    parser.add_argument("--no-dense", dest="dense", action="store_false", help="leave out the slowest arm")
    parser.add_argument("--budgets", type=lambda text: text.split(","), default=["64", "32", "16", "8"], metavar="N,N")
    parser.add_argument("--world", choices=list(WORLDS), default="default", help="of the scenes (%(default)s)")
    parser.add_argument("--scenes", type=int, default=210, help="with a question of each kind (%(default)s)")
    parser.add_argument("--parts", type=int, default=PARTS, help="asked one after another (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true", help="asks nothing more")
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "calibration")
    args = parser.parse_args(argv)
    unknown = [word for word in args.positions if word not in POSITIONS]
    unknown += [word for word in args.calibrations if word not in CALIBRATIONS]
    if unknown:
        parser.error(f"{unknown[0]} is neither one of --positions nor of --calibrations")
    if "kept" not in args.positions or "off" not in args.calibrations:
        parser.error("--positions needs kept, and --calibrations needs off: all others are compared with these")
    return args


def _parts(questions: Sequence[Question], folder: Path, count: int) -> list[QuestionSet]:
    """Whole pictures in each part."""
    pictures = list(dict.fromkeys(question.image for question in questions))
    part = {picture: place * count // len(pictures) for place, picture in enumerate(pictures)}
    return [
        QuestionSet(f"part-{i}", folder / "questions.jsonl", [q for q in questions if part[q.image] == i])
        for i in range(count)
    ]


def _combinations(args: argparse.Namespace) -> Iterable[tuple[str, str, str]]:
    return [
        (method, place, kind)
        for method in args.methods or GROUPS[args.group]
        for place in args.positions
        for kind in args.calibrations
    ]


def _name(method: str, positions: str, calibration: str) -> str:
    return method + POSITIONS[positions] + CALIBRATIONS[calibration]


def _answers(journal: Path) -> Answers:
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line.strip()]
    return {(line["arm"], line["question_id"]): line["correct"] for line in lines if "question_id" in line}


def _report(args: argparse.Namespace, parts: Sequence[QuestionSet], answers: Answers) -> dict[str, Any]:
    keys = [f"{_name(*one)}@{budget}" for one in _combinations(args) for budget in args.budgets]
    asked = [q for part in parts if all((key, q.question_id) in answers for q in part.questions for key in keys)
             for q in part.questions]  # fmt: skip
    bootstrap = PictureBootstrap([q.image for q in asked], [q.kind for q in asked])

    def right(key: str) -> torch.Tensor:
        return torch.tensor([float(answers[key, q.question_id]) for q in asked])

    cells = []
    for method in args.methods or GROUPS[args.group]:
        for budget in args.budgets:
            default = right(f"{_name(method, 'kept', 'off')}@{budget}")
            for place in args.positions:
                off = right(f"{_name(method, place, 'off')}@{budget}")
                for kind in args.calibrations:
                    own = right(f"{_name(method, place, kind)}@{budget}")
                    cells.append({
                        "method": method, "budget": int(budget), "positions": place, "calibrate": kind,
                        "accuracy": asdict(bootstrap.over_kinds(own.tolist(), SHARE)),
                        "against_off": asdict(bootstrap.over_kinds((own - off).tolist(), DIFFERENCE)),
                        "against_kept_off": asdict(bootstrap.over_kinds((own - default).tolist(), DIFFERENCE)),
                    })  # fmt: skip
    dense = [key for key, _ in answers if key.startswith(f"{DENSE}@")]
    accuracy = asdict(bootstrap.over_kinds(right(dense[0]).tolist(), SHARE)) if dense else None
    return {
        "command": "benchmarks/calibration.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        "questions": len(asked),
        "pictures": len({q.image for q in asked}),
        "kinds": list(bootstrap.kinds),
        "dense": accuracy,
        "cells": cells,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """A row per method, positions and calibration; a column per budget. Bold: the interval excludes 0."""
    cells = report["cells"]
    budgets = list(dict.fromkeys(cell["budget"] for cell in cells))
    lines = [
        f"{report['questions']} questions, {report['pictures']} pictures"
        + (f", dense {100 * report['dense']['mean']:.1f}" if report["dense"] else ""),
        "",
        "| method | positions | calibrate | " + " | ".join(map(str, budgets)) + " |",
        "|---" * (3 + len(budgets)) + "|",
    ]
    for first in cells:
        if first["budget"] != budgets[0]:
            continue
        row = [next(c for c in cells if _place(c) == (*_place(first)[:3], budget)) for budget in budgets]
        off = first["calibrate"] == "off"
        shown = [f"{100 * c['accuracy']['mean']:.1f}" if off else _points(c["against_off"]) for c in row]
        lines.append("| " + " | ".join([*_place(first)[:3], *shown]) + " |")
    return "\n".join(lines) + "\n"


def _place(cell: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return cell["method"], cell["positions"], cell["calibrate"], cell["budget"]


def _points(interval: Mapping[str, float]) -> str:
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    shown = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{shown}**" if low > 0 or high < 0 else shown


if __name__ == "__main__":
    main()
