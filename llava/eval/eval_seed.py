"""Score SEED-Bench answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.seed`.

    python -m llava.eval.eval_seed --annotation-file seed_bench/SEED-Bench.json \\
        --result-file seed_bench/answers/llava-v1.5-7b.jsonl --upload seed_bench/answers_upload
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval import scoring_command
from vlm_pruner.scoring import Score, seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", required=True, help="answer file")


def score(args: argparse.Namespace) -> Score:
    return seed.score(args.annotation_file, args.result_file, args.allow_errors)


def main(argv: Sequence[str] | None = None) -> int:
    return scoring_command.run("eval_seed", __doc__, add_arguments, score, argv)


if __name__ == "__main__":
    sys.exit(main())
