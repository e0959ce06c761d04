"""Questions that cannot be answered without the tokens of what they ask about, in the main job's form:

    python -m playground.mini.harder --scenes 100 --out playground/data/harder
    vlm-pruner compare --questions-file playground/data/harder/questions.jsonl

On scenes as the mini benchmarks draw them, of each: a choice whose options all occur in the picture ("seen"), one
between texts that differ in one or two characters ("near"), one character of a text ("glyph"), what lies beside a thing
("beside"), and one attribute each of a small and of a large thing ("small", "large"). The same command always writes
the same questions, on scenes that training never saw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from playground.mini.benchmarks import certain, scenes
from playground.mini.questions import HARDER, Question
from playground.mini.world import SIZES, Scene

NAME = "harder"  # what the scenes' seed is made of


def questions(rng: np.random.Generator, scene: Scene) -> Iterator[tuple[str, Question]]:
    """(kind, question), of each kind one where the scene has it."""
    for kind in HARDER:
        if question := certain(rng, scene, kind):
            yield kind, question
    for size in SIZES:
        part = Scene(scene.image, [t for t in scene.things if t.size == size])
        drawn = (certain(rng, part, "attribute") for _ in range(20))
        # Names must fit one thing of the whole picture, not only of this size.
        fits = (q for q in drawn if q and q.subtask != "size" and _unique(q, scene))
        if question := next(fits, None):
            yield size, question


def _unique(question: Question, scene: Scene) -> bool:
    words = question.text.rstrip("?").split()
    named = [t for t in scene.things if (t.color == words[-2] if words[-1] == "object" else t.shape == words[-1])]
    return len(named) == 1


def write(out: Path, count: int) -> int:
    """Questions of `count` scenes; how many they are."""
    lines: list[dict[str, object]] = []
    (out / "images").mkdir(parents=True, exist_ok=True)
    for index, (rng, scene) in enumerate(scenes(NAME, count)):
        name = f"{index:06d}.png"
        scene.image.save(out / "images" / name, "PNG", compress_level=1)
        for kind, question in questions(rng, scene):
            line = {"question_id": len(lines), "image": name, "text": question.prompt, "kind": kind}
            lines.append(line | {"answer": question.answer})
    (out / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100, metavar="N", help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)
    print(f"{args.out}/questions.jsonl: {write(args.out, args.scenes)} questions")


if __name__ == "__main__":
    main()
