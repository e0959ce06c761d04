"""A stranger's pictures, questions and model, of any family: what docs/own_data.md promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers.utils import is_torchvision_available

from tests import checkpoints, llava_tiny, tiny_llava_next, tiny_llava_qwen, tiny_qwen
from tests.versions import skip_before
from vlm_pruner import cli
from vlm_pruner.console import wrapped
from vlm_pruner.experiments import opening
from vlm_pruner.experiments.arms import make_arms
from vlm_pruner.experiments.questions import Question, read_questions

HERE = [name for name in checkpoints.HF if name != "mistral3" or is_torchvision_available()]
ORIGINAL = ["llava_original", "llava_next_original", "llava_qwen_original"]


def write_model(folder: Path, family: str) -> Path:
    """A checkpoint of the family, in transformers' layout or LLaVA's original one."""
    if family not in ORIGINAL:
        return checkpoints.write(folder, family)
    if family == "llava_original":
        written = llava_tiny.write_original(folder)
    elif family == "llava_qwen_original":
        written = tiny_llava_qwen.write(folder)
    else:
        written = tiny_llava_next.write_original(tiny_llava_next.tiny_llava_next(), folder)
    llava_tiny.write_tokenizer(written)
    return written


def write(folder: Path, lines: list[dict[str, Any]], size: tuple[int, int] = (140, 100)) -> Path:
    (folder / "images" / "sub").mkdir(parents=True)
    for number in range(3):
        name = f"{number}.png" if number < 2 else "sub/2.png"
        llava_tiny.picture(number).resize(size).save(folder / "images" / name)
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "questions.jsonl"


def free(number: int) -> dict[str, Any]:
    image = ["0.png", "1.png", "sub/2.png"][number % 3]
    return {"image": image, "text": "What is there", "answer": "w1", "match": "contains"}


@pytest.mark.parametrize("family", [*HERE, *ORIGINAL])
def test_compare_and_report_with_any_family(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two commands from pictures to a page. Most checkpoints have processor_config.json alone, as saved today.

    A smaller picture is shown where its tokens follow from its size, and refused with model and reason elsewhere.
    """
    model = write_model(tmp_path / "model", family)
    assert family in ORIGINAL or (model / "preprocessor_config.json").exists() == (family not in checkpoints._WORDS)
    questions, out = write(tmp_path / "mine", [free(number) for number in range(4)]), tmp_path / "out"
    command = ["compare", "--model", str(model), "--questions-file", str(questions), "--out", str(out)]
    methods = "dense,blind,resize,pool,random:layer=1,vlm-pruner:layer=1"
    command += ["--methods", methods, "--budget", "5,ratio:0.5", "--time-questions", "1"]
    assert cli.main([*command, "--processes", "1", "--resamples", "50"]) == 0, capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()][1:]
    kept = {record["arm"]: len(record["kept"]) for record in records if record["kept"] is not None}
    assert kept["random:layer=1@5"] == kept["vlm-pruner:layer=1@5"] == 5
    assert len(results["items"]) == 4
    arms = {arm["key"] for arm in results["arms"]}
    assert all(0 <= record["confidence"] <= 1 for record in records)
    assert {"dense", "blind", "pool"} <= {key.partition("@")[0] for key in arms}
    assert len(records) == 4 * len(arms)
    resized = [arm for arm in results["arms"] if arm["name"] == "resize"]
    if family in (*tiny_qwen.FAMILIES, "llava_original"):
        assert not results["not_run"] and len(resized) >= 2
        assert "Prune or resize" in results["prune_or_resize"][0]["verdict"]
        printed = (out / "table.txt").read_text()
        assert wrapped(results["prune_or_resize"][0]["verdict"], "  ") in printed
        assert ("which was not timed apart" in " ".join(printed.split())) == (family in tiny_qwen.FAMILIES)
        small = next(arm for arm in resized if arm["key"] == "resize@5")
        assert small["tokens"] in (4, 5) and small["steps"] == [[0, small["tokens"]]]
    else:
        assert {one["name"] for one in results["not_run"]} == {"resize"} and not resized
        reasons = {one["reason"] for one in results["not_run"]}
        assert len(reasons) == 1 and str(model) in (reason := reasons.pop()) and "ForC" in reason
        assert ("tiles" in reason) == (family not in ("llava", "mistral3")), reason
    assert cli.main(["report", str(out), "-o", str(tmp_path / "page.html")]) == 0
    assert "4 items, 3 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("family", tiny_qwen.FAMILIES)
