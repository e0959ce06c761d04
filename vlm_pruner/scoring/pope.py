"""POPE: does the model claim objects that are not in the picture? F1 of "yes" in three kinds of question."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Coverage, Headline, Score, ScoreError, Table
from vlm_pruner.scoring.needs import COCO, GUIDE, File, Needs
from vlm_pruner.scoring.records import Answer, Record, field, read_answers, read_jsonl
from vlm_pruner.scoring.release import check_prompts, holds
from vlm_pruner.scoring.stats import binomial_stderr, f1_stderr, mean, mean_of_independent, ratio

# LLaVA's guide links this commit. Later ones have 3,000 random questions, whose labels belong to other questions.
RELEASE = "POPE at commit e3e39262c85a6a83f26cf5094022a782cb0df58d (output/coco)"
QUESTIONS = File("llava_pope_test.jsonl", GUIDE, 8910, others=("*pope*.jsonl",))
NEEDS = Needs(
    folder="pope", script="pope", questions=QUESTIONS,
    labels=(
        File("coco/coco_pope_adversarial.json", RELEASE, 3000), File("coco/coco_pope_popular.json", RELEASE, 3000),
        File("coco/coco_pope_random.json", RELEASE, 2910),
    ),
    pictures=("val2014",), picture_files=File("val2014", COCO),
)  # fmt: skip

Place = tuple[str, int]  # category, position of the question within it

RATES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
NEGATIVE_WORDS = {"No", "not", "no"}


def parse_reply(text: str) -> str:
    """ "no" if the first sentence contains a word for no, else "yes"; words are split at single spaces only."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if NEGATIVE_WORDS.intersection(words) else "yes"


def score(data: str | Path, answers: str | Path, allow_errors: int = 0, questions: str | Path | None = None) -> Score:
    """Scores against ``llava_pope_test.jsonl`` and ``coco/coco_pope_*.json``.

    questions: the question file; ``data`` is then the folder of the labels, as LLaVA's ``eval_pope`` has it.
    """
    folder, path = (Path(data), QUESTIONS.find(questions)) if questions else (Path(data) / "coco", QUESTIONS.find(data))
    labels = _read_labels(folder.expanduser())
    positions = _positions(read_jsonl(path), path)
    _check_same_questions(positions, labels, path, folder)
    expected = {question_id: labels[place[0]][place[1]] for question_id, (place, _) in positions.items()}
    read = read_answers(answers, allow_errors)
    for answer in read.readable:
        if answer.question_id not in positions:
            raise ScoreError(f"{answers}: question id {answer.question_id!r} is not in the question file {path}")
    replies, coverage = read.join(positions, lambda answer: answer.question_id, path)
    coverage = check_prompts(replies.items(), lambda key: positions[key][1].get("text"), coverage, path)
    items = [_item(answer, positions[key][0], expected[key]) for key, answer in replies.items()]
    return _summary(items, labels, coverage, answers)


def _read_labels(annotation_dir: Path) -> dict[str, list[Record]]:
    """Category -> labelled questions, in the file's order."""
    files = sorted(annotation_dir.glob("coco_pope_*.json"))
    if not files:
        raise ScoreError(f"{annotation_dir} has no coco_pope_*.json: expected adversarial, popular and random")
    labels = {path.stem.removeprefix("coco_pope_"): read_jsonl(path) for path in files}
    for path, entries in zip(files, labels.values(), strict=True):
        for number, entry in enumerate(entries, start=1):
            field(entry, "label", f"{path}, entry {number}", str)
    return labels


def _positions(questions: list[Record], path: Path) -> dict[Any, tuple[Place, Record]]:
    """Question id -> its position, and the question.

    Labels match questions by position inside a category, because the ids of the two files differ. Counting positions in
    the question file rather than the answer file keeps a missing answer from shifting all later ones.
    """
    counts: dict[str, int] = defaultdict(int)
    positions: dict[Any, tuple[Place, Record]] = {}
    for number, question in enumerate(questions, start=1):
        where = f"{path}, question {number}"
        category = field(question, "category", where, str)
        question_id = field(question, "question_id", where, (int, str))
        if question_id in positions:
            raise ScoreError(f"{path}: question id {question_id!r} occurs twice; answers could not be told apart")
        positions[question_id] = ((category, counts[category]), question)
        counts[category] += 1
    return positions


def _check_same_questions(
    positions: dict[Any, tuple[Place, Record]], labels: dict[str, list[Record]], path: Path, folder: Path
) -> None:
    """Position joins questions and labels, so both files must list the same questions, as far as they tell."""
    remedy = f"use the labels of {RELEASE}, which the published scores used"
    for category, count in Counter(category for (category, _), _ in positions.values()).items():
        found, file = len(labels.get(category, ())), folder / f"coco_pope_{category}.json"
        if found != count:
            raise ScoreError(
                f"{path} has {count} questions of category {category!r}, and {file} {found} labels; {remedy}"
            )
    for (category, place), question in positions.values():
        label = labels[category][place]
        picture, other = question.get("image"), label.get("image")
        asks, labelled = str(question.get("text") or ""), str(label.get("text") or "")
        if (picture and other and picture != other) or (asks and labelled and not holds(asks, labelled)):
            raise ScoreError(
                f"{path} and {folder} differ at question {place + 1} of {category!r}: {picture}, {asks!r} is asked and"
                f" {other}, {labelled!r} labelled; {remedy}"
            )


def _item(answer: Answer, place: Place, label: Record) -> dict[str, Any]:
    return {"question_id": answer.question_id, "category": place[0], "place": place[1],
            "parsed": parse_reply(answer.reply), "label": label["label"]}  # fmt: skip


def _confusion(items: list[dict[str, Any]]) -> dict[str, float]:
    """Counts and rates of one category; every label other than "no" is positive."""
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


def _summary(items: list[dict[str, Any]], categories: Iterable[str], coverage: Coverage, answers: str | Path) -> Score:
    per_category = {}
    for category in sorted(categories):
        replies = [item for item in items if item["category"] == category]
        if not replies:
            raise ScoreError(f"{answers} has no answer in category {category!r}: is it POPE's answer file?")
        per_category[category] = _confusion(replies)
    errors = {category: _errors(row) for category, row in per_category.items()}
    means = {rate: mean([row[rate] for row in per_category.values()]) for rate in RATES}
    mean_errors = {rate: mean_of_independent([row[rate] for row in errors.values()]) for rate in RATES}
    n = sum(int(row["samples"]) for row in per_category.values())
    rows = [(category, int(row["samples"]), *(100 * row[rate] for rate in RATES), 100 * errors[category]["f1"])
            for category, row in per_category.items()]  # fmt: skip
    rows.append(("mean", n, *(100 * means[rate] for rate in RATES), 100 * mean_errors["f1"]))
    absent = [
        f"no labels of category {category}: the mean is not that of all three"
        for category in ("adversarial", "popular", "random") if category not in per_category
    ]  # fmt: skip
    return Score(
        benchmark="pope",
        metrics={"per_category": per_category, "mean_over_categories_derived": means},
        stderr={"per_category": errors, "mean_over_categories_derived": mean_errors},
        n=n,
        headline=Headline("F1", 100 * means["f1"], 100 * mean_errors["f1"]),
        table=Table(("category", "n", "accuracy", "precision", "recall", "F1", "yes", "F1 s.e."), tuple(rows)),
        coverage=coverage,
        notes=(*absent, *coverage.notes("they are left out")),
        items=items,
    )
