"""OK-VQA: soft score of answers that need outside knowledge."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_pruner.scoring import textvqa
from vlm_pruner.scoring.base import Coverage, Score, ScoreError
from vlm_pruner.scoring.needs import COCO, File, Needs
from vlm_pruner.scoring.records import Answer, Answers, Record, field, id_of, read_answers, read_json, read_jsonl
from vlm_pruner.scoring.release import check_prompts

PICTURE = re.compile(r"_(\d{12})\.\w+$")  # COCO's picture names end in their number

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
    """Scores against ``mscoco_val2014_annotations.json``; the mean over the lines of the answer file."""
    path = LABELS.find(data)
    entries = field(read_json(path, dict), LABELS.key, path, list)
    annotations = {str(field(entry, "question_id", f"{path}: an entry")): entry for entry in entries}
    read = read_answers(answers, allow_errors, ("answer", "text"))
    coverage = textvqa.cover(read, annotations, id_of, path)
    coverage = _check_questions(Path(data).expanduser() / NEEDS.questions.path, annotations, read, coverage)
    items = [_item(answer, annotations[id_of(answer)], path) for answer in read.readable]
    score = textvqa.summary("okvqa", items, coverage)
    share, error = score.metrics["accuracy"], score.stderr["accuracy"]
    return replace(score, metrics={"samples": len(items), "vqa_score": share}, stderr={"vqa_score": error})


def _check_questions(path: Path, annotations: dict[str, Record], read: Answers, coverage: Coverage) -> Coverage:
    """Checks pictures and prompts against the question file, if it is there: the annotations contain no questions."""
    if not path.is_file():
        return coverage
    questions = {str(field(line, "question_id", path)): line for line in read_jsonl(path)}
    for name, question in questions.items():
        shown, labelled = PICTURE.search(str(question.get("image"))), annotations.get(name, {}).get("image_id")
        if shown and isinstance(labelled, int) and int(shown.group(1)) != labelled:
            raise ScoreError(
                f"{path} asks question {name} about picture {int(shown.group(1))}, and the annotations are about"
                f" {labelled}; use files of one release (docs/evaluation.md)"
            )
    pairs = [(id_of(answer), answer) for answer in read.readable]
    return check_prompts(pairs, lambda name: questions.get(name, {}).get("question"), coverage, path)


def _item(answer: Answer, annotation: Record, path: Path) -> dict[str, Any]:
    where = f"{path}, question {answer.question_id!r}"
    people = [field(person, "answer", where, str) for person in field(annotation, "answers", where, list)]
    return {"question_id": answer.question_id, **textvqa.scored_reply(answer.reply, people, where)}
