"""Score TextVQA answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.textvqa`.

    python -m llava.eval.eval_textvqa --annotation-file textvqa/TextVQA_0.5.1_val.json \\
        --result-file textvqa/answers/llava-v1.5-7b.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval import scoring_command
from vlm_pruner.scoring import Score, textvqa


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--result-file", required=True, help="answer file")


def score(args: argparse.Namespace) -> Score:
    return textvqa.score(args.annotation_file, args.result_file, args.allow_errors)


def main(argv: Sequence[str] | None = None) -> int:
    return scoring_command.run("eval_textvqa", __doc__, add_arguments, score, argv)


if __name__ == "__main__":
    sys.exit(main())
