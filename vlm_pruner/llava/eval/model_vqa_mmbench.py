"""Answers of a LLaVA model to MMBench, whose table holds the pictures too.

    python -m llava.eval.model_vqa_mmbench --model-path checkpoints/llava-v1.5-7b \\
        --question-file mmbench/mmbench_dev_20230712.tsv --single-pred-prompt --temperature 0 --conv-mode vicuna_v1 \\
        --answers-file mmbench/answers/mmbench_dev_20230712/llava-v1.5-7b.jsonl

Columns: index, question, hint, A to D, image (base64, or another row's index). A question's options end at the first
missing one. An option "None" counts as missing, as in the table readers behind published results, so some rows are
asked without any option.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Iterator, Mapping
from functools import partial

from vlm_pruner.llava.eval import evaluate
from vlm_pruner.llava.eval.errors import ItemError
from vlm_pruner.llava.eval.prompts import LETTER_ANSWER
from vlm_pruner.llava.eval.questions import Item, Question, read_records
from vlm_pruner.scoring.mmbench import LETTERS, Row, read_table

LETTER_INSTRUCTIONS = {"en": LETTER_ANSWER, "cn": "请直接回答选项字母。"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("this benchmark")
    group.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    group.add_argument("--lang", default="en", choices=list(LETTER_INSTRUCTIONS), help="of that instruction")
    parser.set_defaults(max_new_tokens=1024)


def read(args: argparse.Namespace) -> list[Item]:
    instruction = LETTER_INSTRUCTIONS[args.lang] if args.single_pred_prompt else None
    rows = read_table(args.question_file)
    pictures = {row["index"]: cell for row in rows if (cell := _cell(row))}
    return read_records(rows, args.question_file, partial(_question, instruction, pictures))


def _question(instruction: str | None, pictures: Mapping[str, str], index: int, row: Row) -> Question:
    options = dict(_options(row))
    hint = [row["hint"]] if _present(row.get("hint")) else []
    prompt = "\n".join([*hint, row["question"], *(f"{letter}. {text}" for letter, text in options.items())])
    asked = prompt if instruction is None else f"{prompt}\n{instruction}"
    extra = {"round_id": 0, "options": list(options.values()), "option_char": list(options)}
    return Question(index, int(row["index"]), asked, prompt, (_picture(_cell(row), pictures),), extra)


def _options(row: Row) -> Iterator[tuple[str, str]]:
    for letter in LETTERS:
        if not _present(row.get(letter)):
            return
        yield letter, row[letter]


def _present(cell: str | None) -> bool:
    """Whether a cell says something; ``read_table`` has emptied most of those that do not."""
    return bool(cell) and str(cell).lower() not in ("nan", "none")


def _cell(row: Row) -> str:
    """The picture's cell. Line breaks and spaces are no part of base64."""
    return "".join(row.get("image", "").split())


def _picture(cell: str, pictures: Mapping[str, str]) -> bytes:
    """A cell's picture. Instead of base64 it may hold the index of a row with the same picture."""
    named = cell
    if cell.isdecimal():
        if (cell := pictures.get(named, "")).isdecimal():
            raise ItemError(
                f"its picture is that of row {named}, which refers to row {cell}: a picture was expected there"
            )
        if not cell:
            raise ItemError(f"its picture is that of row {named}, which the table lacks")
    if not cell:
        raise ItemError("the row has no picture")
    try:
        return base64.b64decode(cell, validate=True)
    except ValueError as error:
        raise ItemError(f"the row's picture is not base64: {error}") from None


TASK = evaluate.Task(
    "model_vqa_mmbench", read, add_arguments, description=__doc__, settings=("single_pred_prompt", "lang")
)

main = partial(evaluate.main, TASK)

if __name__ == "__main__":
    sys.exit(main())
