"""Score OCRBench answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.ocrbench`.

    python -m llava.eval.eval_ocrbench --annotation-file OCRBench/OCRBench/OCRBench.json \\
        --result-file OCRBench/answers/llava-v1.5-7b.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval import scoring_command
from vlm_pruner.scoring import Score, ocrbench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", default=".", help="OCRBench.json; a result file that is a list needs none")
    parser.add_argument("--result-file", required=True, help="answer file, or the released loader's list")


def score(args: argparse.Namespace) -> Score:
    return ocrbench.score(args.annotation_file, args.result_file, args.allow_errors)


def main(argv: Sequence[str] | None = None) -> int:
    return scoring_command.run("eval_ocrbench", __doc__, add_arguments, score, argv)


if __name__ == "__main__":
    sys.exit(main())
