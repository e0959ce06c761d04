"""Answers of a LLaVA model to OK-VQA.

    python -m llava.eval.model_vqa_okvqa --model-path checkpoints/llava-v1.5-7b \\
        --question-file okvqa/okvqa_val.jsonl --image-folder okvqa \\
        --answers-file okvqa/answers/llava-v1.5-7b.jsonl --temperature 0 --conv-mode vicuna_v1

A question line is {"question_id", "image", "question"}; an answer line has its reply in "answer".
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from vlm_pruner.llava.eval import evaluate
from vlm_pruner.llava.eval.questions import Item, read_lines, short_question


def read(args: argparse.Namespace) -> list[Item]:
    return read_lines(args.question_file, partial(short_question, id_name="question_id", image_name="image"))


TASK = evaluate.Task("model_vqa_okvqa", read, reply_field="answer", description=__doc__)

main = partial(evaluate.main, TASK)

if __name__ == "__main__":
    sys.exit(main())
