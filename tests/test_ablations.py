"""Sharing a picture between questions gives what a prefill of each gives; ablations, worlds and the command."""

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
from vlm_pruner.decoder.cache_names import cache_argument, cache_of
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.ablations import VARIATIONS, LargestKeyPivots, Variation, ablation_arms, by_key, fits
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.bootstrap import Interval
from vlm_pruner.experiments.journal import Journal
from vlm_pruner.experiments.llava_answerer import LlavaAnswerer
from vlm_pruner.experiments.questions import Question
from vlm_pruner.experiments.shared_picture import UNASKED, SharedPicture
from vlm_pruner.experiments.shared_run import PairedOutcomes, run_shared
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.report.ablation_table import AblationRow, ablation_table

TEXTS = [("w1 w2 w3", "w4"), ("w5 w6 w7 w8 w9 w10 w11", "w12 w13"), ("w3", "w30 w31 w32")]
METHODS = [
    None,
    vp.CentrifugalPruner(keep_tokens=9),
    vp.CentrifugalPruner(keep_tokens=9, layer=3, token_batch=4),
    vp.CentrifugalPruner(keep_tokens=9, layer=1),
    vp.RandomPruner(keep_tokens=5),
    vp.methods.get("divprune")(keep_tokens=7),
    vp.methods.get("dart")(keep_tokens=12),
    vp.methods.get("fastv")(keep_tokens=6),
]


@pytest.fixture(scope="module")
def answerer(tmp_path_factory) -> LlavaAnswerer:
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = llava_tiny.write_original(folder, eos_token_id=2)
    llava_tiny.write_tokenizer(checkpoint)
    return LlavaAnswerer.load(checkpoint, "cpu")


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> list[Question]:
    image = tmp_path_factory.mktemp("pictures") / "0.png"
    llava_tiny.picture(3).save(image)
    return [Question(number, image, text, "kind", answer) for number, (text, answer) in enumerate(TEXTS)]


def separate_logits(answerer: LlavaAnswerer, question: Question, method) -> torch.Tensor:
    """The same numbers from one ordinary prefill of picture, question and answer. [answer + 1, vocabulary]."""
    from llava.mm_utils import process_images
    from llava.model.multimodal_prompt import prepare_prompt
    from vlm_pruner.images import read_image

    answer = answerer.tokenizer(question.answer, add_special_tokens=False).input_ids
    prompt_ids = answerer._ids(question)
    # A choice that looks at the question must not see the answer: choose first, then let the answer follow as steps.
    pixels = process_images([read_image(question.image)], answerer.image_processor, answerer.model.config)
    decoder = answerer.model.get_model()
    prompt = prepare_prompt(decoder, torch.tensor([prompt_ids]), None, pixels)
    decoder.method = method
    try:
        with torch.no_grad():
            out = decoder(inputs_embeds=prompt.inputs_embeds, visual_spans=prompt.visual_spans, use_cache=True)
            rows = [out.last_hidden_state[0, -1]]
            for token in answer:
                out = decoder(input_ids=torch.tensor([[token]]), **cache_argument(cache_of(out)), use_cache=True)
                rows.append(out.last_hidden_state[0, -1])
            return answerer.model.lm_head(torch.stack(rows))
    finally:
        decoder.method = None


@pytest.mark.parametrize("method", METHODS, ids=lambda m: "dense" if m is None else f"{m.name}-{m.layer}")
def test_a_shared_picture_gives_the_logits_of_separate_prefills(answerer, questions, method):
    shared = SharedPicture(answerer, questions[0].image, questions)
    separate = torch.cat([separate_logits(answerer, question, method) for question in questions])
    torch.testing.assert_close(shared.logits(method), separate, atol=2e-4, rtol=1e-4)


def test_an_answer_is_right_only_when_every_token_and_the_end_are_the_likeliest(answerer, questions):
    shared = SharedPicture(answerer, questions[0].image, questions)
    best = shared.logits(None).argmax(dim=1)
    shared.labels[shared.labels != UNASKED] = best
    assert shared.outcomes(None) == [True, True, True]
    last = (shared.labels[1] != UNASKED).nonzero()[-1]
    shared.labels[1, last] = (shared.labels[1, last] + 1) % 64  # the end token of the second answer
    assert shared.outcomes(None) == [True, False, True]


@pytest.mark.parametrize(
    "method", [vp.methods.get("sparsevlm")(keep_tokens=9), vp.methods.get("visionzip")(keep_tokens=9)]
)
def test_what_cannot_share_a_picture_says_so(answerer, questions, method):
    with pytest.raises(PruningError, match=f"{method.name} cannot share a picture"):
        SharedPicture(answerer, questions[0].image, questions).outcomes(method)


def test_a_stopped_run_goes_on_and_asks_nothing_twice(answerer, questions, tmp_path, monkeypatch):
    arms = [Arm("dense", 36), Arm("random", 5, vp.RandomPruner(keep_tokens=5))]
    with Journal(tmp_path / "answers.jsonl", {}) as journal:
        first = run_shared(answerer, arms[:1], questions, journal)
    asked: list[object] = []
    original = SharedPicture.outcomes
    monkeypatch.setattr(SharedPicture, "outcomes", lambda self, method: asked.append(method) or original(self, method))
    with Journal(tmp_path / "answers.jsonl", {}) as journal:
        both = run_shared(answerer, arms, questions, journal)
        again = run_shared(answerer, arms, questions, journal)
    assert len(asked) == 1 and both == again and both["dense@36"] == first["dense@36"]


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
    left = [variation for variation in VARIATIONS if fits(variation, 6)]
    assert {v.label for v in VARIATIONS if v.group == "pivots"} - {v.label for v in left if v.group == "pivots"} == {
        "7", "8",
    }  # fmt: skip
    ablation_arms(6, 576, 1, left)


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
    row = AblationRow("x", Variation("g", "x", {}, paper), interval(0.5, 0.4, 0.6), interval(*difference), {})
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
    dense = {q.question_id: q.kind == "known" or q.answer == "yes" for q in asked}
    half = {q.question_id: q.question_id % 2 == 0 for q in asked}
    paired = PairedOutcomes(asked, {"dense@576": dense, "half@9": half}, resamples=200)
    assert (paired.kinds, paired.left_out) == (["known"], ["guessed"])
    assert paired.difference(Arm("half", 9), Arm("dense", 576)).mean == -0.5
    with pytest.raises(ValueError, match="no kind"):
        PairedOutcomes(asked[40:], {"dense@576": dense}, resamples=200)


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
    """On a tiny checkpoint that answers nothing: outcomes are replaced, all else is real."""
    monkeypatch.setattr(SharedPicture, "outcomes", lambda self, method: [True] * len(self.lengths))
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
    command = ["ablate", "--questions", str(folder / "questions.jsonl"), "--budget", "9", "--model", str(model)]
    command += ["--out", str(tmp_path / "out")]
    with monkeypatch.context() as short:
        short.setattr("vlm_pruner.experiments.ablations.VARIATIONS", VARIATIONS[:4])
        assert cli.main(command) == 0
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
