"""Make ``okvqa_val.jsonl`` from OK-VQA's own question file.

    python -m llava.eval.convert_okvqa_questions --questions okvqa/OpenEnded_mscoco_val2014_questions.json \\
        --out okvqa/okvqa_val.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_pruner.console import BAD_INPUT, OneLineParser, one_line
from vlm_pruner.scoring.records import field, read_json


def convert(record: object, where: str) -> dict[str, Any]:
    """{"image_id", "question", "question_id"} with the picture's path below the folder ``okvqa``."""
    image = f"val2014/COCO_val2014_{field(record, 'image_id', where, int):012d}.jpg"
    question, question_id = field(record, "question", where, str), field(record, "question_id", where, (int, str))
    return {"image": image, "question": question, "question_id": question_id}


def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m llava.eval.convert_okvqa_questions", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--questions", type=Path, required=True, help="OpenEnded_mscoco_val2014_questions.json")
    parser.add_argument("--out", type=Path, required=True, help="okvqa_val.jsonl")
    args = parser.parse_args(argv)
    try:
        records = field(read_json(args.questions, dict), "questions", args.questions, list)
        lines = [
            convert(record, f"{args.questions}, question {number}") for number, record in enumerate(records, start=1)
        ]
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"convert_okvqa_questions: {one_line(error)}; give OK-VQA's own file", file=sys.stderr)
        return BAD_INPUT
    print(f"{args.out}: {len(records)} questions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
