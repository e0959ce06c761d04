"""Answers of a LLaVA model to OCRBench.

    python -m llava.eval.model_vqa_ocrbench --model-path checkpoints/llava-v1.5-7b \\
        --question-file OCRBench/OCRBench/OCRBench.json --image-folder OCRBench/OCRBench_Images \\
        --answers-file OCRBench/answers/llava-v1.5-7b.jsonl

The question file is a list of {"id", "image_path", "question", ...}. The released script's flags are understood too:
--OCRBench_file, --image_folder, --model_path, and --output_folder DIR --save_name NAME for the file DIR/NAME.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vlm_pruner.llava.eval import evaluate
from vlm_pruner.llava.eval.questions import Item, read_list, short_question

RELEASED = {"model_path": "--model-path", "image_folder": "--image-folder", "OCRBench_file": "--question-file"}


def read(args: argparse.Namespace) -> list[Item]:
    return read_list(args.question_file, partial(short_question, id_name="id", image_name="image_path"))


def translate(argv: Sequence[str]) -> list[str]:
    """The released script's flags as ours; --num_workers has no counterpart: ``accelerate launch`` starts processes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (*RELEASED, "output_folder", "save_name", "num_workers"):
        parser.add_argument(f"--{name}")
    released, ours = parser.parse_known_args(argv)
    for name, flag in RELEASED.items():
        if (value := getattr(released, name)) is not None:
            ours += [flag, value]
    if released.output_folder is not None and released.save_name is not None:
        ours += ["--answers-file", str(Path(released.output_folder) / f"{released.save_name}.jsonl")]
    return ours


TASK = evaluate.Task("model_vqa_ocrbench", read, description=__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return evaluate.main(TASK, translate(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
