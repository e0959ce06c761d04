"""The paper's numbers as shipped: complete, consistent with their own averages, and flagged where they are not."""

from __future__ import annotations

import pytest

from vlm_pruner.report import paper_numbers
from vlm_pruner.report.paper_numbers import COLUMNS, average, paper_rows, recompute
from vlm_pruner.report.paper_render import as_csv, markdown, terminal
from vlm_pruner.report.paper_table import model_tables


def row(model: str, budget: str, method: str) -> paper_numbers.PaperRow:
    [found] = [row for row in paper_rows() if (row.model, row.budget, row.method) == (model, budget, method)]
    return found


def test_everything_is_shipped():
    assert len(paper_rows()) == 48
    whole = [row for row in paper_rows() if row.scores]
    assert len(whole) == 32 and all(set(row.scores) == set(COLUMNS) for row in whole)
    assert row("LLaVA-1.5-7B", "64", "VLM-Pruner").scores["pope"] == 82.2


def test_ways_to_say_a_budget_meet():
    kept = {row.kept for row in paper_rows() if row.model == "LLaVA-1.5-7B"}
    assert kept == {100.0, 33.3, 22.2, 11.1}
    assert row("Qwen2-VL-7B", "88.9 % removed", "DART").kept == row("LLaVA-NeXT-7B", "11.1 %", "DART").kept == 11.1


def test_printed_averages_follow_from_the_printed_numbers_but_for_two():
    again = [found for found in map(recompute, paper_rows()) if found is not None]
    assert len(again) == 32
    parting = {(a.row.model, a.row.budget, a.row.method): round(a.from_printed, 2) for a in again if a.parts}
    assert parting == {("LLaVA-1.5-7B", "128", "MustDrop"): 94.79, ("LLaVA-1.5-13B", "64", "DivPrune"): 90.01}


def test_printed_averages_of_13b_use_the_misprinted_bound():
    for found in filter(None, map(recompute, paper_rows())):
        moved = abs(found.meant - found.from_printed) > 0.005
        assert moved == (found.row.model == "LLaVA-1.5-13B" and found.row.method != "dense")
    again = recompute(row("LLaVA-1.5-13B", "64", "VLM-Pruner"))
    assert again is not None and again.meant == pytest.approx(96.51, abs=0.005)


def test_misprints_are_flagged_in_every_format():
    tables = model_tables([], ["LLaVA-1.5-13B"])
    for text in (terminal(tables), markdown(tables)):
        assert "2826!" in text and "1826 is meant" in " ".join(text.split()) and "92.68!" in text
    dense, *others = as_csv(tables).splitlines()[1:]
    assert ",2826.0," in dense and dense.endswith(",MME") and all(line.endswith(",Avg") for line in others)


def test_no_average_without_all_nine():
    scores = dict(row("LLaVA-1.5-7B", "64", "VLM-Pruner").scores)
    bounds = dict(row("LLaVA-1.5-7B", "576", "dense").scores)
    assert average(scores, bounds) == pytest.approx(95.61, abs=0.005)
    assert average({**scores, "mme": 0.0}, bounds) is not None, "a score of zero is a score"
    del scores["mme"]
    assert average(scores, bounds) is None
    assert average(bounds, {**bounds, "mme": 0.0}) is None
