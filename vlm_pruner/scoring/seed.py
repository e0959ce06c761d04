"""SEED-Bench: the letter of a multiple-choice question, per type of question, for pictures and for video frames."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Coverage, Headline, Score, ScoreError, Table
from vlm_pruner.scoring.needs import GUIDE, File, Needs
from vlm_pruner.scoring.records import Answer, Record, field, read_answers, read_json
from vlm_pruner.scoring.release import check_prompts
from vlm_pruner.scoring.stats import percent

LABELS = File("SEED-Bench.json", "SEED-Bench", 19242, key="questions", others=("SEED*.json",))
NEEDS = Needs(
    folder="seed_bench", script="seed", questions=File("llava-seed-bench.jsonl", GUIDE, 19242), labels=(LABELS,),
    pictures=(".",), picture_files=File("SEED-Bench-image", "SEED-Bench (SEED-Bench-image.zip)"),
    only="SEED-Bench-image/",
)  # fmt: skip


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Scores against ``SEED-Bench.json``: a missing answer is wrong, of two lines with one id the later counts."""
    path = LABELS.find(data)
    annotations = read_json(path, dict)
    types = field(annotations, "question_type", path, dict)
    names = {field(types, name, f"{path}, 'question_type'", int): name for name in types}
    questions: dict[Any, Record] = {
        _lookup_id(entry, path): entry for entry in field(annotations, LABELS.key, path, list)
    }
    read = read_answers(answers, allow_errors)
    replies, coverage = read.join(questions, lambda answer: answer.question_id, path)  # the text "1" is not the id 1
    coverage = check_prompts(replies.items(), lambda key: questions[key].get("question"), coverage, path)
    items = [_item(question, names, replies.get(key), path) for key, question in questions.items()]
    return _summary(items, coverage)


def _item(question: Record, names: dict[int, str], reply: Answer | None, path: Path) -> dict[str, Any]:
    where = f"{path}, question {question['question_id']!r}"
    number = field(question, "question_type_id", where, int)
    if number not in names:
        raise ScoreError(f"{where} is of type {number}, which 'question_type' does not name")
    prediction = None if reply is None else reply.reply
    return {
        "question_id": question["question_id"],
        "type": names[number],
        "data_type": field(question, "data_type", where, str),
        "prediction": prediction,
        "correct": prediction == field(question, "answer", where, str),
    }


def _lookup_id(question: object, path: Path) -> str | int:
    """Ids that look like integers are integers in LLaVA's question file; video ids ("v123") are strings."""
    question_id = field(question, "question_id", f"{path}: a question", (str, int))
    try:
        return int(question_id)
    except ValueError:
        return str(question_id)


def _summary(items: list[dict[str, Any]], coverage: Coverage) -> Score:
    per_type: dict[str, list[bool]] = defaultdict(list)
    per_medium: dict[str, list[bool]] = {"total": [], "image": [], "video": []}
    for item in items:
        per_type[item["type"]].append(item["correct"])
        per_medium["total"].append(item["correct"])
        per_medium["image" if item["data_type"] == "image" else "video"].append(item["correct"])
    media = {name: percent(sum(correct), len(correct)) for name, correct in per_medium.items()}
    types = {name: percent(sum(correct), len(correct)) for name, correct in per_type.items()}
    rows = [(name, len({**per_type, **per_medium}[name]), *values) for name, values in {**types, **media}.items()]
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
        coverage=coverage,
        notes=coverage.notes("they count as wrong, and there is no upload file"),
        items=items,
        uploads={"seed_upload.jsonl": partial(_upload, items)} if not coverage.missing else {},
    )


def _upload(items: list[dict[str, Any]]) -> bytes:
    lines = [{"question_id": item["question_id"], "prediction": item["prediction"]} for item in items]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
