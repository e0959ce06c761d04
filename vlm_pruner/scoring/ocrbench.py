"""OCRBench: does the reply contain the text? Points for ten types of task, a thousand questions in total."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Coverage, Headline, Score, ScoreError, Table
from vlm_pruner.scoring.needs import File, Needs
from vlm_pruner.scoring.records import Record, check_failed, field, id_of, read_answers, read_json, reply_error
from vlm_pruner.scoring.release import check_prompts
from vlm_pruner.scoring.stats import binomial_stderr, percent, ratio

QUESTIONS = File("OCRBench/OCRBench.json", "OCRBench (OCRBench.json)", 1000, others=("OCRBench.json",))
NEEDS = Needs(
    folder="OCRBench", script="ocrbench", questions=QUESTIONS, pictures=("OCRBench_Images",),
    picture_files=File("OCRBench_Images", "OCRBench (OCRBench_Images.zip)"), image_field="image_path",
)  # fmt: skip

RECOGNITION = (
    "Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition", "Handwriting Recognition",
    "Digit String Recognition", "Non-Semantic Text Recognition",
)  # fmt: skip
TYPES = (
    *RECOGNITION, "Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)  # fmt: skip
WHOLE = 1000  # entries of the published benchmark; only with all of them are points comparable with published ones
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
    """Scores a result file: the question list with a ``predict`` in each entry. Entries without it count too.

    An answer file (one line per question) is joined with ``OCRBench/OCRBench.json`` of ``data`` first.
    """
    joined = Path(answers).suffix == ".jsonl"
    entries, coverage = (_join if joined else _read_results)(data, answers, allow_errors)
    items = [_item(entry, f"{answers}, entry {number}") for number, entry in enumerate(entries, start=1)]
    return _summary(items, coverage)


def _read_results(data: str | Path, path: str | Path, allow_errors: int) -> tuple[list[Record], Coverage]:
    """The released loader's result file: the entries of the question file, most of them with a reply."""
    entries: list[Record] = read_json(path, list)
    for number, entry in enumerate(entries, start=1):
        field(entry, "dataset_name", f"{path}, entry {number}", str)
    answered = [(number, entry) for number, entry in enumerate(entries, start=1) if {"predict", "error"} & entry.keys()]
    if not answered:
        raise ScoreError(f"{path}: no entry has a 'predict'; generate answers first")
    errors = [(number, entry.get("id"), reply_error(entry, "predict")) for number, entry in answered]
    check_failed(errors, path, allow_errors, "entry")
    names = [str(entry["id"]) for _, entry in answered if "id" in entry]
    failed = {number for number, _, error in errors if error is not None}
    replied = [{**entry, "predict": ""} if number in failed else entry for number, entry in enumerate(entries, start=1)]
    return replied, Coverage(
        questions=len(entries), missing=len(entries) - len(answered), replies=len(answered),
        repeated=len(names) - len(set(names)), failed=len(failed),
    )  # fmt: skip


def _join(data: str | Path, path: str | Path, allow_errors: int) -> tuple[list[Record], Coverage]:
    """The questions with the replies of an answer file."""
    source = QUESTIONS.find(data)
    questions = {str(field(entry, "id", f"{source}: an entry")): entry for entry in read_json(source, list)}
    replies, coverage = read_answers(path, allow_errors).join(questions, id_of, source)
    coverage = check_prompts(replies.items(), lambda name: questions[name].get("question"), coverage, source)
    return [
        {**entry, **({"predict": replies[name].reply} if name in replies else {})} for name, entry in questions.items()
    ], coverage


def _item(entry: Record, where: str) -> dict[str, Any]:
    dataset, accepted = field(entry, "dataset_name", where, str), field(entry, "answers", where, (str, list, int))
    right = is_right(dataset, entry["predict"], accepted) if "predict" in entry else None
    return {"id": entry.get("id"), "dataset": dataset, "type": field(entry, "type", where, str),
            "result": None if right is None else int(right)}  # fmt: skip


def _summary(items: list[dict[str, Any]], coverage: Coverage) -> Score:
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
    notes = list(coverage.notes("they count as wrong"))
    if len(items) == WHOLE:
        recognition = sum(per_type[name] for name in RECOGNITION)
        metrics.update(text_recognition=recognition, final_score=correct, per_type=per_type)
    else:
        notes.append(f"{len(items)} entries, not {WHOLE}: scaled points are not the published benchmark's")
    share = ratio(correct, len(items))
    error = binomial_stderr(share, len(items))
    rows = [(name, size, per_type[name], *percent(per_type[name], size)) for name, size in sizes.items()]
    rows.append(("all", len(items), correct, 100 * share, 100 * error))
    return Score(
        benchmark="ocrbench",
        metrics=metrics,
        stderr={"correct": error * len(items)},
        n=len(items),
        headline=Headline("points per 1000", 1000 * share, 1000 * error),
        table=Table(("type", "n", "correct", "%", "s.e."), tuple(rows)),
        coverage=coverage,
        notes=tuple(notes),
        items=items,
    )
