"""GQA: exact match of the reply with the balanced test-dev answer, in total and per type of question."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Coverage, Headline, Score, Table
from vlm_pruner.scoring.needs import GUIDE, File, Needs
from vlm_pruner.scoring.records import Answer, field, id_of, read_answers, read_json
from vlm_pruner.scoring.release import check_prompts
from vlm_pruner.scoring.stats import binomial_stderr, ratio

LABELS = File(
    "data/testdev_balanced_questions.json", "GQA (questions1.2.zip)", 12578,
    others=("data/*questions*.json", "*questions*.json"),
)  # fmt: skip
NEEDS = Needs(
    folder="gqa", script="gqa",
    questions=File("llava_gqa_testdev_balanced.jsonl", GUIDE, 12578),
    labels=(LABELS,), pictures=("data/images",), picture_files=File("data/images", "GQA (images.zip)"),
)  # fmt: skip

Group = dict[str, float]


def parse_reply(text: str) -> str:
    """Removes trailing full stops, then lower-cases; nothing else, so "Yes. ." stays wrong."""
    return text.rstrip(".").lower()


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Scores against ``data/testdev_balanced_questions.json``; a question without an answer line is wrong."""
    path = LABELS.find(data)
    questions = read_json(path, dict)
    replies, coverage = read_answers(answers, allow_errors).join(questions, id_of, path)
    items = [
        _item(name, question, replies.get(name), f"{path}, question {name!r}") for name, question in questions.items()
    ]
    coverage = check_prompts(replies.items(), lambda name: questions[name].get("question"), coverage, path)
    return _summary(items, coverage)


def _item(name: str, question: object, reply: Answer | None, where: str) -> dict[str, Any]:
    types = field(question, "types", where, dict)
    parsed = None if reply is None else parse_reply(reply.reply)
    return {"question_id": name, "parsed": parsed, "correct": parsed == field(question, "answer", where, str),
            "structural": field(types, "structural", where, str),
            "semantic": field(types, "semantic", where, str)}  # fmt: skip


def _group(items: list[dict[str, Any]]) -> Group:
    return {"count": len(items), "accuracy": ratio(sum(item["correct"] for item in items), len(items))}


def _by(items: list[dict[str, Any]], key: str) -> dict[str, Group]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        groups[item[key]].append(item)
    return {name: _group(groups[name]) for name in sorted(groups)}


def _error(group: Group) -> float:
    return binomial_stderr(group["accuracy"], int(group["count"]))


def _errors(groups: dict[str, Group]) -> dict[str, Group]:
    return {name: {"accuracy": _error(group)} for name, group in groups.items()}


def _summary(items: list[dict[str, Any]], coverage: Coverage) -> Score:
    total = _group(items)
    halves = {
        "binary": _group([item for item in items if item["structural"] != "query"]),
        "open": _group([item for item in items if item["structural"] == "query"]),
    }
    types = {"per_structural_type": _by(items, "structural"), "per_semantic_type": _by(items, "semantic")}
    groups = {"all": total, **halves, **types["per_structural_type"], **types["per_semantic_type"]}
    rows = [(name, int(one["count"]), 100 * one["accuracy"], 100 * _error(one)) for name, one in groups.items()]
    return Score(
        benchmark="gqa",
        metrics={**total, "correct": sum(item["correct"] for item in items), **halves, **types},
        stderr={
            "accuracy": _error(total),
            **_errors(halves),
            **{kind: _errors(by_type) for kind, by_type in types.items()},
        },
        n=len(items),
        headline=Headline("accuracy", 100 * total["accuracy"], 100 * _error(total)),
        table=Table(("type", "n", "accuracy", "s.e."), tuple(rows)),
        coverage=coverage,
        notes=coverage.notes("they count as wrong"),
        items=items,
    )
