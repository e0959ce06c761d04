"""POPE: does the model claim objects that are not in the picture? F1 of "yes" in three kinds of question."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Headline, Score, ScoreError, Table
from vlm_pruner.scoring.records import Record, field, find_file, read_answers, read_jsonl
from vlm_pruner.scoring.stats import binomial_stderr, f1_stderr, mean, mean_of_independent, ratio

RATES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
NEGATIVE_WORDS = {"No", "not", "no"}


def parse_reply(text: str) -> str:
    """ "no" if the first sentence has a word for it, else "yes"; words are split on single spaces only."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if NEGATIVE_WORDS.intersection(words) else "yes"


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Score an answer file against a POPE folder (``llava_pope_test.jsonl`` and ``coco/coco_pope_*.json``)."""
    questions = find_file(data, ("llava_pope_test.jsonl", "*pope*.jsonl"), "POPE question file")
    return score_files(Path(data) / "coco", questions, answers, allow_errors)


def score_files(
    annotation_dir: str | Path, question_file: str | Path, answers_file: str | Path, allow_errors: int = 0
) -> Score:
    """Score from the three paths that LLaVA's ``eval_pope`` takes."""
    labels = _read_labels(annotation_dir)
    places = _places(read_jsonl(question_file), question_file)
    answers = read_answers(answers_file, allow_errors)
    items = [item for line in answers.lines if (item := _item(line, places, labels, answers_file)) is not None]
    per_category = {}
    for category in sorted(labels):
        # Of two lines with one place the later counts, as when a file was appended to.
        replies = {item["place"]: item for item in items if item["category"] == category}
        if not replies:
            raise ScoreError(f"{answers_file} has no answer in category {category!r}: is it POPE's answer file?")
        per_category[category] = _confusion(list(replies.values()))
    return _summary(per_category, items, answers.failed, answers.notes)


def _read_labels(annotation_dir: str | Path) -> dict[str, list[str]]:
    """Category -> "yes"/"no" labels, in the file's order."""
    files = sorted(Path(annotation_dir).glob("coco_pope_*.json"))
    if not files:
        raise ScoreError(f"{annotation_dir} has no coco_pope_*.json: expected adversarial, popular and random")
    return {
        path.stem.removeprefix("coco_pope_"): [str(field(line, "label", path)) for line in read_jsonl(path)]
        for path in files
    }


def _places(questions: list[Record], path: Path | str) -> dict[Any, tuple[str, int]]:
    """Question id -> (category, place within the category).

    Labels belong to questions by position inside a category, because the ids of the two files differ. Counting places
    in the question file, not in the answer file, keeps a missing answer from shifting all later ones.
    """
    counts: dict[str, int] = defaultdict(int)
    places = {}
    for question in questions:
        category, question_id = str(field(question, "category", path)), field(question, "question_id", path)
        if question_id in places:
            raise ScoreError(f"{path}: question id {question_id!r} occurs twice; answers could not be told apart")
        places[question_id] = (category, counts[category])
        counts[category] += 1
    return places


def _item(
    line: Record, places: dict[Any, tuple[str, int]], labels: dict[str, list[str]], path: str | Path
) -> dict[str, Any] | None:
    question_id = line.get("question_id")
    if question_id is None and line.get("error"):
        return None  # a question line that could not be read: nothing says which label it belongs to
    if question_id not in places:
        raise ScoreError(f"{path}: question id {question_id!r} is not in the question file")
    category, place = places[question_id]
    if place >= len(labels.get(category, ())):
        raise ScoreError(
            f"{path}: question {question_id!r} is number {place + 1} of {category!r}, which has fewer labels"
        )
    parsed = parse_reply(str(field(line, "text", path)))
    return {"question_id": question_id, "category": category, "place": place, "parsed": parsed,
            "label": labels[category][place]}  # fmt: skip


def _confusion(items: list[dict[str, Any]]) -> dict[str, float]:
    """Counts and rates of one category; every label that is not "no" is a positive."""
    pairs = [(item["parsed"] != "no", item["label"] != "no") for item in items]
    tp, fp = pairs.count((True, True)), pairs.count((True, False))
    tn, fn = pairs.count((False, False)), pairs.count((False, True))
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    return {
        "samples": len(pairs), "TP": tp, "FP": fp, "TN": tn, "FN": fn,
        "accuracy": ratio(tp + tn, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(tp + fp, len(pairs)),
    }  # fmt: skip


def _errors(row: dict[str, float]) -> dict[str, float]:
    n, tp, fp, fn = (int(row[key]) for key in ("samples", "TP", "FP", "FN"))
    sizes = {"accuracy": n, "precision": tp + fp, "recall": tp + fn, "yes_ratio": n}
    errors = {name: binomial_stderr(row[name], size) for name, size in sizes.items()}
    return {**errors, "f1": f1_stderr(tp, fp + fn, n)}


def _summary(
    per_category: dict[str, dict[str, float]], items: list[dict[str, Any]], failed: int, notes: tuple[str, ...]
) -> Score:
    errors = {category: _errors(row) for category, row in per_category.items()}
    means = {rate: mean([row[rate] for row in per_category.values()]) for rate in RATES}
    mean_errors = {rate: mean_of_independent([row[rate] for row in errors.values()]) for rate in RATES}
    n = sum(int(row["samples"]) for row in per_category.values())
    rows = [(category, int(row["samples"]), *(100 * row[rate] for rate in RATES), 100 * errors[category]["f1"])
            for category, row in per_category.items()]  # fmt: skip
    rows.append(("mean", n, *(100 * means[rate] for rate in RATES), 100 * mean_errors["f1"]))
    return Score(
        benchmark="pope",
        metrics={"per_category": per_category, "mean_over_categories_derived": means},
        stderr={"per_category": errors, "mean_over_categories_derived": mean_errors},
        n=n,
        headline=Headline("F1", 100 * means["f1"], 100 * mean_errors["f1"]),
        table=Table(("category", "n", "accuracy", "precision", "recall", "F1", "yes", "F1 s.e."), tuple(rows)),
        failed=failed,
        notes=notes,
        items=items,
    )
