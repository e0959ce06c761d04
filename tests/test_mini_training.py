"""Training the embedded model's decoder: lessons ask what is true, marks point at it, masks hide it, runs resume."""

from __future__ import annotations

import contextlib
from concurrent.futures import wait
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from playground.mini import nouns
from playground.mini.ahead import Ahead
from playground.mini.checks import MIX, half_depth, numbers, pictures, score, table
from playground.mini.course import (
    BLIND,
    EARLY,
    MORE_TOPICS,
    NOUN_BLIND,
    NOUNS,
    SCENES,
    Lesson,
    Teaching,
    Topic,
    _groups,
    _rows,
    assemble,
    draw_lesson,
    questions_of,
)
from playground.mini.helps import COUNT_HEADS, POINT_LAYERS, Helps, masses
from playground.mini.model import PREFIX, MiniModel, Sight, Watch, to_pixels
from playground.mini.questions import HARDER, Question, ask
from playground.mini.textures import Gallery
from playground.mini.tokenizer import build
from playground.mini.train import CLIP, LAYERS, Recipe, Trainer, folded, load
from playground.mini.world import TEXT_LENGTH, Scene, Sign, Thing, counting_scene, make_scene
from tests.tiny_course import TINY

EMBEDDED = CLIP.parent / "checkpoint"


@pytest.fixture(scope="module")
def surfaces() -> Gallery:
    return Gallery(9, backgrounds=3, fabrics=4)


@pytest.fixture(scope="module")
def model() -> MiniModel:
    torch.manual_seed(0)
    return MiniModel(len(build()), LAYERS).eval()


def _scene(surfaces: Gallery) -> Scene:
    """A red star left of a blue ring, a red ring below it, and the number 472."""
    drawn = make_scene(np.random.default_rng(0), surfaces, 24, 24, (0, 0, 0))
    things = [("star", "red", "small", 60, 60, 14), ("ring", "blue", "large", 200, 64, 25)]
    things += [("ring", "red", "small", 66, 180, 14)]
    boxes = tuple((200 + 20.0 * i, 250.0, 220 + 20.0 * i, 280.0) for i in range(TEXT_LENGTH))
    return Scene(drawn.image, [Thing(*t) for t in things], [Sign("472", (200, 250, 260, 280), boxes)])


@torch.no_grad()
def _hidden(model: MiniModel, lesson: Lesson, sight: Sight, features: torch.Tensor | None = None) -> torch.Tensor:
    if features is None:
        features = model.see(to_pixels(lesson.pixels), lesson.raster)
    return model.read(features, lesson.raster, lesson.packs, sight=sight)


def test_nouns_name_what_is_there(surfaces: Gallery) -> None:
    scene, core = _scene(surfaces), build().backend_tokenizer

    def named(text: str) -> list[tuple[str, tuple[int, ...]]]:
        tokens = core.encode(text, add_special_tokens=False).tokens
        return [(tokens[mark.token], mark.rows) for mark in nouns.marks_of(tokens, scene)]

    things, signs = nouns.THINGS, nouns.SIGNS
    assert named("Is the star to the left of the blue ring?") == [("star", (things,)), ("ring", (things + 1,))]
    assert named("What shape is the blue object?") == [("object", (things + 1,))]
    assert named("How many red objects are there in the image?") == [("objects", (things, things + 2))]
    assert named("How many rings are there in the image?\nA. 1\nB. 2") == [("rings", (things + 1, things + 2))]
    assert named("Is there a green star in the image?") == [("star", ())]
    assert named("What is the second character of the number?") == [("number", (signs,))]


