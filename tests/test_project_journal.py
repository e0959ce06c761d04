"""A killed run resumes where it stopped, and loses nothing that it had computed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.answering import rounds_of, run_timed
from vlm_pruner.experiments.arms import Arm, make_arms
from vlm_pruner.experiments.journal import Journal
from vlm_pruner.experiments.llava_answerer import Reply
from vlm_pruner.experiments.questions import Question, balanced_sample, read_questions
from vlm_pruner.linefile import LineFileError, read_lines
from vlm_pruner.methods import Pruner

HEADER = {"seed": 0}


class Stub:
    """Answers "yes"; is killed when it is asked for the `dies_at`-th time."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.calls: list[tuple[tuple[int, ...], Pruner | None]] = []
        self.dies_at = dies_at

    def answer(self, batch: Sequence[Question], method: Pruner | None) -> list[Reply]:
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append((tuple(question.question_id for question in batch), method))
        return [Reply(" Yes ", 0.1, 100, 64) for _ in batch]


def questions(count: int = 10) -> list[Question]:
    return [Question(i, Path("x.png"), "?", "ab"[i % 2], "yes" if i % 3 else "no") for i in range(count)]


def batches() -> list[list[Question]]:
    asked = questions()
    return [asked[0:4], asked[4:8], asked[8:10]]


def arms() -> list[Arm]:
    return make_arms(["dense", "random", "vlm-pruner"], [64, 32], 576)


def answer(path: Path, stub: Stub, header: dict[str, int] = HEADER) -> Journal:
    with Journal(path, header) as journal:
        run_timed(stub, rounds_of("b", batches(), arms(), journal.records), journal, lambda n: None)  # type: ignore[arg-type]
    return journal


def test_every_arm_answers_every_question_once(tmp_path: Path) -> None:
    journal = answer(tmp_path / "answers.jsonl", Stub())
    seen = [(record["arm"], record["question_id"]) for record in journal.records]
    assert sorted(seen) == sorted((arm.key, q.question_id) for arm in arms() for q in questions())
    assert all(record["correct"] == (record["question_id"] % 3 != 0) for record in journal.records)
    on_disk = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert on_disk == [HEADER, *journal.records]


@pytest.mark.parametrize("dies_at", [1, 4, 7, 11])
def test_a_killed_run_goes_on(tmp_path: Path, dies_at: int) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer(path, Stub(dies_at))
    left = len(path.read_text().splitlines()) - 1
    second = Stub()
    journal = answer(path, second)
    assert sum(len(ids) for ids, _ in second.calls[1:]) == len(arms()) * 10 - left  # the first call is the warm-up
    whole = answer(tmp_path / "whole.jsonl", Stub())
    assert sorted(map(str, journal.records)) == sorted(map(str, whole.records))


def test_records_outlive_a_process_that_is_killed_before_it_closes(tmp_path: Path) -> None:
    """A real kill between two batches: what was written is with the operating system, not in the process."""
    path = tmp_path / "answers.jsonl"

    def write_and_die() -> None:
        with Journal(path, HEADER) as journal:
            journal.write([{"question_id": 1}, {"question_id": 2}])
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=write_and_die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with Journal(path, HEADER) as journal:
        assert journal.records == [{"question_id": 1}, {"question_id": 2}]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Journal(path, HEADER) as journal:
        for header in (HEADER, {"seed": 1}):
            with pytest.raises(LineFileError, match="being written by another run"), Journal(path, header):
                pass
        journal.write([{"question_id": 1}])
    assert read_lines(path) == [HEADER, {"question_id": 1}]


def test_a_line_that_was_cut_is_answered_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer(path, Stub())
    text = path.read_text()
    path.write_text(text[:-20])
    second = Stub()
    journal = answer(path, second)
    assert len(second.calls) == 2 and len(second.calls[1][0]) == 2, "the batch whose last answer was cut"
    assert len({(r["arm"], r["question_id"]) for r in journal.records}) == len(arms()) * 10
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_run_with_other_settings_is_set_aside_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer(path, Stub())
    before = path.read_text()
    journal = answer(path, Stub(), {"seed": 1})
    assert journal.set_aside is not None and journal.set_aside.read_text() == before
    assert len(journal.records) == len(arms()) * 10


def test_arms_are_interleaved_and_take_turns(tmp_path: Path) -> None:
    stub = Stub()
    answer(tmp_path / "answers.jsonl", stub)
    count = len(arms())
    counted = stub.calls[1:]
    for turn, batch in enumerate(batches()):
        own = counted[turn * count : (turn + 1) * count]
        assert {ids for ids, _ in own} == {tuple(q.question_id for q in batch)}
        assert len({str(method) for _, method in own}) == count
    assert counted[0][1] is None and counted[count][1] is not None, "the dense model is not always first"


def test_random_draws_anew_for_every_batch() -> None:
    arm = make_arms(["random"], [64], 576)[0]
    assert arm.method_for(0) == arm.method != arm.method_for(1) == arm.method_for(1)
    other = make_arms(["random"], [64], 576, seed=1)[0]
    assert other.method_for(0) not in [arm.method_for(draw) for draw in range(100)]


@pytest.mark.parametrize(
    ("names", "budgets", "message"),
    [
        (["dense"], [577], "budget 577 is impossible: a picture has 576"),
        (["random"], [0], "budget 0 is impossible"),
        ([], [64], "no method to run"),
    ],
)
def test_impossible_arms_are_refused(names: list[str], budgets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_arms(names, budgets, 576)


def test_an_unknown_method_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(PruningError, match=r"unknown method 'best'.*vlm-pruner"):
        make_arms(["best"], [64], 576)


def test_a_sample_is_balanced_and_follows_the_seed() -> None:
    many = [Question(i, Path("x.png"), "?", "aaab"[i % 4], "yes") for i in range(80)]
    sample = balanced_sample(many, 30, seed=1)
    assert [q.kind for q in sample].count("b") == 15
    assert sample == balanced_sample(many, 30, seed=1) != balanced_sample(many, 30, seed=2)
    assert [q.question_id for q in sample] == sorted(q.question_id for q in sample)
    assert len(balanced_sample(many, 50, seed=1)) == 50, "20 of kind b are all there are; kind a fills the gap"
    with pytest.raises(ValueError, match="cannot draw 81 questions: there are 80"):
        balanced_sample(many, 81, seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "line 2 is not a question"),
        ("[1, 2]", "line 2 is not a question"),
        ('{"question_id": 2, "image": "a.png", "text": "?", "kind": "count"}', "line 2 lacks the field 'answer'"),
        ('{"question_id": 1, "image": "a", "text": "?", "kind": "count", "answer": "1"}', "question_id 1 occurs twice"),
    ],
)
def test_a_broken_question_file_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    good = '{"question_id": 1, "image": "a.png", "text": "?", "kind": "count", "answer": "1"}'
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{good}\n{text}\n")
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_a_missing_or_empty_question_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="question file not found"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_questions(tmp_path / "empty.jsonl")
