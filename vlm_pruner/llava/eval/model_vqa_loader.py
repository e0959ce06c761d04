"""Answers of a LLaVA model to questions about pictures: GQA, POPE, TextVQA, MME and SEED-Bench.

    python -m llava.eval.model_vqa_loader --model-path checkpoints/llava-v1.5-7b \\
        --question-file pope/llava_pope_test.jsonl --image-folder pope/val2014 \\
        --answers-file pope/answers/llava-v1.5-7b.jsonl --temperature 0 --conv-mode vicuna_v1 \\
        --sparse --reduction_ratio 0.889 --threshold 0.8 --token_batch 16

A question line is {"question_id", "image", "text"}; the file holds the whole question, suffix included.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial

from vlm_pruner.llava.eval import evaluate
from vlm_pruner.llava.eval.errors import ItemError, UsageError
from vlm_pruner.llava.eval.options import is_llava_next
from vlm_pruner.llava.eval.questions import BrokenQuestion, Item, Question, read_lines, text_question
from vlm_pruner.llava.mm_utils import get_model_name_from_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("this benchmark")
    group.add_argument("--is_textvqa", action="store_true", help="a LLaVA-1.6 checkpoint: leave TextVQA's OCR line out")
    group.add_argument(
        "--image-prefix", default="", metavar="PATH",
        help="ask only about pictures whose path starts so, as SEED-Bench-image/ leaves out SEED-Bench's videos",
    )  # fmt: skip


def read(args: argparse.Namespace) -> list[Item]:
    without_ocr = args.is_textvqa and is_llava_next(args.model_path)
    if args.is_textvqa and not without_ocr:
        name = get_model_name_from_path(args.model_path)
        print(f"--is_textvqa: {name} is not LLaVA-1.6, so TextVQA's OCR line stays", file=sys.stderr)
    items = read_lines(args.question_file, _without_ocr_line if without_ocr else text_question)
    prefix = args.image_prefix
    chosen = [item for item in items if isinstance(item, BrokenQuestion) or str(item.images[0]).startswith(prefix)]
    if not chosen:
        raise UsageError(f"--image-prefix {prefix}: no picture of {args.question_file} starts so")
    return chosen


def _without_ocr_line(index: int, record: dict) -> Question:
    """LLaVA-1.6 is evaluated on TextVQA without the OCR line: question, OCR tokens, instruction -> first and last."""
    question = text_question(index, record)
    parts = question.asked.split("\n")
    if len(parts) < 3:
        raise ItemError(f"--is_textvqa expects question, OCR line and instruction, found {len(parts)} lines")
    return replace(question, asked=f"{parts[0]}\n{parts[2]}")


TASK = evaluate.Task(
    "model_vqa_loader", read, add_arguments, description=__doc__, settings=("is_textvqa", "image_prefix")
)

main = partial(evaluate.main, TASK)

if __name__ == "__main__":
    sys.exit(main())
