"""TextVQA: soft score of short answers about text in pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vlm_pruner.scoring.base import Coverage, Headline, Score, ScoreError, Table
from vlm_pruner.scoring.needs import GUIDE, File, Needs
from vlm_pruner.scoring.records import Answer, Answers, Record, field, read_answers, read_json
from vlm_pruner.scoring.stats import mean, mean_stderr
from vlm_pruner.scoring.vqa import PEOPLE, normalise, soft_score

LABELS = File("TextVQA_0.5.1_val.json", "TextVQA (v0.5.1)", 5000, key="data", others=("TextVQA*.json",))
NEEDS = Needs(
    folder="textvqa", script="textvqa", questions=File("llava_textvqa_val_v051_ocr.jsonl", GUIDE, 5000),
    labels=(LABELS,), pictures=("train_images",),
    picture_files=File("train_images", "TextVQA (train_val_images.zip)"),
)  # fmt: skip

K = TypeVar("K", bound=Hashable)
Key = tuple[str | int | float | None, str]  # image, question in lower case

OCR_FIRST = "Reference OCR token:"
EMBEDDED = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def question_of(prompt: str) -> str:
    """Extracts the question from its prompt, in lower case."""
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
    """Scores against ``TextVQA_0.5.1_val.json``: the mean over the lines of the answer file, as the official one is."""
    path = LABELS.find(data)
    where = f"{path}: an entry"
    annotations: dict[Key, Record] = {
        (field(entry, "image_id", where, (str, int)), field(entry, "question", where, str).lower()): entry
        for entry in field(read_json(path, dict), LABELS.key, path, list)
    }
    read = read_answers(answers, allow_errors)
    coverage = cover(read, annotations, key_of, path)
    items = [_item(answer, annotations[key_of(answer)], path) for answer in read.readable]
    return summary("textvqa", items, coverage)


def key_of(answer: Answer) -> Key:
    return answer.question_id, question_of(answer.prompt)


def cover(read: Answers, annotations: Mapping[K, Record], key: Callable[[Answer], K], path: Path) -> Coverage:
    """Counts missing and repeated replies. Refuses a reply to a question without annotation, as officially."""
    for answer in read.readable:
        if key(answer) not in annotations:
            raise ScoreError(f"{read.path}, line {answer.line}: {path} has no question {key(answer)!r}")
    return read.join(annotations, key, path)[1]


def _item(answer: Answer, annotation: Record, path: Path) -> dict[str, Any]:
    where = f"{path}, question {annotation.get('question_id')!r}"
    scored = scored_reply(answer.reply, field(annotation, "answers", where, list), where)
    return {"question_id": answer.question_id, "annotation_question_id": annotation.get("question_id"),
            "question": key_of(answer)[1], **scored}  # fmt: skip


def scored_reply(reply: str, answers: Sequence[Any], where: str) -> dict[str, Any]:
    """The normalised reply and its soft score."""
    if len(answers) != PEOPLE or not all(isinstance(answer, str) for answer in answers):
        raise ScoreError(f"{where} has {len(answers)} answers; the soft score needs {PEOPLE} texts")
    prediction = normalise(reply)
    return {"processed_prediction": prediction, "score": soft_score(prediction, [normalise(a) for a in answers])}


def summary(benchmark: str, items: list[dict[str, Any]], coverage: Coverage) -> Score:
    """The mean soft score with the standard error of the items' own variance."""
    scores = [item["score"] for item in items]
    share, error = mean(scores), mean_stderr(scores)
    return Score(
        benchmark=benchmark,
        metrics={"samples": len(items), "accuracy": share, "accuracy_percent": 100 * share},
        stderr={"accuracy": error, "accuracy_percent": 100 * error},
        n=len(items),
        headline=Headline("VQA score", 100 * share, 100 * error),
        table=Table(("questions", "n", "VQA score", "s.e."), (("all", len(items), 100 * share, 100 * error),)),
        coverage=coverage,
        notes=coverage.notes("they are left out", "each counts"),
        items=items,
    )
