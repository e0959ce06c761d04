"""ScienceQA: the letter of a multiple-choice question, in all and for questions with a picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Headline, Score, ScoreError, Table
from vlm_pruner.scoring.records import Record, field, find_file, read_answers, read_json
from vlm_pruner.scoring.stats import binomial_stderr, ratio

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


def choice_index(letter: str, choices: int) -> int:
    """The choice's place, -1 for none; a letter beyond the question's choices is none."""
    place = OPTIONS.find(letter) if len(letter) == 1 else -1
    return place if place < choices else -1


def score(data: str | Path, answers: str | Path, allow_errors: int = 0, split: str = "test") -> Score:
    """Score against ``problems.json`` and ``pid_splits.json``.

    A question without an answer is wrong in the total; a question is one with a picture if the prompt of its answer
    line says so, so it is not counted among those when it has no answer.
    """
    problems = read_json(find_file(data, ("problems.json",), "problems"))
    splits_path = find_file(data, ("pid_splits.json",), "splits")
    ids = field(read_json(splits_path), split, splits_path)
    read = read_answers(answers, allow_errors)
    lines = {str(line.get("question_id")): line for line in read.lines}
    items = [_item(pid, problems[pid], lines.get(pid), answers) for pid in map(str, ids)]
    if not any(item["answered"] for item in items):
        raise ScoreError(f"{answers} answers no question of split {split!r}")
    return _summary(items, read.failed, read.notes)


def _item(pid: str, problem: Record, line: Record | None, path: str | Path) -> dict[str, Any]:
    parsed = parse_reply(str(field(line, "text", path))) if line is not None else FAILED
    predicted = choice_index(parsed, len(problem["choices"]))
    return {
        "question_id": pid,
        "answered": line is not None,
        "with_image": line is not None and "<image>" in str(line.get("prompt", "")),
        "parsed": parsed,
        "predicted": predicted,
        "correct": predicted == problem["answer"],
    }


def _summary(items: list[dict[str, Any]], failed: int, notes: tuple[str, ...]) -> Score:
    pictured = [item for item in items if item["with_image"]]
    correct, img_correct = (sum(item["correct"] for item in part) for part in (items, pictured))
    share, img_share = ratio(correct, len(items)), ratio(img_correct, len(pictured))
    error, img_error = binomial_stderr(share, len(items)), binomial_stderr(img_share, len(pictured))
    missing = sum(not item["answered"] for item in items)
    if missing:
        notes = (*notes, f"{missing} questions have no answer: wrong in the total, absent from the image accuracy")
    return Score(
        benchmark="scienceqa",
        metrics={
            "total": len(items), "correct": correct, "accuracy_percent": 100 * share,
            "img_total": len(pictured), "img_correct": img_correct, "img_accuracy_percent": 100 * img_share,
        },
        stderr={"accuracy_percent": 100 * error, "img_accuracy_percent": 100 * img_error},
        n=len(items),
        headline=Headline("image accuracy", 100 * img_share, 100 * img_error),
        table=Table(
            ("questions", "n", "correct", "accuracy", "s.e."),
            (
                ("all", len(items), correct, 100 * share, 100 * error),
                ("with a picture", len(pictured), img_correct, 100 * img_share, 100 * img_error),
            ),
        ),
        failed=failed,
        notes=notes,
        items=items,
    )  # fmt: skip
