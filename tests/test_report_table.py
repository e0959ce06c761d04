"""The comparison fits a terminal and says what the records say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vlm_pruner.experiments.arms import Arm, make_arms
from vlm_pruner.experiments.statistics import mean_of, mean_over, paired_difference, proportion
from vlm_pruner.experiments.summary import summarise
from vlm_pruner.report.comparison import comparison_table, difference_table
from vlm_pruner.report.table import render, split_columns

KINDS = ["existence", "attribute", "count", "relation", "reading", "choice"]
NAMES = ["dense", "random", "vlm-pruner-16", "vlm-pruner"]


def make_records(arms: list[Arm], kinds: list[str], per_kind: int = 50) -> list[dict[str, Any]]:
    """The i-th arm misses every (i + 2)-th question; pruned arms take half the time."""
    return [
        {
            "arm": arm.key,
            "question_id": number,
            "kind": kinds[number % len(kinds)],
            "correct": number % (index + 2) != 0,
            "seconds": 0.2 if arm.method is None else 0.1,
            "kv_bytes": 12_345_678,
            "kept": arm.tokens,
        }
        for index, arm in enumerate(arms)
        for number in range(per_kind * len(kinds))
    ]


def test_the_default_comparison_fits_80_columns() -> None:
    arms = make_arms(NAMES, [192, 128, 64], 576)
    summaries = summarise(arms, make_records(arms, KINDS))
    table = comparison_table(summaries)
    assert len(table.splitlines()) == 1 + len(arms), "one table, not split"
    for line in (table + "\n" + difference_table(summaries)).splitlines():
        assert len(line) <= 80, line


@pytest.mark.parametrize("width", [60, 80])
def test_kinds_that_do_not_fit_follow_in_another_table(width: int) -> None:
    kinds = [f"kind-number-{i}" for i in range(9)]
    arms = make_arms(NAMES, [64], 576)
    table = comparison_table(summarise(arms, make_records(arms, kinds)), width=width)
    assert all(len(line) <= width for line in table.splitlines())
    assert all(table.count(kind) == 1 for kind in kinds)


def test_figures_are_those_of_the_records() -> None:
    arms = make_arms(["dense", "random"], [64], 576)
    dense, pruned = summarise(arms, make_records(arms, ["a", "b"], per_kind=6))
    assert dense.accuracy.mean == 0.5 and dense.difference is None and dense.relative_time == 1
    assert pruned.relative_time == 0.5 and pruned.kept == 64 and pruned.kv_bytes == 12_345_678
    assert pruned.accuracy.n == 12
    assert pruned.difference is not None
    assert pruned.difference.mean == pytest.approx(pruned.accuracy.mean - dense.accuracy.mean)


def test_kinds_stand_in_the_order_that_is_asked_for() -> None:
    arms = make_arms(["dense", "random"], [64], 576)
    records = make_records(arms, ["c", "a", "b"], per_kind=4)
    for summary in summarise(arms, records[::-1], ["a", "b", "c", "none of this kind"]):
        assert list(summary.kinds) == ["a", "b", "c"]
        assert all(estimate.n == 4 for estimate in summary.kinds.values())


def test_an_arm_that_missed_questions_is_refused() -> None:
    arms = make_arms(["dense", "random"], [64], 576)
    with pytest.raises(ValueError, match="random@64 answered 11 questions and dense@576 12"):
        summarise(arms, make_records(arms, ["a", "b"], per_kind=6)[:-1])


def test_standard_errors() -> None:
    assert proportion([True] * 9 + [False]).standard_error == pytest.approx(math.sqrt(0.9 * 0.1 / 10))
    assert mean_of([1.0, 2.0, 3.0]).standard_error == pytest.approx(math.sqrt(1 / 3))
    both = mean_over([proportion([True, False]), proportion([True, True])])
    assert both.mean == 0.75 and both.standard_error == pytest.approx(math.sqrt(0.25 / 2) / 2)


def test_a_paired_difference_is_surer_than_two_accuracies() -> None:
    """The same questions are hard for both: the difference is exact though either accuracy is not."""
    outcome = {number: number % 3 == 0 for number in range(30)}
    difference = paired_difference(outcome, outcome, dict.fromkeys(outcome, "only"))
    assert difference.mean == 0 and difference.standard_error == 0
    assert proportion(list(outcome.values())).standard_error > 0.05


def test_render_refuses_a_ragged_row() -> None:
    with pytest.raises(ValueError, match="1 cells and the header 2"):
        render(["a", "b"], [["only one"]])


def test_split_columns_never_exceeds_the_room_unless_one_column_does() -> None:
    assert split_columns([5, 5, 5], 12) == [[0, 1], [2]]
    assert split_columns([50, 5], 12) == [[0], [1]]
