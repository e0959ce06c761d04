"""Prompts are LLaVA's, character for character."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from conformance import conformance

from llava.eval import model_vqa_loader
from llava.eval.prompts import build_prompt
from llava.eval.questions import Question

WITH_WHOLE_QUESTION = ["gqa", "pope", "textvqa", "MME", "seed_bench"]


def golden(benchmark: str) -> dict[str, Any]:
    return json.loads((conformance("scorers") / benchmark / "prompts.json").read_text(encoding="utf-8"))


def ask(tmp_path: Path, item: dict[str, Any], model: str = "llava-v1.5-7b", is_textvqa: bool = False) -> Question:
    line = {"question_id": item["question_id"], "image": item.get("image", "a.png"), "text": item["question_file_text"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    args = argparse.Namespace(question_file=str(tmp_path / "q.jsonl"), model_path=model, is_textvqa=is_textvqa)
    (question,) = model_vqa_loader.read(args)
    assert isinstance(question, Question)
    return question


@pytest.mark.parametrize("benchmark", WITH_WHOLE_QUESTION)
def test_loader_prompts(benchmark: str, tmp_path: Path) -> None:
    expected = golden(benchmark)
    for item in expected["items"]:
        question = ask(tmp_path, item)
        assert build_prompt(question.asked, expected["conv_mode"]) == item["prompt"]
        assert question.prompt == item["question_file_text"] and question.image == item["image"]


def test_loader_prompts_of_llava_1_6_on_textvqa(tmp_path: Path) -> None:
    expected = golden("textvqa")
    for item in expected["llava_1_6_with_is_textvqa"]:
        question = ask(tmp_path, item, "llava-v1.6-vicuna-7b", is_textvqa=True)
        assert build_prompt(question.asked, expected["conv_mode"]) == item["prompt"]
        assert ask(tmp_path, item, is_textvqa=True).asked == item["question_file_text"]


def test_a_text_only_question_has_no_image_mark() -> None:
    assert "<image>" not in build_prompt("Why?", "vicuna_v1", with_image=False)
