"""Score MMBench answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.mmbench`.

    python -m llava.eval.eval_mmbench --annotation-file mmbench/mmbench_dev_20230712.tsv \\
        --result-file mmbench/answers/llava-v1.5-7b.jsonl --upload mmbench/answers_upload
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval import scoring_command
from vlm_pruner.scoring import Score, mmbench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="mmbench_dev_20230712.tsv")
    parser.add_argument("--result-file", required=True, help="answer file")


def score(args: argparse.Namespace) -> Score:
    return mmbench.score(args.annotation_file, args.result_file, args.allow_errors)


def main(argv: Sequence[str] | None = None) -> int:
    return scoring_command.run("eval_mmbench", __doc__, add_arguments, score, argv)


if __name__ == "__main__":
    sys.exit(main())
