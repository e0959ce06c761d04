"""Draw a figure: `python -m vlm_pruner.report.figures intro|model|ablation|speed`, as SVG and PNG into fig/.

Selections are made by the embedded model, with seed 0; figures of measurements are drawn from result files and from
nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm_pruner.console import BAD_INPUT, OneLineParser, one_line
from vlm_pruner.drawing.scene import Scene
from vlm_pruner.drawing.sheet import save_sheet
from vlm_pruner.experiments.mini import CHECKPOINT
from vlm_pruner.provenance import ROOT
from vlm_pruner.report.figures import ablation, intro, model, speed

# Name: what draws it, which result file it needs, and the command that makes that file.
FIGURES: dict[str, tuple[Callable[[argparse.Namespace, dict[str, Any]], Scene], str, str]] = {
    "intro": (intro.draw, "results/compare/results.json", "vlm-pruner compare --out results/compare"),
    "model": (model.draw, "", ""),
    "ablation": (ablation.draw, "results/ablations/ablations.json", "vlm-pruner ablate --out results/ablations"),
    "speed": (speed.draw, "results/bench/results.json", "vlm-pruner bench --out results/bench"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m vlm_pruner.report.figures", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", choices=FIGURES)
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="the result file (default: where its command writes)"
    )
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, metavar="DIR", help="of selections; default: embedded"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "fig", metavar="DIR", help="default: fig/ of the clone")
    args = parser.parse_args(argv)
    draw, default, command = FIGURES[args.name]
    try:
        results = read_results(args.results or ROOT / default, command) if default else {}
        name = "fig_intro" if args.name == "intro" else args.name
        for path in save_sheet(draw(args, results), args.out / f"{name}.svg", args.out / f"{name}.png"):
            print(path)
        return 0
    except (ValueError, OSError) as error:
        print(f"figures: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def read_results(path: Path, command: str) -> dict[str, Any]:
    """A command's result file. Raises ValueError that names the command if it is missing or another's."""
    if not path.is_file():
        raise ValueError(f"no results at {path}: run `{command}` first, or give --results FILE")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): run `{command}` again") from None
    wanted = " ".join(command.split()[:2])
    if values.get("command") != wanted:
        raise ValueError(f"{path} is of `{values.get('command')}`, the figure needs one of `{wanted}`")
    return values


if __name__ == "__main__":
    sys.exit(main())
