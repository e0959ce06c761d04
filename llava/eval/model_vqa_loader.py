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
from collections.abc import Sequence
from dataclasses import replace

from llava.eval import evaluate
from llava.eval.errors import ItemError
from llava.eval.questions import Item, Question, read_lines, text_question


def read(args: argparse.Namespace) -> list[Item]:
    without_ocr = args.is_textvqa and "1.6" in args.model_path
    parse = _without_ocr_line if without_ocr else text_question
    return read_lines(args.question_file, parse)


def _without_ocr_line(index: int, record: dict) -> Question:
    """LLaVA-1.6 is evaluated on TextVQA without the OCR line: question, OCR tokens, instruction -> first and last."""
    question = text_question(index, record)
    parts = question.asked.split("\n")
    if len(parts) < 3:
        raise ItemError(f"--is_textvqa expects question, OCR line and instruction, found {len(parts)} lines")
    return replace(question, asked=f"{parts[0]}\n{parts[2]}")


TASK = evaluate.Task("model_vqa_loader", read, description=__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return evaluate.main(TASK, argv)


if __name__ == "__main__":
    sys.exit(main())
