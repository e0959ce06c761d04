"""Judges: other worlds, towers trained anew, the whole course in one command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tokenizers")

from playground.mini import tower as towers
from playground.mini import train, world
from playground.mini.ahead import Ahead
from playground.mini.checks import class_attention, class_token, numbers, pictures, score, style_of, table
from playground.mini.course import NOUNS, Lesson, draw_lesson
from playground.mini.model import MiniModel, to_pixels
from playground.mini.team import ALONE
from playground.mini.textures import FACES, Gallery, Style, face_path
from playground.mini.tokenizer import build
from playground.mini.tower import PRESENT, TowerTrainer, draw_pictures, labels_of, present
from playground.mini.world import COLORS, STYLES, Scene, Sign, Thing, make_scene
from tests.tiny_course import TINY


def _small(seed: int, style: str) -> Gallery:
    return Gallery(seed, backgrounds=4, fabrics=12, style=STYLES[style])


@pytest.fixture(autouse=True)
def small_galleries(monkeypatch) -> None:
    """Surfaces of a world in a tenth of the time."""
    kept: dict[tuple[int, str], Gallery] = {}

    def small(seed: int, style: str = "default") -> Gallery:
        return kept.setdefault((seed, style), _small(seed, style))

    for module in (world, train, towers, "playground.mini.course"):
        monkeypatch.setattr(f"{module}.gallery" if isinstance(module, str) else f"{module.__name__}.gallery", small)


# -- worlds -----------------------------------------------------------------------------------------------------------


def _wears_an_ink(fabric: np.ndarray) -> bool:
    """Whether a tenth of it is near the colour of a thing, in any light that fabrics are drawn in."""
    inks = np.array(list(COLORS.values()), np.float32)
    pixels = fabric.reshape(-1, 3).astype(np.float32)
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (pixels, inks)]
    return float(((units[0] @ units[1].T).max(1) > 0.985).mean()) > 0.1


def test_distractors_wear_the_colours_of_things_in_the_motley_world_only() -> None:
    plain, motley = (np.mean([_wears_an_ink(f) for f in _small(5, s).fabrics]) for s in ("default", "motley"))
    assert motley > 0.9 and plain < 0.3


def test_motley_backgrounds_have_detail_everywhere() -> None:
    """Neighbouring patches differ in mean colour by more than the default world's do."""

    def roughness(style: str) -> float:
        means = [b.reshape(480 // 12, 12, 480 // 12, 12, 3).mean((1, 3)) for b in _small(5, style).backgrounds]
        return float(np.mean([np.abs(np.diff(m, axis=1)).mean() for m in means]))

    assert roughness("motley") > 1.3 * roughness("default")


def test_signs_are_printed_in_each_face_and_glyphs_lie_inside_them() -> None:
    surfaces, rng = _small(5, "motley"), np.random.default_rng(0)
    drawn = {surfaces.face(rng) for _ in range(40)}
    assert drawn == set(FACES) and _small(5, "default").face(rng) is None
    scenes = [make_scene(rng, surfaces, contents=(0, 2, 0)) for _ in range(10)]
    for sign in (sign for scene in scenes for sign in scene.signs):
        assert sign.glyphs[0][0] >= sign.box[0] and sign.glyphs[-1][2] <= sign.box[2] + 1


def test_a_face_that_is_missing_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"Nothing.ttf.*pip install .vlm-pruner\[figures\]"):
        face_path("Nothing.ttf")


def test_the_default_world_draws_nothing_for_what_it_lacks() -> None:
    """A style adds draws only where it adds something: the default world's pictures stay what they were."""
    plain = Gallery(5, 4, 6, Style())
    generator = np.random.default_rng(3)
    before = generator.bit_generator.state
    assert plain.face(generator) is None and generator.bit_generator.state == before
    pictures = [make_scene(np.random.default_rng(1), g).image.tobytes() for g in (plain, Gallery(5, 4, 6))]
    assert pictures[0] == pictures[1]


def test_training_and_held_out_surfaces_of_a_world_differ() -> None:
    train_set, test_set = (_small(seed, "motley") for seed in (world.TRAIN_GALLERY, world.TEST_GALLERY))
    assert not any(np.array_equal(a, b) for a in train_set.backgrounds for b in test_set.backgrounds)
    assert not any(np.array_equal(a, b) for a in train_set.fabrics for b in test_set.fabrics)


def test_lessons_show_the_world_that_they_are_drawn_for() -> None:
    plain, motley, same = (draw_lesson(0, 3, 0, TINY, style=s) for s in ("default", "motley", "motley"))
    assert torch.equal(motley.pixels, same.pixels) and not torch.equal(plain.pixels, motley.pixels)


# -- the tower --------------------------------------------------------------------------------------------------------


def _scene() -> Scene:
    things = [Thing("star", "red", "small", 40, 40, 14), Thing("ring", "blue", "large", 100, 60, 25)]
    boxes = tuple((20 + 14.0 * i, 100.0, 34 + 14.0 * i, 120.0) for i in range(3))
    signs = [Sign("4H2", (20, 100, 62, 120), boxes)]
    return Scene(Image.new("RGB", (168, 168)), things, signs, [(120.0, 120.0, 160.0, 160.0)])


def test_what_is_present() -> None:
    held = {name for name, there in zip(PRESENT, present(_scene()), strict=True) if there}
    assert held == {"star", "red", "red star", "ring", "blue", "blue ring", "4", "H", "2"}
    assert len(PRESENT) == len(set(PRESENT)) == 6 + 6 + 36 + 18


def test_distractors_are_nothing_only_where_they_look_like_things() -> None:
    untold, told = (labels_of(_scene(), told)[0] for told in (False, True))
    at = 10 * 12 + 10  # inside the distractor
    assert (untold[:, at] == -100).all() and (told[:, at] == 0).all()
    known = untold != -100
    assert np.array_equal(untold[known], told[known])
    motley, plain = (draw_pictures(0, 0, 0, 12, 1, s).patch_labels for s in ("motley", "default"))
    assert (motley >= 0).all() and (plain == -100).any()


@pytest.fixture
def model() -> MiniModel:
    torch.manual_seed(0)
    return MiniModel(len(build()), train.LAYERS)


def test_the_class_token_learns_what_is_in_the_picture(model: MiniModel) -> None:
    """After the same few pictures some times; `see` leaves it out."""
    trainer = TowerTrainer(model, ALONE, torch.device("cpu"), 0, 1, "default")
    pictures = draw_pictures(0, 0, 0, 8, 1, "default").map(lambda t: t[:6])
    states = model.look(to_pixels(pictures.pixels), pictures.raster)
    assert torch.equal(states[:, 1:], model.see(to_pixels(pictures.pixels), pictures.raster))
    losses = []
    for _ in range(12):
        trainer.seconds = 0.0
        trainer.advance(pictures)
        losses.append(float(trainer.shown["presence"][-1]))
    assert losses[-1] < 0.6 * losses[0]


def test_presence_reaches_the_class_tokens_attention(model: MiniModel) -> None:
    """The gradient of presence alone moves the last layer's queries and keys."""
    trainer = TowerTrainer(model, ALONE, torch.device("cpu"), 0, 1, "default")
    pictures = draw_pictures(0, 0, 0, 8, 1, "default").map(lambda t: t[:4])
    states = model.look(to_pixels(pictures.pixels), pictures.raster)
    torch.nn.functional.binary_cross_entropy_with_logits(trainer.whole(states[:, 0]), pictures.present).backward()
    *_, last = getattr(model.tower, "vision_model", model.tower).encoder.layers
    assert last.self_attn.q_proj.weight.grad.norm() > 0 and last.self_attn.k_proj.weight.grad.norm() > 0


def test_the_class_tokens_attention_is_transformers_own(model: MiniModel) -> None:
    model.tower.set_attn_implementation("eager")
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model.tower(pixels, output_attentions=True).attentions[-1].mean(1)[:, 0]
        torch.testing.assert_close(class_attention(model, pixels, torch.arange(576)[None]), own, atol=1e-6, rtol=1e-4)


def test_windows_grow_with_the_time(model: MiniModel) -> None:
    trainer = TowerTrainer(model, ALONE, torch.device("cpu"), 0, 1, "default")
    grids, rates = [], []
    for share in (0.0, 0.5, 0.9, 1.0):
        trainer.seconds, trainer.step = share, 1000
        grids.append(trainer.drawing().keywords["grid"])
        rates.append(trainer.rate())
    assert grids == [8, 12, 24, 24] and rates == sorted(rates, reverse=True) and 0 < rates[-1] < 0.1


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_whole_course_moves_on_by_the_time_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train, "standards", lambda model, style: (torch.zeros(160), torch.ones(160)))
    trainer = train.Trainer(train.Recipe(whole=True, latest=0.35), tmp_path)
    assert trainer.part() == "nouns"
    trainer._move_on([False] * 8)
    assert trainer.crossed_at is None
    trainer.seconds = 0.36
    trainer._move_on([False] * 8)  # has not learned relations, but its time is up
    parts = []
    for trainer.seconds in (0.4, 0.5, 0.79, 0.9):
        parts.append((trainer.part(), {kind for t in trainer.teaching().topics[24] for kind in t.mix}))
    assert [part for part, _ in parts] == ["scenes", "rest", "rest", "last"]
    assert ["caption" in kinds for _, kinds in parts] == [False, True, True, True]


