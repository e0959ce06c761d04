"""The mini world: scenes are reproducible, and every question's answer is true of its scene."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from playground.mini import benchmarks
from playground.mini.questions import KINDS, Question, absent, ask
from playground.mini.textures import Gallery
from playground.mini.world import COLOR_NAMES, SHAPES, Scene, Thing, make_scene


@pytest.fixture(scope="module")
def surfaces() -> Gallery:
    return Gallery(9, backgrounds=4, fabrics=6)


@pytest.fixture(scope="module")
def some_scenes(surfaces: Gallery) -> list[Scene]:
    rng = np.random.default_rng(5)
    return [make_scene(rng, surfaces) for _ in range(30)]


def test_the_same_seed_draws_the_same_picture(surfaces: Gallery) -> None:
    first, again, other = (make_scene(np.random.default_rng(s), surfaces) for s in (1, 1, 2))
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert first.things == again.things
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))


def test_full_scenes_are_dense_enough(some_scenes: list[Scene]) -> None:
    """Easy pruning was the flaw of a sparser world: a third of the patches hold something, two signs are there."""
    assert {s.image.size for s in some_scenes} == {(336, 336)}
    assert 0.30 <= np.mean([s.foreground() for s in some_scenes]) <= 0.40
    assert np.mean([len(s.signs) for s in some_scenes]) > 1.9
    assert np.mean([len(s.distractors) for s in some_scenes]) > 5


def test_things_and_signs_do_not_overlap(some_scenes: list[Scene]) -> None:
    for scene in some_scenes:
        boxes = [t.box for t in scene.things] + [s.box for s in scene.signs]
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _find(scene: Scene, name: str) -> Thing:
    """The one thing that a reference such as "star" or "red star" names."""
    words = name.split()
    fits = [t for t in scene.things if t.shape == words[-1] and (len(words) == 1 or t.color == words[0])]
    assert len(fits) == 1, f"{name!r} is not unique"
    return fits[0]


def _truth(scene: Scene, question: Question) -> str:
    """The answer worked out again from the words of the question."""
    words = question.text.rstrip("?").split()
    if question.kind == "existence":
        return "yes" if any((t.color, t.shape) == (words[3], words[4]) for t in scene.things) else "no"
    if question.kind == "relation":
        text = " ".join(words[2:]).replace("to the ", "").replace(" of ", " ").replace(" the ", " ")
        side = next(w for w in ("left", "right", "above", "below") if w in text.split())
        a, b = (_find(scene, part.strip()) for part in text.split(side))
        holds = {"left": a.x < b.x, "right": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[side]
        return "yes" if holds else "no"
    if words[:2] == ["How", "many"]:
        name = words[2] if words[3] == "are" else words[2] + " objects"
        by_color = name.endswith(" objects")
        return str(
            sum(
                t.color == name.split()[0] if by_color else name in (t.shape + "s", t.shape + "es")
                for t in scene.things
            )
        )
    if words[1] == "color":
        return _find(scene, " ".join(words[4:])).color
    if words[1] == "size":
        return _find(scene, " ".join(words[4:])).size
    if words[1] == "shape":
        shapes = {t.shape for t in scene.things if t.color == words[4]}
        assert len(shapes) == 1
        return shapes.pop()
    return next(s.text.lower() for s in scene.signs if s.is_number == (words[1] == "number"))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_true(some_scenes: list[Scene], kind: str) -> None:
    rng, answers = np.random.default_rng(3), Counter()
    for scene in some_scenes:
        for _ in range(6):
            if (question := ask(rng, scene, kind)) is None:
                continue
            answer = question.options["ABCD".index(question.answer)] if question.options else question.answer
            assert answer == _truth(scene, question), question
            assert len(set(question.options)) == len(question.options)
            answers[question.answer] += 1
    assert sum(answers.values()) > 60
    assert max(answers.values()) / sum(answers.values()) < 0.65, "one answer is right too often"


@pytest.mark.parametrize("how", ["random", "popular", "adversarial"])
def test_absent_things_are_absent(some_scenes: list[Scene], how: str) -> None:
    rng = np.random.default_rng(4)
    for scene in some_scenes:
        assert _truth(scene, absent(rng, scene, how)) == "no"


def test_benchmarks_are_reproducible_and_complete(tmp_path) -> None:
    counts = benchmarks.write(tmp_path / "a", list(benchmarks.WRITERS), 2)
    benchmarks.write(tmp_path / "b", list(benchmarks.WRITERS), 2)
    assert all(counts.values())
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    lines = [json.loads(line) for line in (tmp_path / "a/mini/questions.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == set(KINDS)
    assert all((tmp_path / "a/mini/images" / line["image"]).is_file() for line in lines)


def test_every_word_has_a_token(some_scenes: list[Scene]) -> None:
    """No question, option or answer becomes <unk>, and answers decode to themselves."""
    from playground.mini.tokenizer import build

    tokenizer, rng = build(), np.random.default_rng(6)
    for scene in some_scenes:
        for kind in (*KINDS, "verify"):
            if question := ask(rng, scene, kind):
                for text in (question.prompt, question.exam_prompt if question.options else question.prompt):
                    assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text
                spelled = tokenizer(question.answer, add_special_tokens=False).input_ids
                assert tokenizer.decode(spelled) == question.answer
    assert len(COLOR_NAMES) == len(SHAPES) == 6


def test_yes_and_no_are_equally_often_right(tmp_path) -> None:
    benchmarks.write(tmp_path, ["mini"], count=12)
    lines = [json.loads(line) for line in (tmp_path / "mini" / "questions.jsonl").read_text().splitlines()]
    for kind in benchmarks.YES_NO:
        answers = Counter(line["answer"] for line in lines if line["kind"] == kind)
        assert abs(answers["yes"] - answers["no"]) <= 1 and sum(answers.values()) >= 11, kind
