"""The timed comparison fits a terminal and says what the records say."""

from __future__ import annotations

from typing import Any

import pytest

from vlm_pruner.experiments.arms import Arm, make_arms
from vlm_pruner.experiments.questions import Question
from vlm_pruner.experiments.timings import measure
from vlm_pruner.experiments.verdicts import Rules, judge
from vlm_pruner.report.compare_table import terminal
from vlm_pruner.report.table import blocks, markdown, render

KINDS = ["existence", "attribute", "count", "relation", "reading", "choice"]
NAMES = ["dense", "random", "vlm-pruner-16", "vlm-pruner"]


def make_records(arms: list[Arm], kinds: list[str], per_kind: int = 20) -> list[dict[str, Any]]:
    """The i-th arm misses every (i + 2)-th question; pruned arms take half the time."""
    return [
        {
            "arm": arm.key,
            "benchmark": "mini",
            "question_id": number,
            "kind": kinds[number % len(kinds)],
            "correct": number % (index + 2) != 0,
            "text": "yes",
            "seconds": 0.2 if arm.method is None else 0.1,
            "kv_bytes": 12_345_678,
            "kept": None if arm.method is None else list(range(arm.tokens)),
        }
        for index, arm in enumerate(arms)
        for number in range(per_kind * len(kinds))
    ]


def test_the_default_demo_fits_80_columns_and_shows_times_and_memory(tmp_path) -> None:
    arms = make_arms(NAMES, [192, 128, 64], 576)
    records = make_records(arms, KINDS)
    asked = [Question(r["question_id"], tmp_path / "x.png", "?", r["kind"], "yes") for r in records[: 20 * len(KINDS)]]
    cells = judge(arms, {"mini": asked}, records, Rules(resamples=50, references=("dense",)))
    timed, plain = terminal(cells, measure(arms, records)), terminal(cells)
    assert max(map(len, timed.splitlines())) <= 80
    assert timed.splitlines()[1].split() == ["method", "acc", "loyal", "time", "KV", "MB", "-", "dense"]
    assert timed.splitlines()[2].split() == ["dense", "50.0", "1.00", "12.35"]
    assert timed.splitlines()[4].split()[:5] == ["random", "66.7", "100", "0.50", "12.35"]
    assert "KV MB" not in plain and "- random" not in timed


def test_times_are_means_and_paired_medians() -> None:
    arms = make_arms(["dense", "random"], [64], 576)
    records = make_records(arms, ["a", "b"], per_kind=6)
    records[0]["seconds"] = 100.0  # one slow moment of the dense model's
    dense, pruned = measure(arms, records).values()
    assert (dense.relative_time, pruned.relative_time) == (1, 0.5) and dense.seconds > 8
    assert (dense.kept, pruned.kept, pruned.kv_bytes) == (576, 64, 12_345_678)
    assert measure(arms[1:], records)["random@64"].relative_time is None


def test_columns_that_nobody_fills_are_left_out() -> None:
    header, rows = ["", "empty", "full"], [["a", "", "1"], ["", "", ""]]
    assert render(header, rows).split() == ["full", "a", "1"]
    assert markdown(header, rows).splitlines() == ["|  | full |", "| --- | --- |", "| a | 1 |", "|  |  |"]
    assert render(header, []).split() == ["empty", "full"]


def test_long_names_are_cut_so_that_lines_keep_the_width_and_settings_differ() -> None:
    names = [f"VLM-Pruner token_batch={n}" for n in (1, 16)]
    lines = blocks(
        ["method", "a", "b"], [("title", [name, "1" * 10, "2" * 10]) for name in names], width=40
    ).splitlines()
    assert lines[1] == "title" and {len(line) for line in lines if line != "title"} == {40}
    assert lines[2][18:] == lines[3][18:] and lines[2][:18] != lines[3][:18]


def test_render_refuses_a_ragged_row() -> None:
    with pytest.raises(ValueError, match="1 cells and the header 2"):
        render(["a", "b"], [["only one"]])