def test_rows_are_the_patches_of_what_they_hold(surfaces: Gallery) -> None:
    rows = nouns.rows_of(_scene(surfaces), 24, 24)
    assert rows[nouns.OPENING].nonzero()[0].tolist() == [0, 1, 2]
    assert rows[nouns.THINGS, PREFIX + (60 // 14) * 24 + 60 // 14]
    assert rows[nouns.THINGS + 1].sum() > rows[nouns.THINGS].sum() > 1
    glyphs = rows[nouns.GLYPH_ROWS : nouns.GLYPH_ROWS + TEXT_LENGTH].any(0)
    assert (glyphs & rows[nouns.SIGNS]).sum() > 0.7 * rows[nouns.SIGNS].sum()
    assert nouns.place_of(_scene(surfaces), nouns.THINGS, (0, 0)) == pytest.approx((60 / 14 - 12, 60 / 14 - 12))


def test_a_lesson_follows_from_seed_step_and_process() -> None:
    one, same, other = (draw_lesson(0, step, 0, TINY) for step in (3, 3, 4))
    assert torch.equal(one.pixels, same.pixels) and np.array_equal(one.answers, same.answers)
    assert not torch.equal(one.pixels, other.pixels)
    assert not torch.equal(one.pixels, draw_lesson(0, 3, 1, TINY).pixels)


@pytest.mark.parametrize("teaching", [NOUNS, SCENES])
def test_all_scenes_of_a_step_are_asked_equally_many_questions(teaching: Teaching) -> None:
    for topics in teaching.topics.values():
        assert len({sum(topic.mix.values()) for topic in topics}) == 1
    assert set(teaching.grids) <= set(teaching.topics)


def test_packs_hold_every_question_and_little_else() -> None:
    assert [len(r) for r in _groups((3, 3, 3, 9))] == [3, 1]
    lengths = tuple(sorted(np.random.default_rng(0).integers(9, 30, 20).tolist()))
    groups = _groups(lengths)
    assert [i for r in groups for i in r] == list(range(20))
    lesson = draw_lesson(0, 0, 0, SCENES)
    tokens = sum(pack.ids.numel() for pack in lesson.packs)
    assert sum(int((pack.ids > 0).sum()) for pack in lesson.packs) > 0.85 * tokens
    assert lesson.labels.shape[1] == tokens // len(lesson.pixels)


def test_answers_are_asked_at_the_last_token_of_the_prompt() -> None:
    lesson, tokenizer = draw_lesson(1, 0, 0, TINY), build()
    ids = torch.cat([pack.ids.flatten(1) for pack in lesson.packs], 1)
    for b, row in enumerate(lesson.last.tolist()):
        for q, at in enumerate(row):
            assert tokenizer.convert_ids_to_tokens(int(ids[b, at])) == "ASSISTANT:"
            first = tokenizer(str(lesson.answers[b, q]), add_special_tokens=False).input_ids[0]
            assert lesson.labels[b, at] == first


def test_blind_tokens_see_nothing_of_the_picture(model: MiniModel) -> None:
    """Another picture changes nothing in blind tokens that follow none that see, and something in the others."""
    lesson = draw_lesson(1, 0, 0, replace(TINY, blind=0.0, noun_blind=1.0))
    features = torch.randn(2, *lesson.raster.shape, model.tower.config.hidden_size)
    one, other = (_hidden(model, lesson, lesson.sight, f) for f in features)
    changed = (one != other).any(-1)
    blind = torch.cat([b.flatten(1) for b in lesson.blind], 1)
    assert (lesson.roles == NOUN_BLIND).any() and blind.any()
    assert not changed[blind].any()  # the first tokens of a question: nothing before them saw anything
    picture = torch.arange(len(lesson.last))[:, None].expand_as(lesson.last)
    assert changed[picture, lesson.last].all()


def test_questions_see_the_picture_in_the_layers_of_their_sight_only(model: MiniModel) -> None:
    lesson = draw_lesson(1, 0, 0, TINY)
    features = torch.randn(2, *lesson.raster.shape, model.tower.config.hidden_size)
    for layers, differs in ((range(0), False), (range(2, 5), True), (frozenset({7}), True)):
        one, other = (_hidden(model, lesson, Sight(layers), f) for f in features)
        assert torch.equal(one, other) != differs, layers
    assert torch.equal(_hidden(model, lesson, Sight()), _hidden(model, lesson, Sight(range(LAYERS))))


def test_the_picture_may_stop_after_the_last_layer_that_sees_it(model: MiniModel) -> None:
    """Seeing it in layers 0 to 4 equals seeing it everywhere with everyone blind from layer 5 on."""
    lesson = draw_lesson(1, 0, 0, TINY)
    early, watch = Sight(range(5)), Watch(range(LAYERS))
    with torch.no_grad():
        features = model.see(to_pixels(lesson.pixels), lesson.raster)
        short = model.read(features, lesson.raster, lesson.packs, sight=early, watch=watch)
        long = model.read(features, lesson.raster, lesson.packs, sight=Sight({*range(5), 99}))
    assert torch.equal(short, long)
    assert [p for p in watch.prefixes] == [PREFIX + 64] * 4 + [PREFIX] * 4
    assert torch.equal(watch.states(7), short)


def test_attention_is_measured_where_it_goes(model: MiniModel) -> None:
    """`masses` against sums over the rows' own patches."""
    lesson, watch = draw_lesson(1, 0, 0, TINY), Watch((3,))
    with torch.no_grad():
        features = model.see(to_pixels(lesson.pixels), lesson.raster)
        model.read(features, lesson.raster, lesson.packs, watch=watch)
    found = masses(lesson, watch.weights[3])
    flat = torch.cat([w[..., : lesson.rows.shape[2]].flatten(2, 3) for w in watch.weights[3]], 2)
    for e, (picture, token) in enumerate(lesson.mark_at.tolist()):
        for row in lesson.target[e].nonzero().flatten().tolist():
            slow = flat[picture, :, token][:, lesson.rows[picture, row]].sum(-1)
            torch.testing.assert_close(found[e, :, row], slow)


def test_helps_are_zero_for_one_who_looks_right() -> None:
    """Perfect attention of every head costs nothing; attention elsewhere does."""
    lesson = draw_lesson(2, 0, 0, replace(TINY, blind=0.0, noun_blind=0.0))
    helps = Helps(320)
    losses = []
    for perfect in (True, False):
        watch = Watch(POINT_LAYERS)
        for layer in POINT_LAYERS:
            watch.weights[layer] = _looks(lesson, perfect)
        losses.append({name: float(v) for name, v in helps._looking(lesson, watch)[0].items()})
    assert losses[0]["point"] == pytest.approx(0, abs=1e-3) and losses[0]["many"] == pytest.approx(0, abs=1e-2)
    assert losses[1]["point"] > 1 and losses[1]["many"] > 1


def _looks(lesson: Lesson, perfect: bool) -> list[torch.Tensor]:
    """Attention [B, 5, Q, T, PREFIX + N] of marked tokens to what they name, or all to a patch in a corner."""
    size, heads, tokens = len(lesson.pixels), 5, lesson.labels.shape[1]
    weights = torch.zeros(size, heads, tokens, lesson.rows.shape[2])
    for e, (picture, token) in enumerate(lesson.mark_at.tolist()):
        for head in range(heads):
            share = (lesson.target[e] > 0).float()
            if lesson.mark_kind[e] == 2:
                share[nouns.OPENING] = COUNT_HEADS.get(head, 1.0)
            rows = lesson.rows[picture].float()
            looks = (share / share.sum() / rows.sum(1).clamp(min=1)) @ rows
            weights[picture, head, token] = looks if perfect else torch.eye(lesson.rows.shape[2])[-1]
    lengths = [pack.ids[0].numel() for pack in lesson.packs]
    shapes = [pack.ids.shape[1:] for pack in lesson.packs]
    return [w.unflatten(2, shape) for w, shape in zip(weights.split(lengths, 2), shapes, strict=True)]


def test_standards_fold_into_the_projector(model: MiniModel) -> None:
    features, mean, scale = torch.randn(3, 160), torch.randn(160), torch.rand(160) + 0.5
    expected = model.projector((features - mean) / scale)
    copy = MiniModel(len(build()), LAYERS)
    copy.load_state_dict(model.state_dict())
    torch.testing.assert_close(folded(copy, mean, scale).projector(features), expected, atol=1e-5, rtol=1e-4)


def test_a_run_resumes_where_it_was_killed(tmp_path, monkeypatch) -> None:
    """Steps 0..3 in one go equal steps 0..1, a save, and steps 2..3 by a new process' trainer."""
    monkeypatch.setattr("playground.mini.train.standards", lambda model, style: (torch.zeros(160), torch.ones(160)))
    straight, first, second = (Trainer(Recipe(warm_up=2), tmp_path) for _ in range(3))
    for step in range(4):
        straight.advance(draw_lesson(0, step, 0, TINY))
    for step in range(2):
        first.advance(draw_lesson(0, step, 0, TINY))
    first.save()
    second.resume()
    assert second.step == 2
    for step in range(2, 4):
        second.advance(draw_lesson(0, step, 0, TINY))
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    tower = load(tmp_path).tower.state_dict()
    assert all(torch.equal(t, tower[name]) for name, t in straight.model.tower.state_dict().items())


def test_parts_follow_relations_and_the_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("playground.mini.train.standards", lambda model, style: (torch.zeros(160), torch.ones(160)))
    trainer = Trainer(Recipe(), tmp_path)
    assert trainer.part() == "nouns"
    trainer._move_on([True] * 8 + [False] * 2)
    assert trainer.crossed_at is None, "90 % must be passed"
    trainer._move_on([True] * 19 + [False])
    assert trainer.part() == "scenes"
    trainer.seconds = 0.9
    assert trainer.part() == "last" and trainer.help_share() == 0.0 and trainer.rate() < 0.2


@pytest.mark.parametrize("kind", HARDER)
def test_harder_questions_have_true_answers(kind: str, surfaces: Gallery) -> None:
    rng, asked = np.random.default_rng(1), 0
    for _ in range(12):
        scene = make_scene(rng, surfaces)
        for _ in range(6):
            if question := ask(rng, scene, kind):
                asked += 1
                _check(scene, question)
    assert asked >= 20


def _check(scene: Scene, question: Question) -> None:
    words = question.text.rstrip("?").split()
    if question.kind == "seen":
        found = {getattr(t, question.subtask) for t in scene.things}
        assert len(set(question.options)) == 4 and set(question.options) <= found
    elif question.kind == "near":
        text = next(s.text.lower() for s in scene.signs if s.is_number == ("number" in words))
        assert question.options["ABCD".index(question.answer)] == text
        # No option is nearer to the others than another, so that they do not give the text away.
        alike = [sum(a == b for t in question.options for a, b in zip(o, t, strict=True)) for o in question.options]
        assert len(set(question.options)) == 4 and len(set(alike)) == 1
    elif question.kind == "glyph":
        text = next(s.text.lower() for s in scene.signs if s.is_number == ("number" in words))
        assert question.answer == text[["first", "second", "third"].index(words[3])]
    else:
        assert question.answer in {t.shape for t in scene.things}


def test_what_is_beside_a_thing(surfaces: Gallery) -> None:
    scene, rng = _scene(surfaces), np.random.default_rng(0)
    asked = {q.text: q.answer for _ in range(60) if (q := ask(rng, scene, "beside"))}
    assert asked["What is right of the star?"] == "ring" and asked["What is above the red ring?"] == "star"
    assert "What is left of the star?" not in asked


@pytest.mark.parametrize("many", [2, 6])
def test_counting_scenes_hold_what_was_ordered(many: int, surfaces: Gallery) -> None:
    for seed in range(4):
        scene = counting_scene(np.random.default_rng(seed), surfaces, 24, 24, (8, 1, 2), many)
        shapes = [t.shape for t in scene.things]
        colors = [t.color for t in scene.things]
        assert many in {*map(shapes.count, shapes), *map(colors.count, colors)}


def test_checks_ask_the_same_questions_of_blind_tokens() -> None:
    plain, blind = (next(pictures(2, MIX, teaching=t)) for t in (Teaching({}, {}), Teaching({}, {}, blind=1.0)))
    assert np.array_equal(plain.answers, blind.answers) and torch.equal(plain.pixels, blind.pixels)
    assert (blind.roles == BLIND).any() and not plain.roles.any()


def test_counting_is_the_mean_over_numbers() -> None:
    rows = [("count", "", "", "0", True)] * 9 + [("count", "", "", "1", False)]
    assert table(rows)["count"] == [50.0, 10] and table(rows)["count 0"] == [100.0, 9]
    depths = {f"before {k}": {"count": 100.0 * (k >= 3)} for k in range(LAYERS + 1)}
    assert half_depth(depths) == {"count": 3}


def test_questions_are_repeated_only_where_a_scene_has_no_others(surfaces: Gallery) -> None:
    scene = make_scene(np.random.default_rng(3), surfaces)
    asked = questions_of(np.random.default_rng(0), scene, EARLY)
    assert len(asked) == sum(EARLY.values())
    assert len({q.prompt for q in asked}) > 0.85 * len(asked)
    lesson = assemble(np.random.default_rng(0), [(scene, (0, 0))], [asked], Teaching({}, {}))
    assert lesson.kinds.shape == (1, len(asked))


def test_harder_files_are_reproducible_and_true(tmp_path) -> None:
    from playground.mini import harder

    assert harder.write(tmp_path / "a", 4) == harder.write(tmp_path / "b", 4) >= 12
    first, second = ((tmp_path / x / "questions.jsonl").read_text() for x in "ab")
    assert first == second and '"small"' in first and '"near"' in first


EVERYTHING = {kind: 2 for kind in ("near", "beside", "reading", "glyph", "verify", "count", "relation")} | {
    "caption": 1
}
EVERY = Topic(24, (6, 8), 2, (0, 1), EVERYTHING, groups=0.5)
DRAWN = partial(draw_lesson, 5, process=0, teaching=TINY)
MOST = Teaching({24: 1.0}, {24: (EVERY,) * 2}, noun_blind=0.3)


def test_lessons_drawn_ahead_are_those_of_their_steps() -> None:
    """Through files and processes, in the order of steps; and again where workers are too slow."""
    ahead = Ahead(5, 3, 1)
    lessons = ahead.lessons(lambda: DRAWN, torch.device("cpu"))
    first = next(lessons)
    fresh = [first, *(lesson for lesson, _ in zip(lessons, range(12), strict=False))]
    ahead.close()
    expected = draw_lesson(5, 3, 0, TINY)
    assert np.array_equal(first.answers, expected.answers) and first.until == expected.until
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(first, name), value) or value.isnan().any(), name
    pictures = {lesson.pixels.numpy().tobytes() for lesson in fresh}
    assert len(pictures) == len(fresh) - ahead.again > 1


def test_no_lesson_comes_again_while_workers_are_fast_enough() -> None:
    ahead = Ahead(5, 0, 2)
    lessons = ahead.lessons(lambda: DRAWN, torch.device("cpu"))
    ahead.order(DRAWN)
    for _ in range(6):
        wait(list(ahead.drawn))
        next(lessons)
        ahead.reader.submit(int).result()  # what was to be read has been
    ahead.close()
    assert ahead.again == 0


def test_every_tensor_of_a_step_is_on_the_trainers_device(tmp_path, monkeypatch) -> None:
    """Tensors without content refuse to meet others, as those of a GPU would."""
    monkeypatch.setattr("playground.mini.train.standards", lambda model, style: (torch.zeros(160), torch.ones(160)))
    monkeypatch.setattr(torch, "autocast", lambda *args, **named: contextlib.nullcontext())
    trainer = Trainer(Recipe(more=True), tmp_path, device="meta")
    trainer.step = 1
    trainer.advance(draw_lesson(0, 0, 0, MOST))
    assert trainer.step == 2 and trainer.told[0][1].right.device.type == "meta"


def test_a_run_begins_from_a_checkpoint_and_ships_one(tmp_path) -> None:
    """Weights survive standardising and folding, but for float16."""
    trainer = Trainer(Recipe(more=True), tmp_path, start=EMBEDDED)
    assert trainer.part() == "rest"
    trainer.ship = True
    trainer.save()
    for name in ("checkpoint", "at_full_rate"):
        one, other = (load_file(folder / "model.safetensors") for folder in (EMBEDDED, tmp_path / name))
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], atol=2e-3, rtol=2e-3)
    shipped, tower = load(tmp_path), load_file(CLIP / "model.safetensors")
    torch.testing.assert_close(shipped.decoder.lm_head.weight, one["lm_head.weight"].float(), atol=2e-3, rtol=2e-3)
    own = getattr(shipped.tower, "vision_model", shipped.tower).state_dict()
    assert all(torch.equal(own[name.removeprefix("vision_model.")], t.float()) for name, t in tower.items())


