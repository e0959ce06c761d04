"""Score GQA answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.gqa`.

    python -m llava.eval.eval_gqa --questions gqa/data/testdev_balanced_questions.json \\
        --result-file gqa/answers/llava-v1.5-7b.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval import scoring_command
from vlm_pruner.scoring import Score, gqa


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--questions", required=True, help="testdev_balanced_questions.json")
    parser.add_argument("--result-file", required=True, help="answer file")


def score(args: argparse.Namespace) -> Score:
    return gqa.score(args.questions, args.result_file, args.allow_errors)


def main(argv: Sequence[str] | None = None) -> int:
    return scoring_command.run("eval_gqa", __doc__, add_arguments, score, argv)


if __name__ == "__main__":
    sys.exit(main())
