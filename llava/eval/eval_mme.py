"""Score MME answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.mme`.

    python -m llava.eval.eval_mme --annotation-dir MME \\
        --result-file MME/answers/llava-v1.5-7b.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval import scoring_command
from vlm_pruner.scoring import Score, mme


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-dir", required=True, help="folder with MME_Benchmark_release_version")
    parser.add_argument("--result-file", required=True, help="answer file")


def score(args: argparse.Namespace) -> Score:
    return mme.score(args.annotation_dir, args.result_file, args.allow_errors)


def main(argv: Sequence[str] | None = None) -> int:
    return scoring_command.run("eval_mme", __doc__, add_arguments, score, argv)


if __name__ == "__main__":
    sys.exit(main())
