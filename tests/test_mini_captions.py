"""Captions of mini scenes: facts are counted once each, and the comparison charges the whole response."""

from __future__ import annotations

import pytest

from playground.mini.captions import LENGTH, compare, facts, main, score, table, write
from playground.mini.train import CLIP
from vlm_pruner.experiments.arms import make_arms
from vlm_pruner.experiments.llava_answerer import LlavaAnswerer
from vlm_pruner.experiments.questions import read_questions

TRUE = "a small red star, a small red star, a large blue ring, number 472"


@pytest.mark.parametrize(
    ("said", "precision", "recall"),
    [
        (TRUE, 1.0, 1.0),
        ("number 472, a large blue ring, a small red star, a small  red star", 1.0, 1.0),  # order does not count
        ("A small red star , a large blue ring", 1.0, 0.5),
        ("a small red star, a small red star, a small red star, a small red star", 0.5, 0.5),
        ("a large red star, number 471", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_a_fact_counts_once_and_only_whole(said: str, precision: float, recall: float) -> None:
    found = score(said, TRUE)
    assert (found.precision, found.recall) == (precision, recall)


def test_captions_name_every_thing_and_fit(tmp_path) -> None:
    questions = read_questions(write(tmp_path, 6))
    answerer = LlavaAnswerer.load(CLIP.parent / "checkpoint", "cpu", LENGTH)
    lengths = [len(answerer.checkpoint.tokenizer(q.answer).input_ids) for q in questions]
    assert min(lengths) >= 20 and max(lengths) < LENGTH
    assert all(facts(q.answer).total() >= 7 for q in questions)


def test_a_method_that_keeps_everything_says_what_the_dense_model_says(tmp_path) -> None:
    questions = read_questions(write(tmp_path, 2))
    answerer = LlavaAnswerer.load(CLIP.parent / "checkpoint", "cpu", 24)
    arms = make_arms(["dense", "random"], ["576", "64"], answerer.facts(questions))
    dense, whole, pruned = compare(answerer, questions, arms, 50)
    assert dense["precision"] == whole["precision"] and dense["facts"] == whole["facts"]
    assert pruned["cache KiB"] < dense["cache KiB"] and "random" in table([dense, whole, pruned])


def test_the_command_writes_what_it_prints(tmp_path, capsys) -> None:
    model = str(CLIP.parent / "checkpoint")
    main(["--model", model, "--scenes", "1", "--methods", "dense", "--data", str(tmp_path), "--out", f"{tmp_path}/o"])
    assert '"recall"' in (tmp_path / "o").read_text() and "precision" in capsys.readouterr().out


def test_the_embedded_model_names_what_is_there(tmp_path) -> None:
    """Through LLaVA's own forward, with the whole picture."""
    questions = read_questions(write(tmp_path, 3))
    answerer = LlavaAnswerer.load(CLIP.parent / "checkpoint", "cpu", LENGTH)
    (dense,) = compare(answerer, questions, make_arms(["dense"], [], answerer.facts(questions)), 50)
    assert dense["precision"][0] > 80 and dense["recall"][0] > 80