def test_part_1_takes_fewer_scenes_a_step() -> None:
    few, all_ = (draw_lesson(0, 0, 0, replace(TINY, crowd=crowd), times=5) for crowd in (0.4, 1.0))
    assert len(few.pixels) == 4 and len(all_.pixels) == 10 and NOUNS.crowd < 1
    assert len(draw_lesson(0, 0, 0, replace(TINY, crowd=0.1)).pixels) == 2, "never fewer than the teaching says"


def test_workers_go_from_pictures_to_lessons() -> None:
    """One pool draws for the tower, then for the decoder; nothing of the former comes in the latter."""
    ahead, device = Ahead(3, 0, 1), torch.device("cpu")
    trainer = TowerTrainer(MiniModel(len(build())), ALONE, device, 3, 1, "default")
    pictures = next(ahead.lessons(trainer.drawing, device))
    assert torch.equal(pictures.present, draw_pictures(3, 0, 0, 8, 1, "default").present)
    ahead.restart(7)
    lesson = next(ahead.lessons(lambda: train.drawing(train.Recipe(seed=3), 0, TINY), device))
    ahead.close()
    assert isinstance(lesson, Lesson)
    assert np.array_equal(lesson.answers, draw_lesson(3, 7, 0, TINY).answers) and lesson.at.dtype == torch.long


