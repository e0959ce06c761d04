"""Scoring commands: odd replies, input that must not be scored, standard errors, one-line errors."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_pope
from vlm_pruner.cli import main
from vlm_pruner.scoring import ScoreError, gqa, mmbench, mme, pope, scienceqa
from vlm_pruner.scoring.stats import binomial_stderr, f1_stderr, mean_of_independent, mean_stderr


@pytest.mark.parametrize(
    "reply", ["Not", "NO", "None", "Nope", "", "No!", ".No", "No\nthere is none", "No\u00a0", "Yes"]
)
def test_pope_odd_replies_mean_yes(reply: str) -> None:
    assert pope.parse_reply(reply) == "yes"


@pytest.mark.parametrize("reply", ["No", "no, it is", "I do not", "No.Yes", "There is, no"])
def test_pope_negative_words_mean_no(reply: str) -> None:
    assert pope.parse_reply(reply) == "no"


@pytest.fixture
def pope_world(tmp_path: Path) -> Path:
    """Two categories of four questions whose labels are yes, no, yes, no; every answer is right."""
    questions, answers = [], []
    (tmp_path / "coco").mkdir()
    for offset, category in ((0, "popular"), (100, "random")):
        labels = ["yes", "no", "yes", "no"]
        (tmp_path / "coco" / f"coco_pope_{category}.json").write_text(jsonl([{"label": label} for label in labels]))
        for place, label in enumerate(labels):
            questions.append({"question_id": offset + place, "category": category, "text": "?"})
            answers.append({"question_id": offset + place, "text": label, "metadata": {}})
    (tmp_path / "llava_pope_test.jsonl").write_text(jsonl(questions))
    (tmp_path / "answers.jsonl").write_text(jsonl(answers))
    return tmp_path


def jsonl(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def rewrite(path: Path, edit: Any) -> None:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(jsonl(edit(records)))


def test_pope_a_missing_answer_in_the_middle_does_not_shift_the_others(pope_world: Path) -> None:
    rewrite(pope_world / "answers.jsonl", lambda lines: lines[:1] + lines[2:])
    score = pope.score(pope_world, pope_world / "answers.jsonl")
    assert score.n == 7 and score.metrics["mean_over_categories_derived"]["accuracy"] == 1.0


def test_pope_of_two_lines_about_one_question_the_later_counts(pope_world: Path) -> None:
    rewrite(pope_world / "answers.jsonl", lambda lines: [{**lines[0], "text": "no"}, *lines])
    assert pope.score(pope_world, pope_world / "answers.jsonl").headline.value == 100.0
    rewrite(pope_world / "answers.jsonl", lambda lines: [*lines[1:], {**lines[1], "text": "no"}])
    assert pope.score(pope_world, pope_world / "answers.jsonl").headline.value < 100.0


@pytest.mark.parametrize(
    ("reply", "parsed"), [("Yes", "yes"), ("No..", "no"), ("yes ", "yes "), (" yes", " yes"), ("Yes. .", "yes. ")]
)
def test_gqa_replies_lose_final_full_stops_and_capitals_only(reply: str, parsed: str, tmp_path: Path) -> None:
    assert gqa.parse_reply(reply) == parsed
    types = {"structural": "verify", "semantic": "obj"}
    (tmp_path / "questions.json").write_text(json.dumps({"1": {"answer": parsed.strip(". "), "types": types}}))
    (tmp_path / "answers.jsonl").write_text(jsonl([{"question_id": "1", "text": reply}]))
    score = gqa.score(tmp_path, tmp_path / "answers.jsonl")
    assert score.metrics["accuracy"] == (parsed in ("yes", "no")), "official scripts strip nothing else"


def test_pope_all_no_has_an_f1_of_zero(pope_world: Path) -> None:
    rewrite(pope_world / "answers.jsonl", lambda lines: [{**line, "text": "no"} for line in lines])
    score = pope.score(pope_world, pope_world / "answers.jsonl")
    assert score.headline.value == 0.0


def test_failed_items_are_not_scored_silently(pope_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(
        pope_world / "answers.jsonl", lambda lines: [{**lines[0], "text": "", "error": "image is damaged"}, *lines[1:]]
    )
    flags = ["score", "pope", "--data", str(pope_world), "--answers", str(pope_world / "answers.jsonl")]
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert "1 of 8 items failed" in error and "image is damaged" in error and error.count("\n") == 1
    assert main([*flags, "--allow-errors", "1"]) == 0
    assert "1 of 8 items failed while generating and count as empty replies" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda lines: [], "holds no answers"),
        (lambda lines: [{**lines[0], "question_id": 77}], "question id 77 is not in the question file"),
        (lambda lines: lines[:4], "no answer in category 'random'"),
        (lambda lines: [{"question_id": 0}], "has no 'text'"),
    ],
)
def test_pope_input_that_cannot_be_scored(pope_world: Path, edit: Any, expected: str) -> None:
    rewrite(pope_world / "answers.jsonl", edit)
    with pytest.raises(ScoreError, match=expected):
        pope.score(pope_world, pope_world / "answers.jsonl")


def test_pope_repeated_question_ids_are_refused(pope_world: Path) -> None:
    rewrite(pope_world / "llava_pope_test.jsonl", lambda lines: [*lines, lines[0]])
    with pytest.raises(ScoreError, match="question id 0 occurs twice"):
        pope.score(pope_world, pope_world / "answers.jsonl")


def test_pope_compares_questions_and_labels_in_linear_time() -> None:
    """Counting each category once per question took five seconds for the benchmark's 8,910 questions."""
    sizes = {"adversarial": 3000, "popular": 3000, "random": 2910}
    places = [(category, place) for category, size in sizes.items() for place in range(size)]
    positions: dict[Any, Any] = {number: (place, {"text": "?"}) for number, place in enumerate(places)}
    labels = {category: [{"label": "yes", "text": "?"}] * size for category, size in sizes.items()}
    start = time.process_time()
    pope._check_same_questions(positions, labels, Path("questions"), Path("labels"))
    assert time.process_time() - start < 1, "CPU seconds; 0.02 on an idle core"