def test_what_is_compared_and_what_comes_next(surfaces: Gallery) -> None:
    """Marks stand at the tokens that must look, for captions, things beside others, and texts that differ."""
    scene, rng = _scene(surfaces), np.random.default_rng(0)
    caption = ask(rng, scene, "caption")
    assert caption.answer == "a small red star, a small red ring, a large blue ring, number 472"
    near = ask(rng, scene, "near")
    beside = next(q for _ in range(99) if (q := ask(rng, scene, "beside")) and q.subtask == "above")
    rows = _rows(rng, scene, (0, 0), [caption, near, beside])
    core = build().backend_tokenizer
    words = [[core.id_to_token(i) for i in row.ids] for row in rows]
    said = [(words[0][m.token], m.kind, m.rows[0] - nouns.THINGS) for m in rows[0].marks[:8]]
    star = [("a", "next", 0), ("small", "next", 0), ("red", "next", 0), ("star", "thing", 0)]
    assert said == [*star, ("a", "next", 2), ("small", "next", 2), ("red", "next", 2), ("ring", "thing", 2)]
    assert [words[0][m.token] for m in rows[0].marks[-3:]] == ["number", "4", "##7"]
    right = near.options["ABCD".index(near.answer)]
    compared = [m for m in rows[1].marks if m.same >= 0]
    assert len(compared) == 12 and right == "472"
    assert sum(m.same for m in compared) == sum(a == b for o in near.options for a, b in zip(o, right, strict=True))
    assert [(m.kind, m.rows) for m in rows[2].marks if m.token == rows[2].last] == [("next", (nouns.THINGS,))]


