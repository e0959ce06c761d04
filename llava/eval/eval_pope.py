"""Score POPE answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.pope`.

    python -m llava.eval.eval_pope --annotation-dir pope/coco --question-file pope/llava_pope_test.jsonl \\
        --result-file pope/answers/llava-v1.5-7b.jsonl --json pope.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval.scoring_command import run
from vlm_pruner.scoring import Score
from vlm_pruner.scoring.pope import score_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-dir", required=True, help="folder with coco_pope_*.json")
    parser.add_argument("--question-file", required=True, help="llava_pope_test.jsonl")
    parser.add_argument("--result-file", required=True, help="answer file")


def score(args: argparse.Namespace) -> Score:
    return score_files(args.annotation_dir, args.question_file, args.result_file, args.allow_errors)


def main(argv: Sequence[str] | None = None) -> int:
    return run("eval_pope", __doc__, add_arguments, score, argv)


if __name__ == "__main__":
    sys.exit(main())
