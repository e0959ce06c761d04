"""Ablations, worlds and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vlm_pruner as vp
from playground.mini import variants
from tests import llava_tiny
from vlm_pruner import cli
from vlm_pruner.commands import ablate
from vlm_pruner.experiments.ablations import VARIATIONS, LargestKeyPivots, Variation, ablation_arms, by_key
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.bootstrap import Interval
from vlm_pruner.experiments.llava_answerer import LlavaAnswerer
from vlm_pruner.experiments.questions import Question
from vlm_pruner.experiments.verdicts import Rules, answerable, judge
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.report import results
from vlm_pruner.report.ablation_table import AblationRow, ablation_table


@pytest.fixture(scope="module")
def answerer(tmp_path_factory) -> LlavaAnswerer:
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = llava_tiny.write_original(folder, eos_token_id=2)
    llava_tiny.write_tokenizer(checkpoint)
    return LlavaAnswerer.load(checkpoint, "cpu")


def test_arms_of_the_ablations_differ_from_the_default_in_what_they_say():
    arms = ablation_arms(64, 576, token_batch=16)
    default = arms[1].method
    assert default == vp.CentrifugalPruner(keep_tokens=64, token_batch=16)
    for arm in arms[2:]:
        changed = {name for name, value in arm.method.config().items() if value != default.config()[name]}
        assert len(changed) == 1 or (type(arm.method) is LargestKeyPivots and not changed), arm.name
    assert "token batch: 16" not in {arm.name for arm in arms}
    assert "token batch: 16" in {arm.name for arm in ablation_arms(64, 576, token_batch=1)}


def test_pivots_beyond_the_budget_are_left_out():
    more, fewer = ({arm.name for arm in ablation_arms(budget, 576, token_batch=1)} for budget in (8, 6))
    assert more - fewer == {"pivots: 7", "pivots: 8"} and fewer < more


def test_largest_key_pivots_are_the_tokens_of_largest_keys():
    generator = torch.Generator().manual_seed(0)
    hidden, keys = torch.randn(30, 8, generator=generator), torch.randn(30, 6, generator=generator)
    selection = LargestKeyPivots(keep_tokens=9).select(hidden, keys, TokenLayout.grid(5, 6), 9)
    norms = [sum(abs(value) for value in row) for row in keys.tolist()]
    assert selection.pivots.tolist() == sorted(range(30), key=lambda i: -norms[i])[:4]


def interval(mean: float, low: float, high: float) -> Interval:
    return Interval(mean, low, high, 10, 0.5)


@pytest.mark.parametrize(
    ("paper", "difference", "verdict", "with_paper"),
    [
        (94.0, (-0.1, -0.2, -0.01), "worse", "agrees"),
        (94.0, (0.1, 0.02, 0.2), "better", "contradicts"),
        (95.62, (0.1, 0.02, 0.2), "better", "agrees"),
        (94.0, (0.1, -0.02, 0.2), "not distinguishable", ""),
        (None, (0.1, 0.02, 0.2), "better", ""),
    ],
)
def test_a_row_says_whether_the_paper_agrees(paper, difference, verdict, with_paper):
    row = AblationRow(40 * "x", Variation("g", "x", {}, paper), interval(0.5, 0.4, 0.6), interval(*difference), {})
    assert (row.verdict, row.with_paper) == (verdict, with_paper)
    assert all(len(line) <= 80 for line in ablation_table([row]).splitlines())


def test_another_batch_is_compared_with_the_paper_s_figure_of_that_batch():
    assert by_key(16)["token batch: 1"].paper_difference == 0.32
    assert by_key(1)["token batch: 16"].paper_difference == -0.32
    assert by_key(1)["pivots: 1"].paper_difference == by_key(16)["pivots: 1"].paper_difference == -0.94
    assert by_key(3)["token batch: 1"].paper_difference is None


def test_kinds_that_the_dense_model_guesses_are_left_out():
    image = Path("a.png")
    asked = [Question(i, Path(f"{i % 20}.png"), "?", "known", str(i % 4)) for i in range(40)]
    asked += [Question(100 + i, image, "?", "guessed", "yes" if i % 2 else "no") for i in range(40)]
    arms = [Arm("dense", 576), Arm("half", 9, vp.RandomPruner(keep_tokens=9))]
    right = {"dense@576": lambda q: q.kind == "known" or q.answer == "yes", "half@9": lambda q: q.question_id % 2 == 0}
    records = [
        {"arm": arm, "benchmark": "b", "question_id": q.question_id, "text": "", "correct": correct(q)}
        for arm, correct in right.items()
        for q in asked
    ]
    rules = Rules(resamples=200)
    kept, left_out = answerable(arms[0], {"b": asked}, records, rules)
    assert left_out == ["guessed"] and {q.kind for q in kept["b"]} == {"known"}
    assert judge(arms, kept, records, rules)[1].against["dense"].interval.mean == -0.5
    with pytest.raises(ValueError, match="no kind"):
        answerable(arms[0], {"b": asked[40:]}, records, rules)


def test_the_default_world_is_the_one_that_the_model_was_trained_on():
    """Same counts of things, signs and distractors as make_scene draws by itself for a full picture."""
    import numpy as np

    from playground.mini.world import GRID, TEST_GALLERY, _contents, gallery, make_scene

    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    drawn = _contents(again, GRID, GRID)
    world = variants.WORLDS["default"]
    ours = world.scene(rng)
    theirs = make_scene(again, gallery(TEST_GALLERY), contents=drawn)
    assert ours.image.tobytes() == theirs.image.tobytes()


@pytest.mark.parametrize("world", list(variants.WORLDS))
def test_worlds_differ_and_repeat_themselves(world, tmp_path):
    first = variants.write(tmp_path / "a", world, 2, 2, seed=7)
    again = variants.write(tmp_path / "b", world, 2, 2, seed=7)
    other = variants.write(tmp_path / "a", world, 2, 2, seed=8)
    text = (first / "questions.jsonl").read_text()
    assert text == (again / "questions.jsonl").read_text() != (other / "questions.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len({(line["image"], line["text"]) for line in lines}) == len(lines)
    things = [len(scene.things) for _, scene in variants.scenes(world, 4, 7)]
    assert variants.WORLDS[world].things[1] >= max(things)


def test_the_command_writes_a_table_and_json_and_goes_on(answerer, tmp_path, monkeypatch, capsys):
    """On a tiny checkpoint that answers nothing: what counts as right is replaced, all else is real."""
    monkeypatch.setattr(Question, "accepts", lambda self, text: True)
    monkeypatch.setattr(LlavaAnswerer, "load", classmethod(lambda cls, model, device: answerer))
    folder = tmp_path / "q"
    (folder / "images").mkdir(parents=True)
    for number in range(2):
        llava_tiny.picture(number).save(folder / "images" / f"{number}.png")
    lines = [
        {"question_id": i, "image": f"{i % 2}.png", "text": "w1", "kind": "existence", "answer": f"w{i}"}
        for i in range(8)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    command = ["ablate", "--questions", str(folder / "questions.jsonl"), "--budget", "9", "--model", str(model)]
    command += ["--out", str(tmp_path / "out")]
    with monkeypatch.context() as short:
        short.setattr("vlm_pruner.experiments.ablations.VARIATIONS", VARIATIONS[:4])
        with monkeypatch.context() as broken:
            broken.setattr(results, "document", lambda *given: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                cli.main(command)
        assert cli.main(command) == 0
    shown = capsys.readouterr()
    assert "going on after" in shown.err and "without: SWA" in shown.out
    result = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert result["n"] == 8 and {row["verdict"] for row in result["rows"]} == {"not distinguishable"}
    assert [row["paper"]["says"] for row in result["rows"]] == ["nothing", "nothing", *["worse"] * 4]
    assert ablate.EXAMPLES


def test_an_unknown_world_or_kind_is_one_line(capsys):
    assert cli.main(["ablate", "--world", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