def test_one_command_makes_a_judge(tmp_path, monkeypatch) -> None:
    """A step or more of everything: a tower, a decoder on it, both in the original layout, the recipe beside them.
    The time is used up before the decoder's turn, which ends the run all the same."""
    monkeypatch.setattr(train, "standards", lambda model, style: (torch.zeros(160), torch.ones(160)))
    monkeypatch.setattr(train.Trainer, "teaching", lambda self: TINY)
    monkeypatch.setattr(train.Trainer, "part", lambda self: "tiny")
    out = tmp_path / "judge"
    command = f"--out {out} --processes 1 --whole --ship --world motley --tower-minutes 0.02 --minutes 0.02 --seed 3"
    train.main(command.split())
    settings = json.loads((out / "checkpoint" / "config.json").read_text())
    assert settings["mm_vision_tower"] == "../clip" and style_of(out) == style_of(out / "checkpoint") == "motley"
    weights = sum(f.stat().st_size for f in out.glob("c*/model.safetensors"))
    assert weights < 18 * 2**20
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any("tower" in line for line in lines) and any("report" in line for line in lines)
    shared = MiniModel(len(build()), train.LAYERS)
    train.load_tower(shared)
    own = train.load(out).tower.state_dict()
    assert any(not torch.equal(own[name], t) for name, t in shared.tower.state_dict().items())


