"""Answers of LLaVA-Video or LLaVA-OneVision to questions about videos, with options or without.

    python -m llava.eval.model_vqa_video --model-path checkpoints/LLaVA-Video-7B-Qwen2 --conv-mode qwen_1_5 \\
        --question-file questions.jsonl --video-folder videos --answers-file answers.jsonl \\
        --max-frames-num 64 --force-sample --add-time-instruction

A question line is {"question_id", "video", "question", "options", "answer"}; the last two may be left out. "video" is
a file below the video folder, or a folder of frames there. With options the prompt lists them as A., B., .. and asks
for the letter; the answer line repeats "options" and "answer", and has the reply in "text".
"""

from __future__ import annotations

import argparse
import string
import sys
from functools import partial
from typing import Any

from vlm_pruner.console import home
from vlm_pruner.llava.eval import evaluate
from vlm_pruner.llava.eval.errors import ItemError
from vlm_pruner.llava.eval.films import VIDEO_FLAGS, add_video_arguments
from vlm_pruner.llava.eval.prompts import LETTER_ANSWER
from vlm_pruner.llava.eval.questions import ID, Item, Question, read_lines, require


def read(args: argparse.Namespace) -> list[Item]:
    args.image_folder = args.video_folder
    return read_lines(args.question_file, _question)


def _question(index: int, record: dict[str, Any]) -> Question:
    text, video = require(record, "question", str), require(record, "video", str)
    options = require(record, "options", list) if record.get("options") is not None else []
    if len(options) > len(string.ascii_uppercase) or not all(
        isinstance(option, str | int | float) for option in options
    ):
        raise ItemError(f"'options' is {str(options)[:60]}, not a list of at most 26 texts")
    lines = [text, *(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))]
    asked = "\n".join([*lines, LETTER_ANSWER] if options else lines)
    extra: dict[str, Any] = {name: record[name] for name in ("options", "answer") if name in record}
    return Question(index, require(record, "question_id", ID), asked, asked, videos=(video,), extra=extra)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_video_arguments(parser)
    parser.add_argument(
        "--video-folder", type=home, default="", help="videos; paths of the question file cannot leave it"
    )


TASK = evaluate.Task("model_vqa_video", read, _add_arguments, description=__doc__, settings=VIDEO_FLAGS)

main = partial(evaluate.main, TASK)

if __name__ == "__main__":
    sys.exit(main())