def test_mme_names_the_line_of_a_question_that_is_not_mmes(tmp_path: Path) -> None:
    (tmp_path / "MME_Benchmark" / "count").mkdir(parents=True)
    (tmp_path / "MME_Benchmark" / "count" / "0.txt").write_text("One?\tYes\nTwo?\tNo\n")
    answers = tmp_path / "answers.jsonl"
    for question_id, problem in (("chess/0.png", "begins with none of MME's subtasks"), ("count/1.png", "'1'")):
        answers.write_text(jsonl([{"question_id": question_id, "prompt": "One?", "text": "Yes"}]))
        with pytest.raises(ScoreError, match=f"^{answers}, line 1: .*{problem}"):
            mme.score(tmp_path, answers)


def test_the_fields_command_gives_the_same_result(pope_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pope_world / "answers.jsonl.meta.json").write_text('{"config": {"seed": 5}}')
    paths = ["--annotation-dir", str(pope_world / "coco"), "--question-file", str(pope_world / "llava_pope_test.jsonl")]
    paths += ["--result-file", str(pope_world / "answers.jsonl"), "--json", str(pope_world / "out.json")]
    assert eval_pope.main(paths) == 0
    assert "F1 100.00" in capsys.readouterr().out
    result = json.loads((pope_world / "out.json").read_text())
    assert result["run"] == {"config": {"seed": 5}} and result["n"] == 8
    assert result["metrics"] == pope.score(pope_world, pope_world / "answers.jsonl").metrics


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["score", "pope", "--data", "nowhere", "--answers", "x"], "nowhere is not a folder"),
        (["score", "chess", "--data", "x", "--answers", "x"], "invalid choice: 'chess'"),
        (["score", "pope"], "--data"),
        (["paint"], "invalid choice: 'paint'"),
    ],
)
def test_command_errors_are_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(arguments)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and expected in error and error.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["score"]])
def test_help_has_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    assert "examples:" in capsys.readouterr().out


def test_standard_errors_against_simulation() -> None:
    """The F1 formula against the spread of F1 in 4000 simulated runs of 500 questions, within 5 %."""
    import numpy

    generator = numpy.random.default_rng(0)
    shares = [0.4, 0.08, 0.4, 0.12]  # TP, FP, TN, FN
    draws = generator.multinomial(500, shares, size=4000)
    f1 = 2 * draws[:, 0] / (2 * draws[:, 0] + draws[:, 1] + draws[:, 3])
    assert f1_stderr(200, 100, 500) == pytest.approx(f1.std(), rel=0.05)
    accuracy = (draws[:, 0] + draws[:, 2]) / 500
    assert binomial_stderr(0.8, 500) == pytest.approx(accuracy.std(), rel=0.05)
    assert mean_of_independent([3.0, 4.0]) == 2.5
    assert mean_stderr([0.0, 1.0]) == pytest.approx(0.5)


def test_mme_counts_what_both_accuracies_of_a_picture_vary_by():
    """A subtask's score is the sum of two means over the same pictures, so its error comes from the pictures' sums."""
    pictures = [[True, True], [True, False], [False, False], [True, True]]
    row, errors = mme._subtask(pictures)
    sums = [200.0, 50.0, 0.0, 200.0]
    assert row["score"] == statistics.mean(sums)
    assert errors["score"] == pytest.approx(statistics.stdev(sums) / 2)
    assert errors["score"] > max(errors["acc"], errors["acc_plus"])


def test_mmbenchs_first_question_may_have_the_index_0(tmp_path: Path) -> None:
    """Its rotation then has the index 1000000, and belongs to the second pass."""
    header = "index\tquestion\tA\tB\tanswer\tcategory\tl2-category"
    rows = [f"{index}\tWhich?\tcat\tdog\t{answer}\tx\ty" for index, answer in ((0, "A"), (1_000_000, "B"))]
    (tmp_path / "dev.tsv").write_text("\n".join([header, *rows]) + "\n")
    lines = [{"question_id": index, "prompt": "Which?", "text": "A"} for index in (0, 1_000_000)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = mmbench.score(tmp_path / "dev.tsv", tmp_path / "answers.jsonl").metrics
    matching = metrics["vlmevalkit_exact_matching"]
    assert (metrics["exact_letter_accuracy"], metrics["exact_letter_accuracy_first_pass_rows"]) == (0.5, 1.0)
    assert (matching["circular_groups"], matching["circular"]["Overall"]) == (1, 0.0)


def test_scienceqa_has_no_choice_for_a_letter_beyond_a_questions_choices(tmp_path: Path) -> None:
    problem = {
        "question": "Which?",
        "choices": ["cat", "dog"],
        "answer": 1,
        "image": "x.png",
        "hint": "",
        "split": "test",
    }
    (tmp_path / "problems.json").write_text(json.dumps({"1": problem, "2": problem}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2"]}))
    lines = [{"question_id": pid, "prompt": "Which?", "text": text} for pid, text in (("1", "C"), ("2", "B"))]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = scienceqa.score(tmp_path, tmp_path / "answers.jsonl").items
    assert [item["predicted"] for item in items] == [-1, 1]
