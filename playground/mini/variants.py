"""Other worlds than the default one: more things, or more that nobody asks about, on surfaces of their own.

    python -m playground.mini.variants --world crowded --scenes 100 --per-kind 4 --seed 0 --out playground/data/worlds

writes `crowded-0-100x4/questions.jsonl` and `images/`, in the form of the main job's question list, with several
questions of each kind per scene. The embedded model was trained on scenes like the default world's only, one of the
judges (docs/judges.md) on the motley world's. Scenes, seeds and surfaces are never those of training; the same command
always writes the same questions.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from playground.mini.benchmarks import certain
from playground.mini.question_file import write_about_pictures
from playground.mini.questions import KINDS, Question
from playground.mini.world import TEST_GALLERY, Scene, gallery, make_scene

VARIANT_SEED = 20_260_222
TRIES = 6  # for a question of a kind that was not asked of the scene yet


@dataclass(frozen=True)
class World:
    """things, distractors: how many a scene tries to place, from the first to the second number, both included.

    surfaces: seed of the backgrounds and fabrics. style: what they look like (`world.STYLES`). Every scene has two
    signs: "the number" must mean one thing.
    """

    surfaces: int
    things: tuple[int, int]
    distractors: tuple[int, int]
    signs: int = 2
    style: str = "default"

    def scene(self, rng: np.random.Generator) -> Scene:
        low, high = self.things
        things = int(rng.integers(low, high + 1))
        return make_scene(
            rng,
            gallery(self.surfaces, self.style),
            contents=(things, self.signs, int(rng.integers(self.distractors[0], self.distractors[1] + 1))),
        )


WORLDS = {
    "default": World(TEST_GALLERY, things=(5, 9), distractors=(7, 11)),
    "crowded": World(surfaces=3, things=(11, 15), distractors=(3, 6)),
    "cluttered": World(surfaces=4, things=(4, 6), distractors=(18, 26)),
    "motley": World(TEST_GALLERY, things=(5, 9), distractors=(7, 11), style="motley"),
}


def scenes(world: str, count: int, seed: int) -> Iterator[tuple[np.random.Generator, Scene]]:
    """`count` scenes of a world, each with the generator that its questions are drawn from."""
    for index in range(count):
        rng = np.random.default_rng([VARIANT_SEED, *world.encode(), seed, index])
        yield rng, WORLDS[world].scene(rng)


def questions(rng: np.random.Generator, scene: Scene, per_kind: int) -> list[Question]:
    """Up to `per_kind` different questions of every kind; fewer where a scene has no more to ask about."""
    asked: dict[str, Question] = {}
    for kind in KINDS:
        for _ in range(per_kind):
            for _ in range(TRIES):
                question = certain(rng, scene, kind)
                if question is not None and question.prompt not in asked:
                    asked[question.prompt] = question
                    break
    return list(asked.values())


def write(out: Path, world: str, count: int, per_kind: int, seed: int) -> Path:
    """Writes the folder and returns its path; one that is there already is left as it is."""
    folder = out / f"{world}-{seed}-{count}x{per_kind}"
    if folder.exists():
        return folder
    fresh = out / f".{folder.name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    drawn = scenes(world, count, seed)
    write_about_pictures(fresh, ((s.image, [(q.kind, q) for q in questions(rng, s, per_kind)]) for rng, s in drawn))
    fresh.rename(folder)  # a killed run leaves nothing that looks whole
    return folder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(WORLDS), required=True)
    parser.add_argument("--scenes", type=int, default=100, metavar="N", help="(%(default)s)")
    parser.add_argument("--per-kind", type=int, default=4, metavar="N", help="questions per scene (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other scenes (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, e.g. playground/data/worlds")
    args = parser.parse_args(argv)
    print(write(args.out, args.world, args.scenes, args.per_kind, args.seed))


if __name__ == "__main__":
    main()
