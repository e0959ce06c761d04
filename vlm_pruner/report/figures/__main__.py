"""Draw a figure of fig/ as SVG and PNG: `python -m vlm_pruner.report.figures intro|model|accuracy|ablation|speed`.

The embedded model, with seed 0, selects the tokens of `intro` and `model`. Charts are drawn from result files alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_pruner.console import BAD_INPUT, OneLineParser, one_line
from vlm_pruner.drawing.chart import save_chart
from vlm_pruner.drawing.sheet import save_sheet
from vlm_pruner.experiments.mini import CHECKPOINT
from vlm_pruner.provenance import ROOT
from vlm_pruner.report import charts
from vlm_pruner.report.figures import intro, model
from vlm_pruner.report.html_data import read_document

SELECTIONS = {"intro": intro.draw, "model": model.draw}
# Name: what draws it, its result file, and the command that makes that file.
CHARTS = {
    "accuracy": (charts.accuracy, "results/compare/results.json", "vlm-pruner compare --out results/compare"),
    "ablation": (charts.ablation, "results/ablations/ablations.json", "vlm-pruner ablate --out results/ablations"),
    "speed": (charts.speed, "results/bench/results.json", "vlm-pruner bench --out results/bench"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m vlm_pruner.report.figures", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", choices=[*SELECTIONS, *CHARTS])
    parser.add_argument("--results", type=Path, metavar="FILE", help="of a chart (default: where its command writes)")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, metavar="DIR", help="that selects (embedded)")
    parser.add_argument("--out", type=Path, default=ROOT / "fig", metavar="DIR", help="default: fig/ of the clone")
    args = parser.parse_args(argv)
    try:
        print(*_draw(args), sep="\n")
        return 0
    except (ValueError, OSError) as error:
        print(f"figures: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def _draw(args: argparse.Namespace) -> list[Path]:
    name = "fig_intro" if args.name == "intro" else args.name
    paths = args.out / f"{name}.svg", args.out / f"{name}.png"
    if args.name in SELECTIONS:
        return save_sheet(SELECTIONS[args.name](args.model), *paths)
    draw, default, command = CHARTS[args.name]
    return save_chart(draw(read_results(args.results or ROOT / default, command)), *paths)


def read_results(path: Path, command: str) -> dict[str, Any]:
    """A command's result file. Raises ValueError that names the command if it is missing or another's."""
    if not path.is_file():
        raise ValueError(f"no results at {path}: run `{command}` first, or give --results FILE")
    values, _ = read_document(path)
    wanted = " ".join(command.split()[:2])
    if values.get("command") != wanted:
        raise ValueError(f"{path} is of `{values.get('command')}`, the figure needs one of `{wanted}`")
    return values


if __name__ == "__main__":
    sys.exit(main())
