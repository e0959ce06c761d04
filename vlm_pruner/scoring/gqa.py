"""GQA: exact match of the reply and the balanced test-dev answer, in all and per type of question."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Headline, Score, ScoreError, Table
from vlm_pruner.scoring.records import field, find_file, read_answers, read_json
from vlm_pruner.scoring.stats import binomial_stderr, ratio

Group = dict[str, float]


def parse_reply(text: str) -> str:
    """Trailing full stops removed, then lower case; nothing else, so that "Yes. ." stays wrong."""
    return text.rstrip(".").lower()


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Score against ``data/testdev_balanced_questions.json``; a question without an answer line is wrong."""
    path = find_file(
        data, ("data/testdev_balanced_questions.json", "data/*questions*.json", "*questions*.json"), "questions"
    )
    questions = read_json(path)
    read = read_answers(answers, allow_errors)
    replies = {str(line["question_id"]): parse_reply(str(field(line, "text", answers))) for line in read.lines
               if line.get("question_id") is not None}  # fmt: skip
    if not replies.keys() & questions.keys():
        raise ScoreError(f"{answers} answers none of the questions of {path}")
    items = [_item(name, question, replies.get(name)) for name, question in questions.items()]
    missing = sum(item["parsed"] is None for item in items)
    notes = (*read.notes, f"{missing} questions have no answer and count as wrong") if missing else read.notes
    return _summary(items, read.failed, notes)


def _item(name: str, question: dict[str, Any], parsed: str | None) -> dict[str, Any]:
    types = question["types"]
    return {"question_id": name, "parsed": parsed, "correct": parsed == question["answer"],
            "structural": types["structural"], "semantic": types["semantic"]}  # fmt: skip


def _group(items: list[dict[str, Any]]) -> Group:
    return {"count": len(items), "accuracy": ratio(sum(item["correct"] for item in items), len(items))}


def _by(items: list[dict[str, Any]], key: str) -> dict[str, Group]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        groups[item[key]].append(item)
    return {name: _group(groups[name]) for name in sorted(groups)}


def _error(group: Group) -> float:
    return binomial_stderr(group["accuracy"], int(group["count"]))


def _summary(items: list[dict[str, Any]], failed: int, notes: tuple[str, ...]) -> Score:
    total = _group(items)
    halves = {
        "binary": _group([item for item in items if item["structural"] != "query"]),
        "open": _group([item for item in items if item["structural"] == "query"]),
    }
    types = {"per_structural_type": _by(items, "structural"), "per_semantic_type": _by(items, "semantic")}
    rows = {"all": total, **halves, **types["per_structural_type"], **types["per_semantic_type"]}
    return Score(
        benchmark="gqa",
        metrics={**total, "correct": sum(item["correct"] for item in items), **halves, **types},
        stderr={
            "accuracy": _error(total),
            **{name: {"accuracy": _error(group)} for name, group in halves.items()},
            **{
                kind: {name: {"accuracy": _error(group)} for name, group in groups.items()}
                for kind, groups in types.items()
            },
        },
        n=len(items),
        headline=Headline("accuracy", 100 * total["accuracy"], 100 * _error(total)),
        table=Table(
            ("type", "n", "accuracy", "s.e."),
            tuple(
                (name, int(group["count"]), 100 * group["accuracy"], 100 * _error(group))
                for name, group in rows.items()
            ),
        ),
        failed=failed,
        notes=notes,
        items=items,
    )
