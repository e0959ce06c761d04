"""``vlm-pruner table``: published tables with our scores and the difference, and comparisons over several models."""

from __future__ import annotations

import argparse
import sys

from vlm_pruner.report import paper_numbers, yardstick
from vlm_pruner.report.paper_render import FORMATS
from vlm_pruner.report.paper_results import TableError, paper_model, read_results, rows_of
from vlm_pruner.report.paper_table import model_tables

EXAMPLES = """examples:
  vlm-pruner table playground/data/eval/*/results
  vlm-pruner table playground/data/mini/*/results --format md
  vlm-pruner table my-results --model LLaVA-1.5-7B --format csv > table.csv
  vlm-pruner table --model LLaVA-NeXT-7B         (the paper's numbers alone)
  vlm-pruner table --layout qwen2.5-vl results/lmms_eval  (AngelSlim's table)
  vlm-pruner table --layout models results/first results/second  (compare, over models)

A run is named by its checkpoint's folder, and stands beside the paper's model of that name. Missing cells are "-".
Avg is the mean over the nine benchmarks of score / dense score, in %; it is missing as long as one of them is.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        nargs="*",
        metavar="RESULTS",
        help="JSON files of 'vlm-pruner score --json', or folders of them; with --layout models those of compare",
    )
    parser.add_argument(
        "--model", metavar="NAME",
        help="the model that made the results, for checkpoints whose name does not tell; one of the paper's: "
        f"{', '.join(paper_numbers.models())}; or any other, which then has no numbers of the paper",
    )  # fmt: skip
    parser.add_argument(
        "--layout", choices=("paper", "qwen2.5-vl", "models"), default="paper",
        help="the paper's tables; AngelSlim's of Qwen2.5-VL-7B, from lmms-eval's *_results.json; or one comparison "
        "over several models: mean, lowest, highest, and verdicts that hold for all (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--format", choices=list(FORMATS), default="terminal")


def run(args: argparse.Namespace) -> int:
    if args.layout == "models":
        return _models(args)
    if args.layout != "paper":
        return _yardstick(args)
    results = read_results(args.results, args.model)
    named = paper_model(args.model) if args.model else None
    if not results and (args.results or named is None):
        raise TableError(_nothing(args))
    tables = model_tables(rows_of(results), [named] if named and not results else None)
    print(FORMATS[args.format](tables))
    for result in results:
        for remark in result.remarks:
            print(f"note: {result.path}: {remark}", file=sys.stderr)
    return 0


def _models(args: argparse.Namespace) -> int:
    from vlm_pruner.report import models_table

    _refuse_model(args)
    if args.format not in models_table.FORMATS:
        raise TableError(f"--layout models has no --format {args.format}; take {' or '.join(models_table.FORMATS)}")
    print(models_table.FORMATS[args.format](models_table.read(args.results)))
    return 0


def _refuse_model(args: argparse.Namespace) -> None:
    if args.model:
        raise TableError(f"--model {args.model} names a model of the paper; leave it out with --layout {args.layout}")


def _yardstick(args: argparse.Namespace) -> int:
    _refuse_model(args)
    print(yardstick.FORMATS[args.format](yardstick.read(args.results) if args.results else []))
    return 0


def _nothing(args: argparse.Namespace) -> str:
    if args.results:
        return f"no result of 'vlm-pruner score BENCHMARK --json' in {' '.join(args.results)}"
    if args.model:
        return f"the paper has no model {args.model!r}; it has {', '.join(paper_numbers.models())}"
    return "give result files or folders of them, or --model for the paper's numbers alone"
