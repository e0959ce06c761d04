"""What the nouns of a question name in its scene: targets for the losses of training that teach nouns to look.

A scene has `ROWS` rows of patches: the opening of the prompt (what to look at when there is nothing), each thing, each
sign, and each printed character. A mark is one token of a question with the rows it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from playground.mini.model import PREFIX
from playground.mini.questions import PLURALS
from playground.mini.world import (
    COLOR_NAMES,
    GRID,
    PATCH,
    SHAPES,
    SIZES,
    TEXT_LENGTH,
    Scene,
    patches_inside,
)

MAX_THINGS, MAX_SIGNS = 10, 2
OPENING, THINGS = 0, 1
SIGNS = THINGS + MAX_THINGS
GLYPH_ROWS = SIGNS + MAX_SIGNS
ROWS = GLYPH_ROWS + MAX_SIGNS * TEXT_LENGTH
NOTHING = (-100, -100, -100)
SINGULAR = {plural: shape for shape, plural in PLURALS.items()}


@dataclass(frozen=True)
class Mark:
    """`token`: place in the question's ids. `rows`: what it names.

    kind: "thing", "sign", "plural", "glyph", "look" (the answer token at the thing asked about) or "next" (a thing that
    is found from another one). same: whether the token is the sign's character, -100 where that is not the question.
    """

    token: int
    rows: tuple[int, ...]
    kind: str
    same: int = -100


def rows_of(scene: Scene, columns: int, rows: int) -> np.ndarray:
    """Bool [ROWS, PREFIX + N]: which tokens before the questions belong to each row."""
    out = np.zeros((ROWS, PREFIX + columns * rows), bool)
    out[OPENING, :PREFIX] = True
    for i, thing in enumerate(scene.things[:MAX_THINGS]):
        out[THINGS + i, PREFIX:] = patches_inside(thing.box, columns, rows, margin=2).reshape(-1)
    for i, sign in enumerate(scene.signs[:MAX_SIGNS]):
        out[SIGNS + i, PREFIX:] = patches_inside(sign.box, columns, rows).reshape(-1)
        for j, box in enumerate(sign.glyphs):
            row = GLYPH_ROWS + i * TEXT_LENGTH + j
            out[row, PREFIX:] = patches_inside(box, columns, rows, margin=1).reshape(-1)
    return out


def marks_of(tokens: Sequence[str], scene: Scene) -> list[Mark]:
    """The nouns among a question's tokens before its "?", each with what it names in `scene`."""
    asked = tokens[: tokens.index("?")] if "?" in tokens else tokens
    found = []
    for at, word in enumerate(asked):
        before = asked[at - 1] if at and asked[at - 1] in COLOR_NAMES else None
        shape = word if word in SHAPES else SINGULAR.get(word)
        if shape or (word in ("object", "objects") and before):
            fits = [i for i, t in enumerate(scene.things) if shape in (None, t.shape) and before in (None, t.color)]
            plural = word in SINGULAR or word == "objects"
            found.append(Mark(at, tuple(THINGS + i for i in fits), "plural" if plural else "thing"))
        elif word in ("number", "word"):
            fits = [i for i, s in enumerate(scene.signs) if s.is_number == (word == "number")]
            found.append(Mark(at, tuple(SIGNS + i for i in fits), "sign"))
    return found


def spelling(sign: int, first: int, places: Sequence[int]) -> list[Mark]:
    """Marks of the tokens from `first` on that answer with the characters `places` of a sign (its number)."""
    return [Mark(first + n, (GLYPH_ROWS + sign * TEXT_LENGTH + place,), "glyph") for n, place in enumerate(places)]


def place_of(scene: Scene, row: int, corner: tuple[int, int]) -> tuple[float, float]:
    """Middle (x, y) of what a row holds, in patches from the plane's middle; the window begins at `corner`."""
    if row >= GLYPH_ROWS:
        sign, glyph = divmod(row - GLYPH_ROWS, TEXT_LENGTH)
        box = scene.signs[sign].glyphs[glyph]
    else:
        box = scene.signs[row - SIGNS].box if row >= SIGNS else scene.things[row - THINGS].box
    x, y = (box[0] + box[2]) / 2 / PATCH, (box[1] + box[3]) / 2 / PATCH
    return x + corner[0] - GRID / 2, y + corner[1] - GRID / 2


def what_of(scene: Scene, row: int) -> tuple[int, int, int]:
    """Shape, colour and size of a thing, as numbers."""
    if not THINGS <= row < SIGNS:
        return NOTHING
    thing = scene.things[row - THINGS]
    return SHAPES.index(thing.shape), COLOR_NAMES.index(thing.color), SIZES.index(thing.size)
