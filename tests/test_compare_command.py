"""`vlm-pruner compare` end to end on a tiny model of random weights: 4 x 4 visual tokens, three decoder layers."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import vlm_pruner as vp
from tests.every_method import of_pictures, of_videos
from tests.test_project_demo import KINDS, answerer, checkpoint, data, loaded  # noqa: F401  (fixtures)
from vlm_pruner.cli import main
from vlm_pruner.commands import compare
from vlm_pruner.decoder.cache_names import cache_argument, cache_of
from vlm_pruner.experiments import answering, clock
from vlm_pruner.experiments.arms import make_arms
from vlm_pruner.experiments.questions import read_questions
from vlm_pruner.experiments.replay import Replay, _WithRoom
from vlm_pruner.experiments.shared_choice import once_per_picture
from vlm_pruner.methods.view import View

MEASURED: dict[str, clock.Cost] = {}  # what `everything` measured
FILES = ["accuracy.png", "answers.jsonl", "results.json", "table.md", "table.txt"]


def arguments(checkpoint: Path, data: Path, out: Path, *more: str) -> argparse.Namespace:  # noqa: F811
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    usual = ["--model", str(checkpoint), "--questions-file", str(data / "mini" / "questions.jsonl"), "--out", str(out)]
    usual += [
        "--questions",
        "12",
        "--batch-size",
        "4",
        "--processes",
        "1",
        "--resamples",
        "200",
        "--time-questions",
        "1",
    ]
    return parser.parse_args([*usual, *more])


def journal_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()][1:]


@pytest.fixture(scope="module")
def everything(checkpoint, data, answerer, tmp_path_factory) -> Path:  # noqa: F811
    """A whole run of all methods at two budgets, of which one is out of reach for those that prune before layer 2."""
    out, measure = tmp_path_factory.mktemp("all"), clock.measure

    def measured(*given: Any) -> dict[str, clock.Cost]:
        MEASURED.update(measure(*given))
        return MEASURED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "measure", measured)
        patch.setattr(type(answerer), "load", classmethod(lambda cls, path, device: answerer))
        assert compare.run(arguments(checkpoint, data, out, "--budget", "6,avg:9")) == 0
    return out


def test_all_methods_are_in_it_and_none_is_left_out_silently(everything):
    results = json.loads((everything / "results.json").read_text())
    ran, refused = {arm["name"] for arm in results["arms"]}, {one["name"] for one in results["not_run"]}
    assert ran == {"dense", "blind", "resize", "vlm-pruner-16", *of_pictures()}
    assert {"cdpruner", *of_videos()} <= refused
    text = (everything / "table.txt").read_text()
    assert "not run: CDPruner at 6, avg:9: cdpruner weighs tokens by the question" in text
    assert "not run: FastV at avg:9: budget avg:9 cannot be met by fastv with layer=2 of 3 layers" in text
    rows = [line for line in text.splitlines() if "not run" not in line]
    assert max(map(len, rows)) <= 100
    for arm in results["arms"]:
        assert sum(line.startswith(arm["label"]) for line in rows) >= 2, "costs and kinds"
    assert sorted(path.name for path in everything.iterdir()) == FILES
    with Image.open(everything / "accuracy.png") as picture:
        assert picture.width == 1700


def test_what_is_reported_is_what_was_kept(everything):
    """Accounting and budget of each arm against the tokens that its answers were given with."""
    results = json.loads((everything / "results.json").read_text())
    records = journal_of(everything)
    assert len(records) == 12 * len(results["arms"])
    for arm in results["arms"]:
        own = [record for record in records if record["arm"] == arm["key"]]
        assert len(own) == 12
        account = arm["accounting"]
        if arm["settings"] is None:
            assert all(record["kept"] is None for record in own) and account["kept"] == [16, 16, 16]
            continue
        if "grid" in arm["settings"]:
            assert all(record["kept"] is None for record in own) and account["kept"] == [arm["tokens"]] * 3
            continue
        for record in own:
            assert len(set(record["kept"])) == len(record["kept"]) == arm["tokens"] == account["kept"][-1]
            assert min(record["kept"]) >= 0 and max(record["kept"]) < 16
        assert account["average_tokens"] == sum(account["kept"]) / 3
        assert account["average_tokens"] <= 9 if arm["budget"] == "avg:9" else arm["budget_tokens"] == 6


def test_cells_follow_from_the_answers(everything):
    results = json.loads((everything / "results.json").read_text())
    right = {(r["arm"], r["question_id"]): r["correct"] for r in journal_of(everything)}
    text = {(r["arm"], r["question_id"]): r["text"] for r in journal_of(everything)}
    kinds = {item["question_id"]: item["kind"] for item in results["items"]}

    def mean(values: dict[int, float]) -> float:
        return sum(sum(values[q] for q in kinds if kinds[q] == k) / 4 for k in KINDS) / len(KINDS)

    for cell in results["cells"]:
        key, budget = cell["arm"], cell["arm"].partition("@")[2]
        assert cell["accuracy"]["mean"] == pytest.approx(mean({q: right[key, q] for q in kinds}))
        if key == "dense@16":
            assert cell["against"] == {} and cell["loyalty"] is None
            continue
        assert cell["loyalty"]["mean"] == pytest.approx(mean({q: text[key, q] == text["dense@16", q] for q in kinds}))
        assert "dense" in cell["against"] and key.split("@")[0] not in cell["against"]
        for name, difference in cell["against"].items():
            other = "dense@16" if name == "dense" else f"{name}@{budget}"
            wanted = mean({q: right[key, q] - right[other, q] for q in kinds})
            assert difference["mean"] == pytest.approx(wanted) and difference["p_holm"] >= difference["p"]
            clear = difference["low"] > 0 or difference["high"] < 0
            assert (difference["verdict"] != "not distinguishable") == clear
    count = sum(len(cell["against"]) for cell in results["cells"])
    assert results["statistics"]["comparisons"] == count and results["statistics"]["unit"] == "picture"
    assert f"{count} comparisons" in (everything / "table.txt").read_text()


def test_a_run_that_was_stopped_goes_on(checkpoint, data, tmp_path, loaded, everything, monkeypatch):  # noqa: F811
    """And gives the answers of a whole one. After Holm's correction no more is clear than before."""
    whole, calls = answering.answer, []

    def dies(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*given)

    # Which smaller picture is as slow is measured anew by each experiment; a resumed one remembers.
    monkeypatch.setattr(clock, "measure", lambda _, arms, __: {arm.key: MEASURED[arm.key] for arm in arms})
    args = arguments(checkpoint, data, tmp_path, "--budget", "6,avg:9", "--holm")
    monkeypatch.setattr(answering, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        compare.run(args)
    monkeypatch.setattr(answering, "answer", whole)
    assert compare.run(args) == 0
    plain = [{**record, "text": record["text"]} for record in journal_of(everything)]
    assert sorted(map(str, journal_of(tmp_path))) == sorted(map(str, plain))
    assert "verdicts after Holm" in (tmp_path / "table.txt").read_text()
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    for difference in (d for cell in cells for d in cell["against"].values()):
        assert difference["verdict"] == "not distinguishable" or difference["p_holm"] < 0.05


def test_shared_layers_change_nothing(answerer, data):  # noqa: F811
    """Answers and choices with the first layers computed once are those with every layer computed anew."""
    questions = read_questions(data / "mini" / "questions.jsonl")
    names = ["dense", *of_pictures(), "fastv:layer=1", "vlm-pruner:layer=0"]
    arms = make_arms(names, [6], answerer.facts(questions))
    layers = list(answerer.model.get_model().layers)
    replay = Replay(answerer.model.get_model(), 2)
    for batch in answerer.batches(questions, 5):
        replay.forget()
        for arm in [*arms, *reversed(arms)]:
            alone = answerer.answer(batch, arm.method)
            with replay:
                replay.forget()
                answerer.answer(batch, None)
                shared = answerer.answer(batch, arm.method)
            assert [reply.text for reply in shared] == [reply.text for reply in alone], arm.key
            assert [reply.receipt and reply.receipt.order for reply in shared] == [
                reply.receipt and reply.receipt.order for reply in alone
            ]
            assert [reply.kv_bytes for reply in shared] == [reply.kv_bytes for reply in alone]
    assert replay.hits > 0 and not any("forward" in vars(layer) for layer in layers)


def test_rows_that_begin_alike_share_the_beginning(answerer, data):  # noqa: F811
    """Two pictures, three questions each: every layer's output, and so answers and choices, as without sharing."""
    questions = read_questions(data / "mini" / "questions.jsonl")[::2]
    batch = [replace(question, image=questions[place // 3].image) for place, question in enumerate(questions)]
    decoder, rows = answerer.model.get_model(), []
    real = decoder.layers[2].mlp.forward
    decoder.layers[2].mlp.forward = lambda hidden: rows.append(hidden.shape[0]) or real(hidden)
    try:
        for arm in make_arms(["dense", *of_pictures(), "fastv:layer=1"], [6], answerer.facts(questions)):
            alone, before = answerer.answer(batch, arm.method), len(rows)
            with Replay(decoder, 2, prefixes=True):
                shared = answerer.answer(batch, arm.method and once_per_picture(arm.method))
            assert [reply.text for reply in shared] == [reply.text for reply in alone], arm.key
            assert [reply.receipt and reply.receipt.order for reply in shared] == [
                reply.receipt and reply.receipt.order for reply in alone
            ]
            assert [reply.kv_bytes for reply in shared] == [reply.kv_bytes for reply in alone]
            assert rows[0] == 6 and 2 in rows[before:], f"{arm.key}: one beginning per picture"
    finally:
        del decoder.layers[2].mlp.forward


def test_questions_about_one_picture_share_it_whatever_their_length(answerer, data):  # noqa: F811
    """Batches by picture: prompts of several lengths, padded behind the picture, answer as prompts of one length do."""
    questions = read_questions(data / "mini" / "questions.jsonl")
    pictures = [questions[0].image, questions[-1].image]
    questions = [
        replace(q, question_id=n, image=pictures[n % 2], text=f"{'Well, ' * (n % 3)}{q.text}")
        for n, q in enumerate(questions)
    ]
    batches = answerer.batches(questions, 8, by_picture=True)
    assert [len(batch) for batch in batches] == [8, 4] and len({q.image for q in batches[1]}) == 1
    decoder, rows = answerer.model.get_model(), []
    real = decoder.layers[2].mlp.forward
    decoder.layers[2].mlp.forward = lambda hidden: rows.append(hidden.shape[0]) or real(hidden)
    try:
        for arm in make_arms(["dense", *of_pictures(), "fastv:layer=1", "blind"], [6], answerer.facts(questions)):
            alone = {q.question_id: answerer.answer([q], arm.method, arm.grid)[0] for q in questions}
            for batch in batches:
                rows.clear()
                with answerer.replay(2, prefixes=True):
                    shared = answerer.answer(batch, arm.method, arm.grid)
                for question, reply in zip(batch, shared, strict=True):
                    expected = alone[question.question_id]
                    assert reply.text == expected.text, arm.key
                    assert (reply.receipt and reply.receipt.order) == (expected.receipt and expected.receipt.order)
                if arm.is_dense:
                    assert rows[0] == len({q.image for q in batch}), f"{arm.key}: one beginning per picture"
    finally:
        del decoder.layers[2].mlp.forward


@pytest.mark.parametrize("cache", [None, DynamicCache], ids=["the decoder's", "without layers"])
def test_shared_beginnings_agree_to_rounding(answerer, cache):  # noqa: F811
    decoder = answerer.model.get_model()
    hidden = torch.randn(5, 12, decoder.config.hidden_size, generator=torch.Generator().manual_seed(1))
    hidden[1, :9], hidden[3:, :8] = hidden[0, :9], hidden[2, :8]
    with torch.no_grad():
        alone = decoder(inputs_embeds=hidden, use_cache=True)
        with Replay(decoder, 0, prefixes=True):
            shared = decoder(inputs_embeds=hidden, use_cache=True, **(cache_argument(cache()) if cache else {}))
    torch.testing.assert_close(shared.last_hidden_state, alone.last_hidden_state, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(cache_of(shared).layers, cache_of(alone).layers, strict=True):
        torch.testing.assert_close((ours.keys, ours.values), (theirs.keys, theirs.values), atol=1e-5, rtol=1e-5)


def test_a_layer_with_a_mask_of_its_own_compares_its_rows_again(answerer):  # noqa: F811
    """In decoders whose layers differ in their masks, as those with sliding windows do."""
    hidden, phases = torch.ones(2, 6, 4), (torch.ones(1, 6, 4),) * 2
    every = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    window = every.triu(-2)
    replay = Replay(answerer.model.get_model(), 0, prefixes=True)
    common = replay._common(hidden, phases, every)
    assert common is not None
    replay._before = hidden, every, common
    assert replay._common(hidden, phases, every) is common
    assert replay._common(hidden, phases, window) is None, "its last rows do not see their beginning"


@pytest.mark.parametrize("new_tokens", [3, 40])
def test_answers_longer_than_the_room_in_a_cache_are_the_same(answerer, data, new_tokens):  # noqa: F811
    batch = answerer.batches(read_questions(data / "mini" / "questions.jsonl"), 3)[0]
    method = vp.CentrifugalPruner(keep_tokens=6)
    alone = answerer.answer(batch, method, exactly=new_tokens)
    with Replay(answerer.model.get_model(), 2, prefixes=True):
        shared = answerer.answer(batch, method, exactly=new_tokens)
    assert [reply.text for reply in shared] == [reply.text for reply in alone]
    assert [reply.kv_bytes for reply in shared] == [reply.kv_bytes for reply in alone]


def test_rows_put_in_a_new_order_in_a_cache_with_room_stay_in_it():
    """As beam search does between two steps."""
    states = torch.randn(2, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = _WithRoom(), DynamicLayer()
    for layer in (ours, theirs):
        layer.update(states[:, :, :3], states[:, :, :3])
        layer.reorder_cache(torch.tensor([1, 0]))
        layer.update(states[:, :, 3:4], states[:, :, 3:4])
        layer.crop(-1)
        layer.update(states[:, :, 4:], states[:, :, 4:])
    assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_a_method_chooses_once_for_neighbouring_rows_that_show_the_same():
    asked = []

    class Counting(vp.CentrifugalPruner):
        def choose(self, view):
            asked.append(view)
            return super().choose(view)

    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(12, 8, generator=generator) for _ in range(2))
    grid = vp.TokenLayout.grid(3, 4)
    rows = [(one, one, 0), (one, one, 0), (other, one, 0), (other, other, 0), (other, other, 1), (one, one, 0)]
    views = [View(hidden.clone(), keys.clone(), grid, budget=6, start=start) for hidden, keys, start in rows]
    views += [View(one, one, vp.TokenLayout.grid(4, 3), budget=6), View(one, one, vp.TokenLayout.grid(4, 3), budget=7)]
    method = Counting(keep_tokens=6)
    alone = method.choose_all(views)
    asked.clear()
    shared = once_per_picture(method).choose_all(views)
    assert [view is views[row] for view, row in zip(asked, [0, 2, 3, 4, 5, 6, 7], strict=True)] == [True] * 7
    assert [choice.order.tolist() for choice in shared] == [choice.order.tolist() for choice in alone]


def test_a_method_that_reads_the_question_chooses_for_every_row():
    for name in vp.methods.names():
        kind = vp.methods.get(name)
        if kind.needs:
            method = object.__new__(kind)
            assert once_per_picture(method) is method


def test_another_batch_is_not_answered_from_memory(answerer, data):  # noqa: F811
    first, second = answerer.batches(read_questions(data / "mini" / "questions.jsonl"), 2)[:2]
    alone = [reply.text for reply in answerer.answer(second, None)]
    with Replay(answerer.model.get_model(), 3) as replay:
        answerer.answer(first, None)
        assert [reply.text for reply in answerer.answer(second, None)] == alone and replay.hits == 0
        answerer.answer(second, None)
        assert replay.hits == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model", "nowhere"], "no checkpoint in nowhere"),
        (["--methods", "dense,magic"], "unknown method 'magic'"),
        (
            ["--methods", "vlm-pruner:colour=1"],
            "colour=1: colour means nothing to method 'vlm-pruner'; leave it out, or give",
        ),
        (["--methods", "cdpruner", "--budget", "6"], "no arm can be run; the first reason: CDPruner: cdpruner weighs"),
        (["--budget", "17"], "budget 17 is impossible: a picture has 16 visual tokens"),
        (["--budget", "share:3"], "budget 'share:3' is not understood"),
        (["--questions", "0"], "--questions is 0"),
        (["--processes", "0"], "--processes is 0"),
    ],
)
def test_bad_input_is_one_line(checkpoint, data, tmp_path, loaded, changes, message, capsys):  # noqa: F811
    usual = ["--model", str(checkpoint), "--questions-file", str(data / "mini" / "questions.jsonl")]
    assert main(["compare", *usual, "--out", str(tmp_path / "out"), *changes]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and not (tmp_path / "out").exists()


def test_settings_of_methods_are_arms_of_their_own(checkpoint, data, tmp_path, loaded):  # noqa: F811
    names = "vlm-pruner,vlm-pruner:spatial_weight=0,vlm-pruner:layer=1:token_batch=4"
    assert compare.run(arguments(checkpoint, data, tmp_path, "--methods", names, "--budget", "6")) == 0
    arms = json.loads((tmp_path / "results.json").read_text())["arms"]
    assert [arm["settings"]["spatial_weight"] for arm in arms] == [0.5, 0, 0.5]
    assert arms[2]["steps"] == [[1, 6]] and arms[2]["label"] == "VLM-Pruner layer=1:token_batch=4"
    assert "dense" not in (tmp_path / "table.txt").read_text().split("accuracy: exact")[0]