def test_pictures_of_any_size_become_smaller_and_the_dense_arm_stays(family: str, tmp_path: Path) -> None:
    """Each picture keeps its shape and has its own number of tokens, as pruning by a ratio leaves it."""
    skip_before("5.18", "its Qwen processors need torchvision")
    questions = read_questions(write(tmp_path / "mine", [free(0), free(1)]))
    Image.new("RGB", (60, 130)).save(questions[1].image)
    answerer = opening.load(checkpoints.write(tmp_path / "model", family), "cpu")
    facts = answerer.facts(questions)
    dense = [reply.kept for reply in answerer.answer(questions, None)]
    assert facts.any_size and len(set(dense)) == 2
    half, five = (make_arms(["resize"], [budget], facts)[0] for budget in ("ratio:0.5", "5"))
    for kept, whole in zip((reply.kept for reply in answerer.answer(questions, None, half.shown)), dense, strict=True):
        assert 0.35 * whole <= kept <= round(whole / 2)
    assert all(3 <= reply.kept <= 5 for reply in answerer.answer(questions, None, five.shown))
    assert [reply.kept for reply in answerer.answer(questions, None)] == dense
    (timed,) = answerer.answer(questions[:1], None, five.shown, exactly=7)
    assert timed.tokens == 7
    costly = make_arms(["resize"], ["flops:0.6"], facts)[0]
    assert costly.accounting.flops_share <= 0.6 < facts.account_resized(costly.tokens + 1).flops_share


def test_answers_are_those_of_ask(tmp_path: Path) -> None:
    """An experiment with a family of transformers' and `ask` are one way of asking."""
    from vlm_pruner import asking, methods

    model = checkpoints.write(tmp_path / "model", "qwen2_vl")
    (question, *_) = read_questions(write(tmp_path / "mine", [free(0)]))
    method = methods.get("vlm-pruner")(keep_tokens=5, layer=1)
    (reply,) = opening.load(model, "cpu").answer([question], method)
    said = asking.load(model).ask(Image.open(question.image).convert("RGB"), question.text, method, max_new_tokens=16)
    assert (reply.text, reply.kept) == (said.text, 5) and reply.receipt is not None
    assert reply.receipt.indices == said.images[0].indices


@pytest.mark.parametrize(
    ("match", "answer", "right", "wrong"),
    [
        ("exact", "a cup", ["A cup ", "a cup"], ["a cup.", "cup"]),
        ("letter", "B", ["B", "(b)", "B. a cup", "b)"], ["A", "because", "Both", "AB", ""]),
        ("contains", "a cup", ["It is a cup, I think.", "A CUP"], ["a cupboard", "cup", ""]),
    ],
)
def test_what_counts_as_right(match: str, answer: str, right: list[str], wrong: list[str]) -> None:
    question = Question(1, Path("a.png"), "?", "free", answer, match)
    assert all(question.accepts(given) for given in right)
    assert not any(question.accepts(given) for given in wrong)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image": "../secret.png"}, "leaves the folder images/"),
        ({"image": "/etc/passwd"}, "leaves the folder images/"),
        ({"match": "fuzzy"}, "match 'fuzzy' is not one of exact, letter, contains"),
        ({"match": "letter"}, "is not a single letter"),
        ({"question_id": "abc"}, "line 1 is not a question"),
        ({"image": "nowhere.png"}, "no picture"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named_before_a_model_loads(
    change: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = write(tmp_path / "mine", [{**free(0), **change}])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    command = ["compare", "--model", str(tmp_path / "model"), "--questions-file", str(questions)]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 2
    assert expected in capsys.readouterr().err


def test_ids_and_kinds_may_be_left_out(tmp_path: Path) -> None:
    first, second = read_questions(write(tmp_path / "mine", [free(0), free(1)]))
    assert (first.question_id, second.question_id, first.kind) == (1, 2, "all")
