"""What training feeds on: batches of scenes on a window of the 24 x 24 grid, with packed questions and patch labels.

Scenes smaller than the full grid are whole scenes of their own, placed somewhere in the raster: their patches carry
the position ids of that place. Early lessons are small and cheap, late ones fill the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from playground.mini.model import Pack, to_pixels
from playground.mini.questions import EXAM_SHARE, KINDS, Question, ask
from playground.mini.textures import Gallery
from playground.mini.tokenizer import build
from playground.mini.world import COLOR_NAMES, GLYPHS, GRID, PATCH, SHAPES, SIZES, Scene, make_scene, patches_inside

ALL_KINDS = (*KINDS, "verify", "where")
IGNORE = -100
SHORT_LENGTH, CHOICE_LENGTH = 16, 24
# Classes of the patch labels: 0 is "nothing of the sort here".
HEADS = {
    "shape": 1 + len(SHAPES),
    "color": 1 + len(COLOR_NAMES),
    "size": 1 + len(SIZES),
    "center": 2,
    "glyph": 1 + len(GLYPHS),
    "place": 4,
}


@dataclass(frozen=True)
class Mix:
    """Questions asked of one full picture by kind; smaller ones get fewer of each. `choices` are multiple choice.

    `position`: of lessons on position, with two or three things, nothing else, and mostly the question how they lie.
    """

    everything: dict[str, int]
    position: dict[str, int]
    choices: int


FIRST_MIX = Mix(
    {"existence": 3, "attribute": 4, "count": 4, "relation": 4, "reading": 2, "verify": 3, "where": 3},
    {"relation": 9, "where": 10, "attribute": 2, "existence": 1, "verify": 1},
    choices=5,
)
# For a model that can already do the rest: what takes two steps of thought.
HARD_MIX = Mix(
    {"existence": 2, "attribute": 3, "count": 3, "relation": 5, "reading": 1, "verify": 3, "where": 6},
    {"relation": 8, "where": 14, "attribute": 1},
    choices=9,
)
# And what it would else forget: with the mix above, reading fell from 95 to 75 % in 300 steps.
LAST_MIX = Mix(
    {"existence": 2, "attribute": 3, "count": 4, "relation": 4, "reading": 3, "verify": 3, "where": 4},
    HARD_MIX.position,
    choices=9,
)


@dataclass(frozen=True)
class Lesson:
    """A batch. `kinds` long [B, sum Q] into `ALL_KINDS`; `patch_labels` long [B, heads, N]; `centers` [B, N, 2]."""

    pixels: Tensor
    raster: Tensor
    packs: list[Pack]
    kinds: Tensor
    patch_labels: Tensor
    centers: Tensor


@lru_cache(maxsize=1)
def _tokenizer():
    return build()


def encode(texts: Sequence[tuple[str, str]], length: int) -> tuple[Tensor, Tensor]:
    """Ids and next-token labels, long [Q, length] each, of (prompt, answer); the end token is the last label."""
    core = _tokenizer().backend_tokenizer
    prompts = core.encode_batch([f"\n{prompt} ASSISTANT:" for prompt, _ in texts], add_special_tokens=False)
    answers = core.encode_batch([answer for _, answer in texts], add_special_tokens=False)
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE)
    end = _tokenizer().eos_token_id
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        whole, start = prompt.ids + answer.ids, len(prompt.ids) - 1
        ids[row, : len(whole)] = torch.tensor(whole)
        labels[row, start : start + len(answer.ids) + 1] = torch.tensor([*answer.ids, end])
    return ids, labels


def patch_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [heads, N] and centres float32 [N, 2] (share of the full picture, NaN where there is no thing)."""
    columns, rows = scene.image.width // PATCH, scene.image.height // PATCH
    labels = np.zeros((len(HEADS), rows, columns), np.int64)
    centers = np.full((rows, columns, 2), np.nan, np.float32)
    for box in scene.distractors:
        labels[:, patches_inside(box, columns, rows)] = IGNORE  # the tower is never told what these are
    for thing in scene.things:
        inside = patches_inside(thing.box, columns, rows, margin=2)
        labels[0][inside] = 1 + SHAPES.index(thing.shape)
        labels[1][inside] = 1 + COLOR_NAMES.index(thing.color)
        labels[2][inside] = 1 + SIZES.index(thing.size)
        labels[3:, inside] = 0
        labels[3, min(rows - 1, thing.y // PATCH), min(columns - 1, thing.x // PATCH)] = 1
        centers[inside] = thing.x / PATCH, thing.y / PATCH
    for sign in scene.signs:
        for place, (box, character) in enumerate(zip(sign.glyphs, sign.text, strict=True)):
            inside = patches_inside(box, columns, rows, margin=1)
            labels[:4, inside] = 0
            labels[4][inside] = 1 + GLYPHS.index(character)
            labels[5][inside] = 1 + place
    return labels.reshape(len(HEADS), -1), centers.reshape(-1, 2)


def _questions(
    rng: np.random.Generator, scene: Scene, share: float, mix: dict[str, int], choices: int
) -> tuple[list[Question], list[Question]]:
    """Short-answer and multiple-choice questions; what a scene cannot be asked is replaced by another kind."""
    short = [kind for kind, n in mix.items() for _ in range(max(1, round(n * share)))]
    return _ask_all(rng, scene, short), _ask_all(rng, scene, ["choice"] * max(1, round(choices * share)))


def _ask_all(rng: np.random.Generator, scene: Scene, kinds: list[str]) -> list[Question]:
    fallback = ["choice"] if kinds[0] == "choice" else ["existence", "attribute", "verify", "count"]
    asked = []
    for kind in kinds:
        question = ask(rng, scene, kind)
        for other in fallback if question is None else ():
            question = question or ask(rng, scene, other)
        # A sign alone has nothing to choose between; counting "0" of something always works.
        while question is None:
            question = ask(rng, scene, kinds[0])
        asked.append(question)
    return asked


def _wording(rng: np.random.Generator, question: Question) -> tuple[str, str]:
    exam = bool(question.options) and rng.random() < EXAM_SHARE
    return (question.exam_prompt if exam else question.prompt), question.answer


def make_lesson(
    rng: np.random.Generator,
    surfaces: Gallery,
    grid: int,
    batch: int,
    share: float,
    position: bool = False,
    mix: Mix = FIRST_MIX,
) -> Lesson:
    """`batch` scenes of `grid` x `grid` patches; `share` scales the number of questions per scene.

    `position`: a lesson on how things lie to each other, instead of one on everything.
    """
    contents = [(int(rng.integers(2, 4)), 0, 0) if position else None for _ in range(batch)]
    scenes = [make_scene(rng, surfaces, grid, grid, content) for content in contents]
    # Lessons on position in the middle: already the first thing's place then says something about the answer.
    offsets = np.full((batch, 2), (GRID - grid) // 2) if position else rng.integers(0, GRID - grid + 1, (batch, 2))
    for scene, (x, y) in zip(scenes, offsets, strict=True):
        scene.middle = ((GRID / 2 - x) * PATCH, (GRID / 2 - y) * PATCH)
    window = np.arange(grid)[:, None] * GRID + np.arange(grid)[None]
    raster = np.stack([(window + y * GRID + x).reshape(-1) for x, y in offsets])
    labelled = [patch_labels(scene) for scene in scenes]
    centers = np.stack([(c + o) / GRID for (_, c), o in zip(labelled, offsets, strict=True)])
    kinds = mix.position if position else mix.everything
    asked = [_questions(rng, scene, share, kinds, mix.choices) for scene in scenes]
    packs = []
    for group, length in ((0, SHORT_LENGTH), (1, CHOICE_LENGTH)):
        ids, labels = encode([_wording(rng, q) for pair in asked for q in pair[group]], length)
        packs.append(Pack(ids.view(batch, -1, length), labels.view(batch, -1, length)))
    asked_kinds = torch.tensor([[ALL_KINDS.index(q.kind) for group in pair for q in group] for pair in asked])
    return Lesson(
        to_pixels(torch.from_numpy(np.stack([np.asarray(s.image) for s in scenes]))),
        torch.from_numpy(raster),
        packs,
        asked_kinds,
        torch.from_numpy(np.stack([labels for labels, _ in labelled])),
        torch.from_numpy(centers.astype(np.float32)),
    )
