"""Prompts are LLaVA's, character for character, and answer lines contain what the scorers read."""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from conformance import conformance
from PIL import Image

from llava.eval import (
    evaluate,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_ocrbench,
    model_vqa_okvqa,
    model_vqa_science,
)
from llava.eval.images import open_image
from llava.eval.prompts import build_prompt
from llava.eval.questions import BrokenQuestion, Question

WITH_WHOLE_QUESTION = ["gqa", "pope", "textvqa", "MME", "seed_bench"]


def golden(benchmark: str) -> dict[str, Any]:
    return json.loads((conformance("scorers") / benchmark / "prompts.json").read_text(encoding="utf-8"))


def read(task: evaluate.Task, question_file: Path, *flags: str, model: str = "llava-v1.5-7b") -> list[Any]:
    """The items of a command line."""
    paths = ["--model-path", model, "--question-file", str(question_file), "--answers-file", "unused"]
    return task.read(evaluate.build_parser(task).parse_args([*paths, *flags]))


def prompt_of(question: Question) -> str:
    return build_prompt(question.asked, "vicuna_v1", len(question.images))


def ask(tmp_path: Path, item: dict[str, Any], *flags: str, model: str = "llava-v1.5-7b") -> Question:
    line = {"question_id": item["question_id"], "image": item.get("image", "a.png"), "text": item["question_file_text"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (question,) = read(model_vqa_loader.TASK, tmp_path / "q.jsonl", *flags, model=model)
    return question


@pytest.mark.parametrize("benchmark", WITH_WHOLE_QUESTION)
def test_loader_prompts(benchmark: str, tmp_path: Path) -> None:
    expected = golden(benchmark)
    for item in expected["items"]:
        question = ask(tmp_path, item)
        assert build_prompt(question.asked, expected["conv_mode"]) == item["prompt"]
        assert question.prompt == item["question_file_text"] and question.images == (item["image"],)


def test_loader_prompts_of_llava_1_6_on_textvqa(tmp_path: Path) -> None:
    for item in golden("textvqa")["llava_1_6_with_is_textvqa"]:
        question = ask(tmp_path, item, "--is_textvqa", model="llava-v1.6-vicuna-7b")
        assert prompt_of(question) == item["prompt"]
        assert ask(tmp_path, item, "--is_textvqa").asked == item["question_file_text"]


def test_scienceqa_prompts() -> None:
    questions = conformance("scorers") / "scienceqa" / "llava_test_CQM-A.json"
    asked = {item.question_id: item for item in read(model_vqa_science.TASK, questions)}
    letter = {item.question_id: item for item in read(model_vqa_science.TASK, questions, "--single-pred-prompt")}
    for item in golden("scienceqa")["items"]:
        number = item["question_id"]
        assert prompt_of(asked[number]) == item["prompt_without_single_pred_prompt"]
        assert prompt_of(letter[number]) == item["prompt_with_single_pred_prompt"]
        assert letter[number].prompt == item["answers_file_prompt"]
        assert letter[number].images == ((item["image"],) if item["has_image"] else ())


def test_scienceqa_image_only_keeps_the_questions_places() -> None:
    questions = conformance("scorers") / "scienceqa" / "llava_test_CQM-A.json"
    every, pictured = (read(model_vqa_science.TASK, questions, *flags) for flags in ([], ["--image-only"]))
    assert pictured == [item for item in every if item.images] and 0 < len(pictured) < len(every)


def test_mmbench_prompts() -> None:
    table = conformance("scorers") / "mmbench" / "mmbench_dev_20230712.tsv"
    items = read(model_vqa_mmbench.TASK, table, "--single-pred-prompt")
    for expected in golden("mmbench")["items"]:
        item = items[expected["row"]]
        assert (item.question_id, prompt_of(item)) == (expected["index"], expected["prompt"])
        assert item.prompt == expected["answers_file_prompt"]
        assert item.extra == {"round_id": 0, "options": expected["options"], "option_char": expected["option_char"]}
        assert open_image(Path(), item.images[0]).size == (4, 4)
    plain = read(model_vqa_mmbench.TASK, table)
    assert [item.asked for item in plain] == [item.prompt for item in items]
    (answers,) = (conformance("scorers") / "mmbench" / "answers").rglob("*.jsonl")
    for line in map(json.loads, answers.read_text(encoding="utf-8").splitlines()):
        for item in (item for item in items if item.question_id == line["question_id"]):
            assert (item.prompt, item.extra["options"]) == (line["prompt"], line["options"])
    chinese = read(model_vqa_mmbench.TASK, table, "--single-pred-prompt", "--lang", "cn")
    assert chinese[0].asked == items[0].prompt + "\n请直接回答选项字母。"


def test_mmbench_rows_that_cannot_be_asked_are_kept_as_such(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    rows = [[0, "q?", "NONE", "x", "", "y", picture], [1, "q?", "", "x", "y", "", "not base64!"],
            ["two", "q?", "", "x", "y", "", picture]]  # fmt: skip
    with (tmp_path / "t.tsv").open("w", newline="") as file:
        names = ["index", "question", "hint", "A", "B", "C", "image"]
        csv.writer(file, delimiter="\t").writerows([[*names, "answer"], *([*row, "A"] for row in rows)])
    first, second, third = read(model_vqa_mmbench.TASK, tmp_path / "t.tsv")
    assert first.asked == "q?\nA. x"
    assert isinstance(second, BrokenQuestion) and second.question_id == "1" and "not base64" in second.error
    assert isinstance(third, BrokenQuestion) and "'two'" in third.error


def test_ocrbench_prompts() -> None:
    questions = conformance("scorers") / "OCRBench" / "OCRBench" / "OCRBench.json"
    items = {item.question_id: item for item in read(model_vqa_ocrbench.TASK, questions)}
    for expected in golden("OCRBench")["items"]:
        item = items[expected["id"]]
        assert prompt_of(item) == expected["prompt"] and item.images == (expected["image_path"],)


def test_ocrbench_understands_the_released_flags() -> None:
    released = ["--model_path", "m", "--image_folder", "i", "--OCRBench_file", "q.json", "--output_folder", "results"]
    ours = model_vqa_ocrbench.translate([*released, "--save_name", "s", "--num_workers", "2", "--sparse"])
    args = evaluate.build_parser(model_vqa_ocrbench.TASK).parse_args(ours)
    assert (args.model_path, args.image_folder, args.question_file) == ("m", "i", "q.json")
    assert args.answers_file == str(Path("results", "s.jsonl")) and args.sparse


def test_okvqa_prompts() -> None:
    questions = conformance("scorers") / "okvqa" / "okvqa_val.jsonl"
    items = {item.question_id: item for item in read(model_vqa_okvqa.TASK, questions)}
    for expected in golden("okvqa")["items"]:
        item = items[expected["question_id"]]
        assert prompt_of(item) == expected["prompt"] and item.prompt == expected["answers_file_prompt"]
        assert item.images == (expected["image"],)
    assert model_vqa_okvqa.TASK.reply_field == "answer"


def test_a_prefix_leaves_other_pictures_out() -> None:
    questions = conformance("scorers") / "seed_bench" / "llava-seed-bench.jsonl"
    every = read(model_vqa_loader.TASK, questions)
    pictures = read(model_vqa_loader.TASK, questions, "--image-prefix", "SEED-Bench-image/")
    assert pictures == [item for item in every if item.images[0].startswith("SEED-Bench-image/")]
    assert 0 < len(pictures) < len(every)


def test_released_lengths() -> None:
    """Tokens that may be generated: 1024 for ScienceQA and MMBench, 128 elsewhere."""
    lengths = {}
    for module in (model_vqa_loader, model_vqa_science, model_vqa_mmbench, model_vqa_ocrbench, model_vqa_okvqa):
        parser: argparse.ArgumentParser = evaluate.build_parser(module.TASK)
        lengths[module.TASK.name.removeprefix("model_vqa_")] = parser.get_default("max_new_tokens")
    assert lengths == {"loader": 128, "science": 1024, "mmbench": 1024, "ocrbench": 128, "okvqa": 128}


def test_every_picture_has_its_mark() -> None:
    assert "<image>" not in build_prompt("Why?", "vicuna_v1", pictures=0)
    assert "USER: <image>\n<image>\nWhy? ASSISTANT:" in build_prompt("Why?", "vicuna_v1", pictures=2)
