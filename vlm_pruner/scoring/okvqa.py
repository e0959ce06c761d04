"""OK-VQA: soft score of answers that need knowledge from outside the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_pruner.scoring import textvqa
from vlm_pruner.scoring.base import Score
from vlm_pruner.scoring.needs import COCO, File, Needs
from vlm_pruner.scoring.records import Answer, Record, field, id_of, read_answers, read_json

LABELS = File(
    "mscoco_val2014_annotations.json", "OK-VQA (testing annotations)", 5046, key="annotations",
    others=("*annotations.json",),
)  # fmt: skip
NEEDS = Needs(
    folder="okvqa", script="okvqa",
    questions=File("okvqa_val.jsonl", "python -m llava.eval.convert_okvqa_questions", 5046),
    labels=(LABELS,), pictures=(".",), picture_files=File("val2014", COCO),
)  # fmt: skip


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Score against ``mscoco_val2014_annotations.json``; the mean over the lines of the answer file."""
    path = LABELS.find(data)
    entries = field(read_json(path, dict), LABELS.key, path, list)
    annotations = {str(field(entry, "question_id", f"{path}: an entry")): entry for entry in entries}
    read = read_answers(answers, allow_errors, ("answer", "text"))
    coverage = textvqa.cover(read, annotations, id_of, path)
    items = [_item(answer, annotations[id_of(answer)], path) for answer in read.readable]
    score = textvqa.summary("okvqa", items, coverage)
    share, error = score.metrics["accuracy"], score.stderr["accuracy"]
    return replace(score, metrics={"samples": len(items), "vqa_score": share}, stderr={"vqa_score": error})


def _item(answer: Answer, annotation: Record, path: Path) -> dict[str, Any]:
    where = f"{path}, question {answer.question_id!r}"
    people = [field(person, "answer", where, str) for person in field(annotation, "answers", where, list)]
    return {"question_id": answer.question_id, **textvqa.scored_reply(answer.reply, people, where)}
