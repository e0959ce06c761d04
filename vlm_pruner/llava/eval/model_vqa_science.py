"""Answers of a LLaVA model to ScienceQA.

    python -m llava.eval.model_vqa_science --model-path checkpoints/llava-v1.5-7b \\
        --question-file scienceqa/llava_test_CQM-A.json --image-folder scienceqa/images/test \\
        --answers-file scienceqa/answers/llava-v1.5-7b.jsonl --single-pred-prompt --temperature 0 --conv-mode vicuna_v1

The question file is a list of conversations: {"id", "image" (not in all), "conversations": [{"value": question}, ...]}.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from vlm_pruner.llava.constants import DEFAULT_IMAGE_TOKEN
from vlm_pruner.llava.eval import evaluate
from vlm_pruner.llava.eval.errors import ItemError, UsageError
from vlm_pruner.llava.eval.prompts import LETTER_ANSWER
from vlm_pruner.llava.eval.questions import ID, BrokenQuestion, Item, Question, read_list, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("this benchmark")
    group.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    group.add_argument("--image-only", action="store_true", help="leave questions without a picture out")
    parser.set_defaults(max_new_tokens=1024)


def read(args: argparse.Namespace) -> list[Item]:
    items = read_list(args.question_file, partial(_question, args.single_pred_prompt))
    chosen = [item for item in items if isinstance(item, BrokenQuestion) or item.images or not args.image_only]
    if not chosen:
        raise UsageError(f"--image-only: no question of {args.question_file} has a picture")
    return chosen


def _question(letter_only: bool, index: int, record: dict[str, Any]) -> Question:
    turns = require(record, "conversations", list)
    if not turns or not isinstance(turns[0], dict):
        raise ItemError("'conversations' holds no turn")
    asked = require(turns[0], "value", str).replace(DEFAULT_IMAGE_TOKEN, "").strip()
    if letter_only:
        asked = f"{asked}\n{LETTER_ANSWER}"
    images = (require(record, "image", str),) if record.get("image") is not None else ()
    prompt = f"{DEFAULT_IMAGE_TOKEN}\n{asked}" if images else asked  # the scorer looks for the mark
    return Question(index, require(record, "id", ID), asked, prompt, images)


TASK = evaluate.Task(
    "model_vqa_science", read, add_arguments, description=__doc__, settings=("single_pred_prompt", "image_only")
)

main = partial(evaluate.main, TASK)

if __name__ == "__main__":
    sys.exit(main())
