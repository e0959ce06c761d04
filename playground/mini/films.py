"""Short films of the mini world, with questions that no single frame answers:

    python -m playground.mini.films --films 60 --out playground/data/films
    python -m llava.eval.model_vqa_video --model-path DIR --question-file playground/data/films/questions.jsonl \\
        --video-folder playground/data/films/videos --answers-file answers.jsonl

A film is a folder of frames (`videos/000000/0.png`, ...): a scene in which one thing moves along a straight line, one
to three others appear, one after the other, and the rest stays. Questions, each with four options: where the thing
moves ("direction"), which thing appears first ("order"), and how many more things there are at the end ("growth"). The
same command always writes the same films.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from playground.mini.question_file import write_picture, write_questions, writing_command
from playground.mini.world import COLOR_NAMES, GRID, SHAPES, TEST_GALLERY, _Canvas, gallery

SEED = 20_260_401
FRAMES = 6
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TRAVEL = (28, 46)  # pixels from frame to frame
RADIUS = (14, 20)


@dataclass(frozen=True)
class Actor:
    """A thing of a film: where its corner is in each frame, None before it appears."""

    shape: str
    color: str
    corners: tuple[tuple[int, int] | None, ...]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def since(self) -> int:
        return next(frame for frame, corner in enumerate(self.corners) if corner is not None)


@dataclass(frozen=True)
class Film:
    """direction: of the first actor. later: those that appear after the first frame, in that order."""

    frames: list[Image.Image]
    actors: list[Actor]
    direction: str

    @property
    def later(self) -> list[Actor]:
        return sorted((a for a in self.actors if a.since), key=lambda actor: actor.since)


def make_film(rng: np.random.Generator, frames: int = FRAMES) -> Film:
    """One that moves, one to three that appear, and one or two that are there and stay; all of different names."""
    while True:
        canvas = _Canvas(rng, gallery(TEST_GALLERY), GRID, GRID)
        starts = rng.permutation(np.arange(1, frames))[: rng.integers(1, 4)].tolist()
        since = [0, *starts, *[0] * int(rng.integers(1, 3))]
        names = rng.permutation([(c, s) for c in COLOR_NAMES for s in SHAPES])[: len(since)].tolist()
        direction = list(STEPS)[rng.integers(4)]
        images = [canvas.image.copy() for _ in range(frames)]
        cast = [
            _cast(canvas, images, shape, color, STEPS[direction] if number == 0 else (0, 0), since[number])
            for number, (color, shape) in enumerate(names)
        ]
        actors = [actor for actor in cast if actor is not None]
        if len(actors) == len(cast):
            return Film(images, actors, direction)


def _cast(
    canvas: _Canvas, images: list[Image.Image], shape: str, color: str, step: tuple[int, int], since: int
) -> Actor | None:
    """Draws the thing into the frames from `since` on, its whole way free; None where it does not fit."""
    radius, travel = int(canvas.rng.integers(*RADIUS)), int(canvas.rng.integers(*TRAVEL))
    last = len(images) - 1
    spans = [abs(s) * travel * last for s in step]
    corner = canvas.place(2 * radius + spans[0], 2 * radius + spans[1])
    if corner is None:
        return None
    look = canvas.look(shape, color, radius)
    places: list[tuple[int, int] | None] = []
    for frame, image in enumerate(images):
        moved = [c + (s * travel * frame if s >= 0 else span - travel * frame)
                 for c, s, span in zip(corner, step, spans, strict=True)]  # fmt: skip
        at = (moved[0], moved[1]) if frame >= since else None
        if at is not None:
            canvas.paste(image, look, at)
        places.append(at)
    return Actor(shape, color, tuple(places))


def questions(rng: np.random.Generator, film: Film) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """(kind, text, options, letter of the right one)."""
    moves = f"In which direction does the {film.actors[0].name} move?"
    yield "direction", moves, *_options(rng, film.direction, [d for d in STEPS if d != film.direction])
    here = {actor.name for actor in film.actors}
    absent = [name for c in COLOR_NAMES for s in SHAPES if (name := f"{c} {s}") not in here]
    if len(film.later) > 1:
        first, *rest = (actor.name for actor in film.later)
        yield "order", "Which object appears first?", *_options(rng, first, rest, absent)
    growth = str(len(film.later))
    yield "growth", "How many more objects are there at the end?", *_options(rng, growth, list("0123"))


def _options(
    rng: np.random.Generator, right: str, wrong: list[str], spare: list[str] | None = None
) -> tuple[tuple[str, ...], str]:
    """Four options, from `spare` as far as the wrong ones do not suffice, and the letter of the right one."""
    chosen = [right, *rng.permutation([w for w in wrong if w != right])[:3].tolist()]
    chosen += rng.permutation(spare or [])[: 4 - len(chosen)].tolist()
    order = rng.permutation(4).tolist()
    return tuple(chosen[i] for i in order), "ABCD"[order.index(0)]


def write(out: Path, count: int) -> int:
    """Films and their questions in the form of `llava.eval.model_vqa_video`; how many questions."""
    return write_questions(out, _lines(out / "videos", count))


def _lines(folder: Path, count: int) -> Iterator[dict[str, object]]:
    """The questions of `count` films, whose frames go to `folder`."""
    for index in range(count):
        rng = np.random.default_rng([SEED, index])
        film, name = make_film(rng), f"{index:06d}"
        for frame, image in enumerate(film.frames):
            write_picture(image, folder / name / f"{frame}.png")
        for kind, text, options, answer in questions(rng, film):
            yield {"video": name, "question": text, "kind": kind, "options": list(options), "answer": answer}


main = writing_command(__doc__, "films", 60, write)

if __name__ == "__main__":
    main()
