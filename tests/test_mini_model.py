"""The embedded model: its packed training forward is LLaVA's forward, and its export loads like any checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from playground.mini import tokenizer
from playground.mini.export import export
from playground.mini.first_recipe import DOUBLED, FIRST, REFINEMENT, REFINING, Curriculum, Recipe, Trainer, load
from playground.mini.lessons import encode, make_lesson
from playground.mini.model import MiniModel, Pack, opening_ids
from playground.mini.muon import orthogonalise
from playground.mini.questions import Question
from playground.mini.textures import Gallery


@pytest.fixture(scope="module")
def model() -> MiniModel:
    torch.manual_seed(0)
    return MiniModel(len(tokenizer.build())).eval()


@pytest.fixture(scope="module")
def surfaces() -> Gallery:
    return Gallery(9, backgrounds=3, fabrics=4)


@torch.no_grad()
def test_packed_forward_equals_llava_forward(model: MiniModel, surfaces: Gallery, tmp_path) -> None:
    """Two questions packed about one picture give the logits that LLaVA's own forward gives for each alone."""
    from llava.model.builder import load_model

    export(model, tmp_path)
    llava = load_model(tmp_path / "checkpoint")
    whole = MiniModel(len(tokenizer.build())).eval()
    whole.load_state_dict({name: t.half().float() for name, t in model.state_dict().items()})
    lesson = make_lesson(np.random.default_rng(0), surfaces, 24, 1, 0.2)
    pack = Pack(lesson.packs[0].ids[:, :2], lesson.packs[0].labels[:, :2])
    hidden = whole.read(whole.see(lesson.pixels, lesson.raster), lesson.raster, [pack])
    logits = whole.answer(hidden).view(2, pack.ids.shape[2], -1)
    for question, expected in zip(pack.ids[0], logits, strict=True):
        length = int((question != 0).sum())
        ids = torch.tensor([[*opening_ids(), -200, *question[:length].tolist()]])
        alone = llava(ids, images=lesson.pixels).logits[0, -length:]
        assert torch.allclose(alone, expected[:length], atol=2e-4)


def test_export_fits_the_budget(model: MiniModel, tmp_path) -> None:
    export(model, tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 16 * 2**20
    config = json.loads((tmp_path / "checkpoint/config.json").read_text())
    assert config["model_type"] == "llava_llama"
    assert config["hidden_size"] > 256, "screening 256 channels would screen nothing"


def test_opening_is_the_conversation_templates() -> None:
    from llava.conversation import conv_templates

    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], "<image>\nIs there a red circle in the image?")
    conversation.append_message(conversation.roles[1], None)
    opening = conversation.get_prompt().split("<image>")[0]
    assert tuple(tokenizer.build()(opening).input_ids) == opening_ids()
    assert len(opening_ids()) == 3


def test_labels_are_the_answer_and_the_end() -> None:
    ids, labels = encode([(Question("reading", "What number is written in the image?", "472").prompt, "472")], 16)
    spelled = tokenizer.build()("472", add_special_tokens=False).input_ids
    assert labels[labels >= 0].tolist() == [*spelled, 2]
    at = int((labels[0] >= 0).nonzero()[0])
    assert ids[0, at + 1 : at + 4].tolist() == spelled  # the label of a place is the token after it


@pytest.mark.parametrize("shape", [(3, 5, 9), (1, 16, 16)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5 and values.max() < 1.3


def test_training_resumes_where_it_was_killed(tmp_path, monkeypatch) -> None:
    """Steps 0..3 in one go equal steps 0..1, a save, and steps 2..3 by a new process' trainer."""
    small = replace(FIRST, plan={0: {"6": 1.0}}, batch={6: 2}, rates={0: 1.0})
    monkeypatch.setattr("playground.mini.first_recipe.FIRST", small)
    recipe = Recipe(tower_steps=0, steps=4, decay=2, tower_frozen_for=1)
    straight, first, second = (Trainer(recipe, tmp_path) for _ in range(3))
    for _ in range(4):
        straight.advance()
    for _ in range(2):
        first.advance()
    first.save()
    second.resume()
    assert second.step == 2
    for _ in range(2):
        second.advance()
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


@pytest.mark.parametrize(("curriculum", "recipe"), [(FIRST, Recipe()), (REFINING, REFINEMENT)])
def test_curricula_fit_their_recipes(curriculum: Curriculum, recipe: Recipe) -> None:
    assert max(curriculum.plan) < recipe.steps and max(curriculum.rates) < recipe.steps
    grids = {int(topic.split()[0]) for shares in curriculum.plan.values() for topic in shares}
    assert grids <= set(curriculum.batch) and grids <= set(curriculum.share)


def test_a_grown_model_gives_the_same_answers(model: MiniModel, surfaces: Gallery) -> None:
    lesson = make_lesson(np.random.default_rng(0), surfaces, 6, 1, 0.3)
    deeper = model.grown((3, 5))
    assert len(deeper.decoder.model.layers) == len(model.decoder.model.layers) + 2
    with torch.no_grad():
        features = model.see(lesson.pixels, lesson.raster)
        before, after = (m.read(features, lesson.raster, lesson.packs) for m in (model, deeper))
    torch.testing.assert_close(after, before)


def test_refining_starts_from_a_saved_run(tmp_path) -> None:
    recipe = Recipe(tower_steps=0, steps=1)
    first = Trainer(recipe, tmp_path)
    first.save()
    refined = Trainer(REFINEMENT, tmp_path / "refined", load(tmp_path).grown(DOUBLED))
    assert refined.curriculum is REFINING and not refined.tower_learns()
    assert len(refined.model.decoder.model.layers) == len(first.model.decoder.model.layers) + len(DOUBLED)
