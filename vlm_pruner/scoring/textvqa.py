"""TextVQA: soft score of short answers about text in pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Headline, Score, ScoreError, Table
from vlm_pruner.scoring.records import Record, field, find_file, read_answers, read_json
from vlm_pruner.scoring.stats import mean, mean_stderr
from vlm_pruner.scoring.vqa import PEOPLE, normalise, soft_score

OCR_FIRST = "Reference OCR token:"
EMBEDDED = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def question_of(prompt: str) -> str:
    """The question, in lower case, cut out of the prompt that asked it."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = EMBEDDED.search(prompt)
        if found:
            return found.group(1).lower()
    elif len(lines) == 3 and f"{OCR_FIRST} " in prompt:
        return lines[1 if prompt.startswith(OCR_FIRST) else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ScoreError(f"no TextVQA question is found in the prompt {prompt!r}")


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Score against ``TextVQA_0.5.1_val.json``: the mean over the lines of the answer file, as the official one is."""
    path = find_file(data, ("TextVQA_0.5.1_val.json", "TextVQA*.json"), "annotations")
    annotations = {(item["image_id"], item["question"].lower()): item for item in field(read_json(path), "data", path)}
    read = read_answers(answers, allow_errors)
    # A question line that could not be read has neither id nor prompt: there is nothing to score it against.
    lines = [line for line in read.lines if line.get("question_id") is not None]
    items = [_item(line, annotations, answers) for line in lines]
    return summary("textvqa", items, len(annotations), read.failed, read.notes)


def _item(line: Record, annotations: dict[tuple[Any, str], Record], path: str | Path) -> dict[str, Any]:
    question = question_of(str(field(line, "prompt", path)))
    annotation = annotations.get((line["question_id"], question))
    if annotation is None:
        raise ScoreError(f"{path}: the annotations have no question {question!r} about image {line['question_id']!r}")
    scored = scored_reply(str(field(line, "text", path)), annotation["answers"], annotation.get("question_id"))
    return {"question_id": line["question_id"], "annotation_question_id": annotation.get("question_id"),
            "question": question, **scored}  # fmt: skip


def scored_reply(reply: str, answers: Sequence[str], question_id: Any) -> dict[str, Any]:
    """The normalised reply and its soft score."""
    if len(answers) != PEOPLE:
        raise ScoreError(f"annotation {question_id!r} has {len(answers)} answers; the soft score needs {PEOPLE}")
    prediction = normalise(reply)
    return {"processed_prediction": prediction, "score": soft_score(prediction, [normalise(a) for a in answers])}


def summary(benchmark: str, items: list[dict[str, Any]], questions: int, failed: int, notes: tuple[str, ...]) -> Score:
    """The mean soft score with the standard error of the items' own variance."""
    scores = [item["score"] for item in items]
    share, error = mean(scores), mean_stderr(scores)
    if len(items) < questions:
        notes = (*notes, f"{questions - len(items)} of {questions} questions have no answer and are left out")
    return Score(
        benchmark=benchmark,
        metrics={"samples": len(items), "accuracy": share, "accuracy_percent": 100 * share},
        stderr={"accuracy": error, "accuracy_percent": 100 * error},
        n=len(items),
        headline=Headline("VQA score", 100 * share, 100 * error),
        table=Table(("questions", "n", "VQA score", "s.e."), (("all", len(items), 100 * share, 100 * error),)),
        failed=failed,
        notes=notes,
        items=items,
    )
