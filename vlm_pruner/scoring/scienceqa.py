"""ScienceQA: the letter of a multiple-choice question, in total and for questions with a picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Coverage, Headline, Score, Table
from vlm_pruner.scoring.needs import GUIDE, File, Needs
from vlm_pruner.scoring.records import Answer, field, id_of, read_answers, read_json
from vlm_pruner.scoring.release import check_prompts
from vlm_pruner.scoring.stats import percent

PROBLEMS = File("problems.json", "ScienceQA (data/scienceqa)", 21208)
SPLITS = File("pid_splits.json", "ScienceQA (data/scienceqa)")
NEEDS = Needs(
    folder="scienceqa", script="sqa", questions=File("llava_test_CQM-A.json", GUIDE, 4241), labels=(PROBLEMS, SPLITS),
    pictures=("images/test",), picture_files=File("images/test", "ScienceQA (test.zip)"),
)  # fmt: skip

OPTIONS = "ABCDE"
# The last mark is any character but a newline, as in the official pattern: "The answer is B" at the end has none.
SENTENCE = re.compile(r"The answer is ([A-Z]).")
FAILED = "FAILED"


def parse_reply(text: str) -> str:
    """The letter that a reply names, or "FAILED"."""
    if len(text) == 1 and text in OPTIONS:
        return text
    if text[:1] in tuple(OPTIONS) and text[1:3] == ". ":
        return text[0]
    found = SENTENCE.findall(text)
    return found[0] if len(found) == 1 else FAILED


def score(data: str | Path, answers: str | Path, allow_errors: int = 0, split: str = "test") -> Score:
    """Scores against ``problems.json`` and ``pid_splits.json``.

    A question without an answer is wrong in the total. Whether a question has a picture follows from its answer line's
    prompt, so an unanswered question does not count among those with one.
    """
    problems_path, splits_path = PROBLEMS.find(data), SPLITS.find(data)
    problems = read_json(problems_path, dict)
    ids = [str(pid) for pid in field(read_json(splits_path, dict), split, splits_path, list)]
    replies, coverage = read_answers(answers, allow_errors).join(ids, id_of, f"split {split!r}")
    asked = {pid: field(problems, pid, problems_path, dict) for pid in ids}
    coverage = check_prompts(replies.items(), lambda pid: asked[pid].get("question"), coverage, problems_path)
    items = [_item(pid, asked[pid], replies.get(pid), f"{problems_path}, problem {pid}") for pid in ids]
    return _summary(items, coverage)


def _item(pid: str, problem: object, reply: Answer | None, where: str) -> dict[str, Any]:
    parsed = parse_reply(reply.reply) if reply is not None else FAILED
    predicted = OPTIONS[: len(field(problem, "choices", where, list))].find(parsed)  # -1: names no choice
    return {
        "question_id": pid,
        "answered": reply is not None,
        "with_image": reply is not None and "<image>" in reply.prompt,
        "parsed": parsed,
        "predicted": predicted,
        "correct": predicted == field(problem, "answer", where, int),
    }


def _summary(items: list[dict[str, Any]], coverage: Coverage) -> Score:
    pictured = [item for item in items if item["with_image"]]
    correct, img_correct = (sum(item["correct"] for item in part) for part in (items, pictured))
    accuracy, error = percent(correct, len(items))
    img_accuracy, img_error = percent(img_correct, len(pictured))
    return Score(
        benchmark="scienceqa",
        metrics={
            "total": len(items), "correct": correct, "accuracy_percent": accuracy,
            "img_total": len(pictured), "img_correct": img_correct, "img_accuracy_percent": img_accuracy,
        },
        stderr={"accuracy_percent": error, "img_accuracy_percent": img_error},
        n=len(items),
        headline=Headline("image accuracy", img_accuracy, img_error),
        table=Table(
            ("questions", "n", "correct", "accuracy", "s.e."),
            (
                ("all", len(items), correct, accuracy, error),
                ("with a picture", len(pictured), img_correct, img_accuracy, img_error),
            ),
        ),
        coverage=coverage,
        notes=coverage.notes("wrong in the total, absent from the image accuracy"),
        items=items,
    )  # fmt: skip