def test_numbers_are_asked_for_equally_often() -> None:
    answers = [a for step in range(12) for a in _counts(draw_lesson(3, step, 0, Teaching({24: 1.0}, MORE_TOPICS)))]
    shares = [answers.count(str(n)) / len(answers) for n in range(7)]
    assert min(shares) > 0.08 and max(shares) < 0.22, shares


def _counts(lesson: Lesson) -> list[str]:
    return lesson.answers[lesson.kinds == "count"].tolist()


def test_small_means_small() -> None:
    """What is asked about small things names no large one, and nothing that fits two things."""
    from playground.mini import harder
    from playground.mini.benchmarks import scenes

    asked = 0
    for rng, scene in scenes("test", 12):
        for kind, question in harder.questions(rng, scene):
            sizes = harder._sizes(question, scene)
            if kind in ("seen", "small", "relation"):
                asked += 1
                assert set(sizes) == {"small"} and len(sizes) == (2 if kind == "relation" else 1), question
            assert kind != "large" or sizes == ["large"]
    assert asked >= 20


def test_the_embedded_decoder_answers_on_this_tower() -> None:
    """Its weights, the tower's and the tokenizer's belong together: held out, near all of every kind."""
    model = load(EMBEDDED)
    found = table(score(model, pictures(6)) + score(model, numbers(2)))
    kinds = {kind: share for kind, (share, _) in found.items() if " " not in kind}
    assert {"relation", "count", "near", "beside", "reading"} <= kinds.keys()
    assert min(kinds.values()) >= 75 and np.mean(list(kinds.values())) > 93, kinds