def test_a_checkpoint_names_the_tower_that_it_was_trained_on(tmp_path, monkeypatch) -> None:
    """From wherever it is written; one whose tower is gone is refused instead of read by another."""
    monkeypatch.setattr(train, "standards", lambda model, style: (torch.zeros(160), torch.ones(160)))
    trainer = train.Trainer(train.Recipe(), tmp_path / "a" / "b")
    trainer.ship = True
    trainer.save()
    checkpoint = tmp_path / "a" / "b" / "checkpoint"
    settings = json.loads((checkpoint / "config.json").read_text())
    assert (checkpoint / settings["mm_vision_tower"]).resolve() == train.CLIP.resolve()
    train.load(tmp_path / "a" / "b")
    (checkpoint / "config.json").write_text(json.dumps(settings | {"mm_vision_tower": "../clip"}))
    with pytest.raises(FileNotFoundError, match=r"names the tower .*\.\./clip, which is not there"):
        train.load(tmp_path / "a" / "b")


@pytest.mark.parametrize("wrong", ["--whole", "--tower-minutes 1"])
def test_a_decoder_that_goes_on_keeps_its_tower_and_course(wrong: str, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        train.main(f"--out {tmp_path} --start {tmp_path} {wrong}".split())
    assert "--start continues a decoder" in capsys.readouterr().err


# -- the judges that are there ----------------------------------------------------------------------------------------

JUDGES = sorted((train.CLIP.parent / "judges").iterdir())


@pytest.mark.parametrize("judge", JUDGES, ids=lambda folder: folder.name)
def test_a_judge_answers_in_its_own_world(judge) -> None:
    """Weights, tower, tokenizer and world belong together: held out, near all of every kind."""
    model, style = train.load(judge), style_of(judge)
    found = table(score(model, pictures(6, style=style)) + score(model, numbers(2, style=style)))
    kinds = {kind: share for kind, (share, _) in found.items() if " " not in kind}
    assert {"relation", "count", "near", "beside", "reading"} <= kinds.keys()
    assert min(kinds.values()) >= 70 and np.mean(list(kinds.values())) > 93, kinds


def test_judges_differ_in_seed_tower_and_world() -> None:
    recipes = [json.loads((judge / "recipe.json").read_text()) for judge in JUDGES]
    assert len({recipe["seed"] for recipe in recipes} | {train.Recipe.seed}) == len(JUDGES) + 1 >= 3
    assert {recipe["style"] for recipe in recipes} == set(STYLES)
    towers = {train.tower_of(judge).resolve() for judge in JUDGES}
    assert len(towers) == len(JUDGES) and train.CLIP.resolve() in towers
    for judge in JUDGES:
        weights = [judge / "checkpoint" / "model.safetensors", train.tower_of(judge) / "model.safetensors"]
        assert sum(path.stat().st_size for path in weights) < 18 * 2**20


def test_the_world_judges_class_token_looks_past_distractors_in_things_colours() -> None:
    """Presence taught it to; the shared tower's looks at them more than at things."""
    (own,) = (judge for judge in JUDGES if style_of(judge) == "motley")
    found = [class_token(train.load(run), 6, "motley") for run in (own, train.CLIP.parent)]
    taught, untaught = (look["distractors"]["mass"] / look["distractors"]["area"] for look in found)
    assert taught < 0.5 < 1 < untaught
