"""Score ScienceQA answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.scienceqa`.

    python -m llava.eval.eval_science_qa --base-dir scienceqa \\
        --result-file scienceqa/answers/llava-v1.5-7b.jsonl --json scienceqa.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval import scoring_command
from vlm_pruner.scoring import Score, scienceqa


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-dir", required=True, help="folder with problems.json and pid_splits.json")
    parser.add_argument("--result-file", required=True, help="answer file")
    parser.add_argument("--split", default="test")


def score(args: argparse.Namespace) -> Score:
    return scienceqa.score(args.base_dir, args.result_file, args.allow_errors, args.split)


def main(argv: Sequence[str] | None = None) -> int:
    return scoring_command.run("eval_science_qa", __doc__, add_arguments, score, argv)


if __name__ == "__main__":
    sys.exit(main())
