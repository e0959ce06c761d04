"""Score OK-VQA answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.okvqa`.

    python -m llava.eval.eval_okvqa --annotation-file okvqa/mscoco_val2014_annotations.json \\
        --result-file okvqa/answers/llava-v1.5-7b.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval import scoring_command
from vlm_pruner.scoring import Score, okvqa


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--annotation-file", default="playground/data/eval/okvqa/mscoco_val2014_annotations.json",
        help="mscoco_val2014_annotations.json (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--result-file", required=True, help="answer file")
    parser.add_argument("--dataset", default="okvqa_val", choices=["okvqa_val"], help="the only one there is")


def score(args: argparse.Namespace) -> Score:
    return okvqa.score(args.annotation_file, args.result_file, args.allow_errors)


def main(argv: Sequence[str] | None = None) -> int:
    return scoring_command.run("eval_okvqa", __doc__, add_arguments, score, argv)


if __name__ == "__main__":
    sys.exit(main())
