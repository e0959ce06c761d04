"""OCRBench: does the reply contain the text? Points in ten types of task, a thousand questions in all."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Headline, Score, ScoreError, Table
from vlm_pruner.scoring.records import Record, field, find_file, read_json, read_jsonl
from vlm_pruner.scoring.stats import binomial_stderr, ratio

RECOGNITION = (
    "Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition", "Handwriting Recognition",
    "Digit String Recognition", "Non-Semantic Text Recognition",
)  # fmt: skip
TYPES = (
    *RECOGNITION, "Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)  # fmt: skip
WHOLE = 1000  # entries of the published benchmark; only then are the points comparable with published ones
FORMULAS = "HME100k"


def is_right(dataset: str, prediction: str, answers: Any) -> bool:
    """Whether one of the accepted answers (a string or a list) is contained in the prediction."""
    accepted = answers if isinstance(answers, list) else [answers]
    prediction = _normalise(dataset, prediction)
    return any(_normalise(dataset, str(answer)) in prediction for answer in accepted)


def _normalise(dataset: str, text: str) -> str:
    """Formulas keep their case and lose their spaces (no other white space); other text is lower-cased."""
    if dataset == FORMULAS:
        return text.strip().replace("\n", " ").replace(" ", "")
    return text.lower().strip().replace("\n", " ")


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Score a result file: the question list with a ``predict`` in each entry. Entries without it stay in the divisor.

    An answer file (one line per question) is joined with ``OCRBench/OCRBench.json`` of ``data`` first.
    """
    entries = _join(data, answers) if Path(answers).suffix == ".jsonl" else read_json(answers)
    if not isinstance(entries, list) or not entries:
        raise ScoreError(f"{answers} is not OCRBench's result file: a JSON list of questions with 'predict'")
    failed = [entry for entry in entries if entry.get("error")]
    if len(failed) > allow_errors:
        raise ScoreError(
            f"{answers}: {len(failed)} of {len(entries)} items failed while generating, first: {failed[0]['error']};"
            f" generate again with --retry-errors, or pass --allow-errors {len(failed)} to count them as empty replies"
        )
    items = [_item(entry, answers) for entry in entries]
    if all(item["result"] is None for item in items):
        raise ScoreError(f"{answers}: no entry has a 'predict'; generate answers first")
    return _summary(items, len(failed))


def _join(data: str | Path, answers: str | Path) -> list[Record]:
    questions = read_json(find_file(data, ("OCRBench/OCRBench.json", "OCRBench.json"), "questions"))
    lines = {str(line.get("question_id")): line for line in read_jsonl(answers)}
    return [{**entry, **_reply(lines.get(str(field(entry, "id", data))))} for entry in questions]


def _reply(line: Record | None) -> Record:
    if line is None:
        return {}
    return {"predict": line.get("text", ""), **({"error": line["error"]} if line.get("error") else {})}


def _item(entry: Record, path: str | Path) -> dict[str, Any]:
    dataset, prediction = str(field(entry, "dataset_name", path)), entry.get("predict")
    right = None if prediction is None else is_right(dataset, str(prediction), field(entry, "answers", path))
    return {"id": entry.get("id"), "dataset": dataset, "type": str(field(entry, "type", path)),
            "result": None if right is None else int(right)}  # fmt: skip


def _summary(items: list[dict[str, Any]], failed: int) -> Score:
    per_type = dict.fromkeys(TYPES, 0)
    sizes: dict[str, int] = defaultdict(int)
    per_dataset: dict[str, list[int]] = defaultdict(list)
    for item in items:
        points = item["result"] or 0
        per_type[item["type"]] = per_type.get(item["type"], 0) + points
        sizes[item["type"]] += 1
        per_dataset[item["dataset"]].append(points)
    correct = sum(per_type.values())
    metrics: dict[str, Any] = {
        "items": len(items),
        "correct": correct,
        "accuracy_per_dataset": {name: ratio(sum(points), len(points)) for name, points in per_dataset.items()},
        "correct_per_type": per_type,
    }
    if len(items) == WHOLE:
        recognition = sum(per_type[name] for name in RECOGNITION)
        metrics.update(text_recognition=recognition, final_score=correct, per_type=per_type)
    share = ratio(correct, len(items))
    error = binomial_stderr(share, len(items))
    rows = [(name, size, per_type[name], *_percent(per_type[name], size)) for name, size in sizes.items()]
    rows.append(("all", len(items), correct, 100 * share, 100 * error))
    return Score(
        benchmark="ocrbench",
        metrics=metrics,
        stderr={"correct": error * len(items)},
        n=len(items),
        headline=Headline("points per 1000", 1000 * share, 1000 * error),
        table=Table(("type", "n", "correct", "%", "s.e."), tuple(rows)),
        failed=failed,
        notes=_notes(items, failed),
        items=items,
    )


def _percent(points: int, size: int) -> tuple[float, float]:
    share = ratio(points, size)
    return 100 * share, 100 * binomial_stderr(share, size)


def _notes(items: list[dict[str, Any]], failed: int) -> tuple[str, ...]:
    skipped = sum(item["result"] is None for item in items)
    notes = [f"{skipped} entries have no prediction and count as wrong"] if skipped else []
    if failed:
        notes.append(f"{failed} of {len(items)} items failed while generating and count as empty replies")
    if len(items) != WHOLE:
        notes.append(f"{len(items)} entries, not {WHOLE}: scaled points are not the published benchmark's")
    return tuple(notes)
