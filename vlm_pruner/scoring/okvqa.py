"""OK-VQA: soft score of answers that need knowledge from outside the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_pruner.scoring import textvqa
from vlm_pruner.scoring.base import Score, ScoreError
from vlm_pruner.scoring.records import Record, field, find_file, read_answers, read_json


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Score against ``mscoco_val2014_annotations.json``; the mean over the lines of the answer file."""
    path = find_file(data, ("mscoco_val2014_annotations.json", "*annotations.json"), "annotations")
    annotations = {str(item["question_id"]): item for item in field(read_json(path), "annotations", path)}
    read = read_answers(answers, allow_errors)
    items = [_item(line, annotations, answers) for line in read.lines if line.get("question_id") is not None]
    score = textvqa.summary("okvqa", items, len(annotations), read.failed, read.notes)
    share, error = score.metrics["accuracy"], score.stderr["accuracy"]
    return replace(score, metrics={"samples": len(items), "vqa_score": share}, stderr={"vqa_score": error})


def _item(line: Record, annotations: dict[str, Record], path: str | Path) -> dict[str, Any]:
    annotation = annotations.get(str(line["question_id"]))
    if annotation is None:
        raise ScoreError(f"{path}: question id {line['question_id']!r} is not in the annotations")
    reply = str(field(line, "answer" if "answer" in line else "text", path))
    people = [str(person["answer"]) for person in annotation["answers"]]
    return {"question_id": line["question_id"], **textvqa.scored_reply(reply, people, line["question_id"])}
