"""Arms beside pruning: the picture made smaller, and no picture. On the tiny model of 4 x 4 visual tokens."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn.functional import interpolate

from tests.test_compare_command import arguments, journal_of
from tests.test_project_demo import answerer, checkpoint, data, loaded  # noqa: F401  (fixtures)
from vlm_pruner.commands import compare
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.experiments.arms import BLIND, DENSE, RESIZE, ModelFacts, make_arms
from vlm_pruner.experiments.questions import read_questions
from vlm_pruner.images import read_image
from vlm_pruner.llava.mm_utils import process_images
from vlm_pruner.report.html_data import read_results

SHAPE = DecoderShape(
    layers=32, hidden=4096, heads=32, key_value_heads=32, head_size=128, intermediate=11008, vocabulary=32000
)


@pytest.mark.parametrize("budget", ["1", "2", "3", "16", "64", "128", "192", "ratio:0.889", "avg:64", "flops:0.2"])
def test_the_smaller_picture_stays_within_the_budget_and_is_nearly_square(budget):
    facts = ModelFacts(576, SHAPE, text=40)
    (arm,) = make_arms([RESIZE], [budget], facts)
    rows, columns = arm.grid
    assert arm.tokens == rows * columns and 0 <= columns - rows <= 1 and not arm.is_dense
    kind, _, value = budget.rpartition(":")
    most = {"": float(value), "ratio": 64, "avg": float(value), "flops": 576}[kind]
    assert arm.tokens <= most
    if kind == "flops":
        larger = facts.account_resized((rows + 1) * columns if rows < columns else rows * (rows + 1))
        assert arm.accounting.flops_share <= 0.2 < larger.flops_share
    else:
        assert arm.tokens == max(n * m for n in range(1, 25) for m in (n, n + 1) if n * m <= most)
    assert arm.accounting.kept == (arm.tokens,) * 32
    assert arm.key == f"resize@{budget}" and arm.describe()["settings"] == {"grid": [rows, columns]}


def test_arms_without_a_budget_come_once_and_first():
    arms = make_arms(["random", BLIND, RESIZE, DENSE], [16, 4], ModelFacts(16))
    assert [arm.key for arm in arms] == ["dense@16", "blind@0", "random@16", "resize@16", "random@4", "resize@4"]
    assert [arm.is_dense for arm in arms[:2]] == [True, False]


@pytest.fixture(scope="module")
def asked(data):  # noqa: F811
    return read_questions(data / "mini" / "questions.jsonl")


def seen(answerer, question, grid):  # noqa: F811
    """The prompt's embeddings and spans, and a fresh start for the next."""
    answerer.forget()
    prompt = answerer._prepare([question], grid).prompt
    answerer.forget()
    return prompt


def test_a_smaller_picture_is_what_the_tower_makes_of_it(answerer, asked):  # noqa: F811
    """By the steps: the processor's pixels made smaller, the tower's positions interpolated, the projector."""
    model, side = answerer.model, answerer.side
    pixels = process_images([read_image(asked[0].image)], answerer.checkpoint.image_processor, model.config)
    patch = pixels.shape[-1] // side
    for grid in ((2, 2), (2, 3), (1, 1)):
        (span,) = (prompt := seen(answerer, asked[0], grid)).visual_spans[0]
        size = (grid[0] * patch, grid[1] * patch)
        small = interpolate(pixels, size=size, mode="bicubic", antialias=True)
        tower = model.get_vision_tower()
        with torch.no_grad(), tower.any_size():
            wanted = model.get_model().mm_projector(tower(small))[0]
        assert span.length == math.prod(grid)
        torch.testing.assert_close(prompt.inputs_embeds[0, span.start : span.stop], wanted)
        assert span.layout.coords.tolist() == [[x, y] for y in range(grid[0]) for x in range(grid[1])]


def test_the_whole_grid_is_the_dense_model(answerer, asked):  # noqa: F811
    side = answerer.side
    whole, dense = seen(answerer, asked[0], (side, side)), seen(answerer, asked[0], None)
    torch.testing.assert_close(whole.inputs_embeds, dense.inputs_embeds)


def test_other_sizes_are_refused_outside(answerer):  # noqa: F811
    with pytest.raises(ValueError, match="doesn't match"):
        answerer.model.get_vision_tower()(torch.zeros(1, 3, 28, 28))


def test_blind_is_the_question_alone(answerer, asked):  # noqa: F811
    """No visual token, and the same answer whatever the picture."""
    prompt = seen(answerer, asked[0], (0, 0))
    text = answerer.checkpoint.ids(answerer.checkpoint.prompt(asked[0].text, 0, answerer.checkpoint.conversation))
    torch.testing.assert_close(prompt.inputs_embeds[0], answerer.model.get_model().embed_tokens(text))
    assert prompt.visual_spans == [[]]
    same = [question for question in asked if question.text == asked[0].text]
    replies = {answerer.answer([question], None, (0, 0))[0].text for question in same}
    assert len(same) > 2 and len(replies) == 1 and answerer.answer([same[0]], None, (0, 0))[0].kept == 0


