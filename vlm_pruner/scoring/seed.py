"""SEED-Bench: the letter of a multiple-choice question, per type of question, for pictures and for video frames."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Headline, Score, ScoreError, Table
from vlm_pruner.scoring.records import Record, field, find_file, read_answers, read_json
from vlm_pruner.scoring.stats import binomial_stderr, ratio


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Score against ``SEED-Bench.json``: a missing answer is wrong, of two lines with one id the later counts."""
    path = find_file(data, ("SEED-Bench.json", "SEED*.json"), "annotations")
    annotations = read_json(path)
    names = {number: name for name, number in field(annotations, "question_type", path).items()}
    read = read_answers(answers, allow_errors)
    replies = {line.get("question_id"): str(field(line, "text", answers)) for line in read.lines}
    items = [_item(question, names, replies) for question in field(annotations, "questions", path)]
    missing = sum(item["prediction"] is None for item in items)
    if missing == len(items):
        raise ScoreError(f"{answers} answers none of the questions of {path}")
    notes = read.notes
    if missing:
        notes = (*notes, f"{missing} of {len(items)} questions have no answer and count as wrong; no upload file")
    return _summary(items, read.failed, notes)


def _item(question: Record, names: dict[int, str], replies: dict[Any, str]) -> dict[str, Any]:
    prediction = replies.get(_lookup_id(question["question_id"]))
    return {
        "question_id": question["question_id"],
        "type": names[question["question_type_id"]],
        "data_type": question["data_type"],
        "prediction": prediction,
        "correct": prediction == question["answer"],
    }


def _lookup_id(question_id: Any) -> Any:
    """Ids that read as an integer are integers in LLaVA's question file; video ids ("v123") are strings."""
    try:
        return int(question_id)
    except ValueError:
        return question_id


def _summary(items: list[dict[str, Any]], failed: int, notes: tuple[str, ...]) -> Score:
    per_type: dict[str, list[bool]] = defaultdict(list)
    per_medium: dict[str, list[bool]] = {"total": [], "image": [], "video": []}
    for item in items:
        per_type[item["type"]].append(item["correct"])
        per_medium["total"].append(item["correct"])
        per_medium["image" if item["data_type"] == "image" else "video"].append(item["correct"])
    media = {name: _percent(correct) for name, correct in per_medium.items()}
    types = {name: _percent(correct) for name, correct in per_type.items()}
    rows = [(name, len({**per_type, **per_medium}[name]), *values) for name, values in {**types, **media}.items()]
    complete = all(item["prediction"] is not None for item in items)
    headline = media["image"] if per_medium["image"] else media["total"]
    return Score(
        benchmark="seed",
        metrics={
            **{f"{name}_percent": value for name, (value, _) in media.items()},
            "per_type_percent": {name: value for name, (value, _) in types.items()},
            "per_type_count": {name: len(correct) for name, correct in per_type.items()},
        },
        stderr={
            **{f"{name}_percent": error for name, (_, error) in media.items()},
            "per_type_percent": {name: error for name, (_, error) in types.items()},
        },
        n=len(items),
        headline=Headline("image accuracy", *headline),
        table=Table(("type", "n", "accuracy", "s.e."), tuple(rows)),
        failed=failed,
        notes=notes,
        items=items,
        uploads={"seed_upload.jsonl": _upload(items)} if complete else {},
    )


def _percent(correct: list[bool]) -> tuple[float, float]:
    """Accuracy and its standard error, in percent."""
    share = ratio(sum(correct), len(correct))
    return 100 * share, 100 * binomial_stderr(share, len(correct))


def _upload(items: list[dict[str, Any]]) -> bytes:
    lines = [{"question_id": item["question_id"], "prediction": item["prediction"]} for item in items]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
