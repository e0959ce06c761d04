"""The table of a comparison, from hand-made cells."""

from __future__ import annotations

import pytest

from tests.test_project_journal import questions
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.experiments.arms import Arm, ModelFacts, make_arms
from vlm_pruner.experiments.bootstrap import Interval
from vlm_pruner.experiments.verdicts import BETTER, UNCLEAR, WORSE, Cell, Difference, Rules, judge
from vlm_pruner.report import compare_table

FACTS = ModelFacts(576, DecoderShape(layers=32, hidden=64, intermediate=96, heads=2, key_value_heads=2, head_size=32))


def interval(mean: float, half: float) -> Interval:
    return Interval(mean, mean - half, mean + half, 60, 0.5)


def cell(arm: Arm, accuracy: float, half: float, difference: float | None = None, verdict: str = UNCLEAR) -> Cell:
    kinds = {kind: interval(accuracy, 2 * half) for kind in ("existence", "reading")}
    against = {}
    if difference is not None:
        own = {kind: interval(difference, half) for kind in kinds}
        against = {"dense": Difference(interval(difference, half), own, 1.0, verdict)}
    return Cell("mini", arm, interval(accuracy, half), kinds, None, against)


def cells() -> list[Cell]:
    dense, *arms = make_arms(["dense", "random", "divprune"], [192, 64, 16], FACTS)
    made = [cell(dense, 0.8, 0.05)]
    for arm, (accuracy, verdict) in zip(arms, [(0.6, WORSE), (0.9, BETTER), (0.75, UNCLEAR)] * 2, strict=True):
        made.append(cell(arm, accuracy, 0.08, accuracy - 0.8, verdict))
    return made


def test_the_table_shows_costs_and_verdicts():
    text = compare_table.terminal(cells())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 and lines[0] == "mini, n = 60"
    assert lines[2].split() == ["dense", "576", "100%", "80.0"]
    assert "-- 192 tokens" in lines
    first = next(line for line in lines if line.startswith("random"))
    assert first.split()[:2] == ["random", "216"]  # (2 x 576 + 30 x 192) / 32
    assert first.endswith("-20.0 [-28.0,-12.0]-")
    assert text.count("]+") == 2 and text.count("]~") == 2
    assert "| +10.0 [+2.0, +18.0] better |" in compare_table.markdown(cells())


def test_a_missing_answer_is_an_error_and_not_a_wrong_one():
    asked = questions()
    dense = make_arms(["dense"], [], FACTS)
    records = [
        {"arm": "dense@576", "benchmark": "b", "question_id": q.question_id, "correct": True, "text": "x"}
        for q in asked
    ]
    assert judge(dense, {"b": asked}, records, Rules(resamples=20))[0].accuracy.mean == 1
    with pytest.raises(ValueError, match="dense@576 has not answered 1 of 10 questions of b"):
        judge(dense, {"b": asked}, records[1:], Rules(resamples=20))
