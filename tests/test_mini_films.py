"""Films of the mini world: what the questions claim is what the frames show."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from playground.mini import films


@pytest.mark.parametrize("seed", range(6))
def test_frames_show_what_the_film_says(seed: int) -> None:
    """Frames differ where a thing moves or appears, and nowhere else."""
    film = films.make_film(np.random.default_rng(seed))
    pixels = np.stack([np.asarray(frame, np.int16) for frame in film.frames])
    for before, after in zip(range(films.FRAMES - 1), range(1, films.FRAMES), strict=True):
        changed = (pixels[before] != pixels[after]).any(-1)
        allowed = np.zeros_like(changed)
        for actor in film.actors:
            for corner in {actor.corners[before], actor.corners[after]} - {None}:
                if actor.corners[before] != actor.corners[after]:
                    x, y = corner
                    allowed[y : y + 2 * films.RADIUS[1] + 4, x : x + 2 * films.RADIUS[1] + 4] = True
        assert changed.any() and not (changed & ~allowed).any()
    first, last = film.actors[0].corners[0], film.actors[0].corners[-1]
    step = np.sign(np.subtract(last, first))
    assert tuple(step) == films.STEPS[film.direction]


def test_answers_are_true_and_their_letters_even() -> None:
    letters, kinds = [], set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        film = films.make_film(rng)
        appearing = [sum(actor.corners[k] is not None for actor in film.actors) for k in (0, -1)]
        for kind, _, options, letter in films.questions(rng, film):
            said = options["ABCD".index(letter)]
            truth = {"direction": film.direction, "growth": str(appearing[1] - appearing[0])}
            assert said == truth.get(kind, film.later[0].name if film.later else ""), kind
            assert len(set(options)) == 4
            letters.append(letter), kinds.add(kind)
    assert kinds == {"direction", "order", "growth"}
    assert max(map(letters.count, "ABCD")) < 0.4 * len(letters)


def test_files_are_those_of_the_video_evaluation(tmp_path) -> None:
    assert films.write(tmp_path / "a", 2) == films.write(tmp_path / "b", 2) >= 4
    text = (tmp_path / "a" / "questions.jsonl").read_text()
    assert text == (tmp_path / "b" / "questions.jsonl").read_text()
    for line in map(json.loads, text.splitlines()):
        assert {"question_id", "video", "question", "options", "answer"} <= line.keys()
        frames = sorted((tmp_path / "a" / "videos" / line["video"]).iterdir())
        assert len(frames) == films.FRAMES and Image.open(frames[0]).size == (336, 336)
