"""``vlm-pruner score``: score an answer file of one of the nine benchmarks."""

from __future__ import annotations

import argparse

from vlm_pruner import scoring
from vlm_pruner.console import home
from vlm_pruner.scoring.output import add_output_arguments, report

EXAMPLES = """examples:
  vlm-pruner score pope --data playground/data/eval/pope --answers answers/llava-v1.5-7b.jsonl --json pope.json
  vlm-pruner score mme --data playground/data/eval/MME --answers answers/llava-v1.5-7b.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "benchmark", choices=list(scoring.MODULES), metavar="BENCHMARK", help=", ".join(scoring.MODULES)
    )
    parser.add_argument(
        "--data", type=home, required=True, metavar="DIR", help="the benchmark's folder, in LLaVA's layout"
    )
    parser.add_argument(
        "--answers", type=home, required=True, metavar="FILE", help="answer file, one JSON object per line"
    )
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return report(lambda: scoring.score(args.benchmark, args.data, args.answers, args.allow_errors), args.answers, args)
