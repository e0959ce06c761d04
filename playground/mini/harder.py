"""Questions that cannot be answered without the tokens of what they ask about, in the main job's form:

    python -m playground.mini.harder --scenes 100 --out playground/data/harder
    vlm-pruner compare --questions-file playground/data/harder/questions.jsonl

On scenes as the mini benchmarks draw them, of each: a choice whose options all occur in the picture, about a small
thing ("seen"), one between texts that differ in one or two characters ("near"), one character of a text ("glyph"),
what lies beside a thing ("beside"), how two small things lie ("relation"), and one attribute each of a small and of a
large thing ("small", "large"). Of 192 random tokens at least one lies on 99 % of the large things, but on 78 % of the
small ones only: "large" is the control. The same command always writes the same questions, on scenes that training
never saw.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from playground.mini.benchmarks import certain, scenes
from playground.mini.question_file import write_about_pictures, writing_command
from playground.mini.questions import HARDER, Question
from playground.mini.world import COLOR_NAMES, SHAPES, SIZES, Scene

NAME = "harder"  # what the scenes' seed is made of
TRIES = 20


def questions(rng: np.random.Generator, scene: Scene) -> Iterator[tuple[str, Question]]:
    """(kind, question), of each kind one where the scene has it."""
    for kind in HARDER:
        about_small = (lambda question: _sizes(question, scene) == ["small"]) if kind == "seen" else None
        if question := _first(rng, scene, kind, about_small):
            yield kind, question
    small = Scene(scene.image, [t for t in scene.things if t.size == "small"])
    if question := _first(rng, small, "relation", lambda q: _sizes(q, scene) == ["small", "small"]):
        yield "relation", question
    for size in SIZES:
        part = Scene(scene.image, [t for t in scene.things if t.size == size])
        if question := _first(rng, part, "attribute", lambda q: q.subtask != "size" and len(_sizes(q, scene)) == 1):
            yield size, question


def _first(
    rng: np.random.Generator, scene: Scene, kind: str, fits: Callable[[Question], bool] | None = None
) -> Question | None:
    """The first question of `kind` that fits, of 20 drawn at most."""
    drawn = (certain(rng, scene, kind) for _ in range(TRIES if fits else 1))
    return next((q for q in drawn if q and (fits is None or fits(q))), None)


def _sizes(question: Question, scene: Scene) -> list[str]:
    """Sizes of the things that the question names, as far as each name fits one thing of the whole picture only."""
    sizes = []
    for color, name in re.findall(rf"(?:({'|'.join(COLOR_NAMES)}) )?\b(object|{'|'.join(SHAPES)})\b", question.text):
        named = [t for t in scene.things if color in ("", t.color) and name in ("object", t.shape)]
        sizes += [thing.size for thing in named if len(named) == 1]
    return sizes


def write(out: Path, count: int) -> int:
    """Questions of `count` scenes; how many they are."""
    return write_about_pictures(out, ((scene.image, questions(rng, scene)) for rng, scene in scenes(NAME, count)))


main = writing_command(__doc__, "scenes", 100, write)

if __name__ == "__main__":
    main()