def test_arms_do_not_mix_their_pictures(answerer, asked):  # noqa: F811
    """The same batch in turn with and without its picture: each answer is that of a fresh start."""
    grids = [None, (2, 2), (0, 0), None, (2, 3), (2, 2)]
    together = [answerer.answer(asked[:3:2], None, grid)[1].text for grid in grids]
    alone = []
    for grid in grids:
        answerer.forget()
        alone.append(answerer.answer(asked[:3:2], None, grid)[1].text)
    assert together == alone


def test_the_command_compares_them(checkpoint, data, tmp_path, loaded):  # noqa: F811
    methods = "dense,blind,random,pool,vlm-pruner,resize"
    assert compare.run(arguments(checkpoint, data, tmp_path, "--methods", methods, "--budget", "6,4")) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    arms = {arm["key"]: arm for arm in results["arms"]}
    assert {"blind@0", "resize@6", "resize@4"} <= set(arms)  # and those that are as slow as a pruned arm
    assert arms["resize@6"]["settings"] == {"grid": [2, 3]} and arms["resize@6"]["steps"] == [[0, 6]]
    assert arms["blind@0"]["budget"] is None and arms["blind@0"]["tokens"] == 0
    cells = {cell["arm"]: cell for cell in results["cells"]}
    assert set(cells["resize@6"]["against"]) == {"dense", "random", "vlm-pruner"}
    assert set(cells["blind@0"]["against"]) == {"dense"} and cells["dense@16"]["against"] == {}
    (match,) = results["prune_or_resize"]
    text = (tmp_path / "table.txt").read_text()
    assert max(map(len, text.splitlines())) <= 100 and text.count("\nblind ") == 3
    assert " ".join(text.split()).count(match["verdict"]) == 1
    assert match["verdict"] in (tmp_path / "table.md").read_text()
    check_match(match, results, journal_of(tmp_path))
    assert not (tmp_path / "times.json").exists(), "another run measures anew"
    (run,) = read_results([tmp_path])["runs"]
    assert run["prune_or_resize"][0]["verdict"] == match["verdict"], "the page shows it"


def check_match(match, results, records):
    right = {(r["arm"], r["question_id"]): r["correct"] for r in records}
    asked = [item["question_id"] for item in results["items"]]
    first = {key: cost["vision"] + cost["prefill"] for key, cost in match["costs"].items()}
    duels = {(duel["arm"], duel["kind"]): duel for duel in match["duels"]}
    for key, kind in duels:
        assert key.split("@")[0] in ("random", "pool", "vlm-pruner") or (key.startswith("resize@") and kind == "blind")
        duel, opponent = duels[key, kind], duels[key, kind]["opponent"]
        kinds = {item["kind"] for item in results["items"]}
        per_kind = [
            [
                right[key, i["question_id"]] - right[opponent, i["question_id"]]
                for i in results["items"]
                if i["kind"] == k
            ]
            for k in kinds
        ]
        assert duel["mean"] == pytest.approx(sum(sum(v) / len(v) for v in per_kind) / len(per_kind))
        if kind == "equal tokens":
            assert opponent == f"resize@{key.split('@')[1]}"
        if kind == "equal time":
            sizes = [k for k in first if k.startswith("resize") and k not in ("resize@6",)]
            assert first[opponent] <= first[key] or opponent == min(sizes, key=lambda k: int(k.split("@")[1]))
        if kind == "blind":
            assert opponent == "blind@0"
    assert {kind for _, kind in duels} == {"equal tokens", "equal time", "blind"}
    smaller = {duel["opponent"] for duel in match["duels"] if duel["opponent"].startswith("resize@")}
    assert len(duels) == 3 * 6 + len(smaller) and {(key, "blind") for key in smaller} <= set(duels)
    for split in match["splits"]:
        other = f"resize@{split['budget']}"
        fails = [q for q in asked if right["dense@16", q] and not right[other, q]]
        assert split["resize_fails"] == len(fails)
        assert split["resize_holds"] == sum(right["dense@16", q] and right[other, q] for q in asked)
        for key, share in split["accuracy"].items():
            assert share["mean"] == pytest.approx(sum(right[key, q] for q in fails) / len(fails))
    for cell in results["cells"]:
        own = [r for r in records if r["arm"] == cell["arm"]]
        assert cell["answer_tokens"] == pytest.approx(sum(r["tokens"] for r in own) / len(own))
        assert 0 <= cell["calibration_error"]["mean"] <= 1 and all(0 <= r["confidence"] <= 1 for r in own)
