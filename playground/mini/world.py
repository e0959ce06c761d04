"""Scenes of the mini world: 336 x 336 pictures with coloured shapes, printed signs and textured distractors.

Questions are only ever about shapes and signs. Distractors are there because real pictures are full of things that
nobody asks about: they take 15-20 % of the patches, look different from patch to patch, and so compete for the
token budget of any selection that rewards diversity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from playground.mini.textures import FABRIC_SIZE, FACES, Gallery, Style, face_path

PATCH = 14
GRID = 24
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 220),
    "yellow": (238, 214, 45),
    "purple": (150, 55, 185),
    "cyan": (60, 205, 215),
}
COLOR_NAMES = tuple(COLORS)
SIZES = ("small", "large")
DIGITS = "0123456789"
LETTERS = "ACEHLOTX"
GLYPHS = DIGITS + LETTERS
TEXT_LENGTH = 3
TRAIN_GALLERY, TEST_GALLERY = 1, 2  # seeds; scenes of the two splits never share a surface
STYLES = {
    "default": Style(),
    # Hard to look at: backgrounds with detail everywhere, distractors in the things' own colours, several type faces.
    "motley": Style(photos=True, inks=tuple(COLORS.values()), faces=FACES),
}

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Thing:
    """A coloured shape; `x`, `y`, `radius` in pixels."""

    shape: str
    color: str
    size: str
    x: int
    y: int
    radius: int

    @property
    def box(self) -> Box:
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


@dataclass(frozen=True)
class Sign:
    """A plate with a printed number or word; `glyphs` are the boxes of its characters in reading order."""

    text: str
    box: Box
    glyphs: tuple[Box, ...]

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()


@dataclass
class Scene:
    """A picture and what is in it; `middle` (x, y), in its pixels, of the 24 x 24 plane that it is a window of."""

    image: Image.Image
    things: list[Thing] = field(default_factory=list)
    signs: list[Sign] = field(default_factory=list)
    distractors: list[Box] = field(default_factory=list)
    middle: tuple[float, float] = (GRID * PATCH / 2, GRID * PATCH / 2)

    def foreground(self) -> float:
        """Share of patches that a thing, a sign or a distractor reaches into (by its box)."""
        columns, rows = self.image.width // PATCH, self.image.height // PATCH
        hit = np.zeros((rows, columns), bool)
        for box in [t.box for t in self.things] + [s.box for s in self.signs] + self.distractors:
            hit |= patches_inside(box, columns, rows)
        return float(hit.mean())


def patches_inside(box: Box, columns: int, rows: int, margin: float = 0.0) -> np.ndarray:
    """Bool [rows, columns]: patches whose centre lies in `box` grown by `margin` pixels."""
    x = (np.arange(columns) + 0.5) * PATCH
    y = (np.arange(rows) + 0.5) * PATCH
    inside_x = (x >= box[0] - margin) & (x <= box[2] + margin)
    inside_y = (y >= box[1] - margin) & (y <= box[3] + margin)
    return inside_y[:, None] & inside_x[None]


@lru_cache(maxsize=4)
def gallery(seed: int, style: str = "default") -> Gallery:
    """The surfaces of `STYLES[style]` that `seed` draws."""
    return Gallery(seed, style=STYLES[style])


@lru_cache(maxsize=64)
def _font(size: int, face: str | None = None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if face is not None:
        return ImageFont.truetype(str(face_path(face)), size)
    return ImageFont.load_default(size)  # ships with Pillow, so pictures do not depend on installed fonts


def _outline(shape: str, r: float) -> list[tuple[float, float]]:
    """Corners of a polygonal shape of radius `r` around the origin."""
    if shape == "square":
        return [(-0.86 * r, -0.86 * r), (0.86 * r, -0.86 * r), (0.86 * r, 0.86 * r), (-0.86 * r, 0.86 * r)]
    if shape == "triangle":
        return [(0, -r), (r, 0.8 * r), (-r, 0.8 * r)]
    if shape == "star":
        turns = [(-np.pi / 2 + i * np.pi / 5, r if i % 2 == 0 else 0.45 * r) for i in range(10)]
        return [(q * np.cos(a), q * np.sin(a)) for a, q in turns]
    w = 0.34 * r
    return [(-w, -r), (w, -r), (w, -w), (r, -w), (r, w), (w, w), (w, r), (-w, r), (-w, w), (-r, w), (-r, -w), (-w, -w)]


@lru_cache(maxsize=1024)
def _mask(shape: str, radius: int, tilt: int) -> Image.Image:
    """Anti-aliased silhouette, mode L, 2 * radius pixels wide; `tilt` in degrees."""
    scale, size = 4, 8 * radius
    mask = Image.new("L", (size, size), 0)
    draw, c, r = ImageDraw.Draw(mask), size / 2, scale * radius - 2
    if shape == "circle":
        draw.ellipse([c - r, c - r, c + r, c + r], fill=255)
    elif shape == "ring":
        draw.ellipse([c - r, c - r, c + r, c + r], outline=255, width=max(4, int(0.36 * r)))
    else:
        draw.polygon([(c + x, c + y) for x, y in _outline(shape, r)], fill=255)
    if tilt:
        mask = mask.rotate(tilt, resample=Image.Resampling.BICUBIC)
    return mask.resize((2 * radius, 2 * radius), Image.Resampling.LANCZOS)


@lru_cache(maxsize=128)
def _light(radius: int) -> np.ndarray:
    """Shading from upper left to lower right, float32 [2r, 2r, 1]."""
    ramp = np.linspace(1.12, 0.84, 2 * radius, dtype=np.float32)
    return ((ramp[:, None] + ramp[None]) / 2)[..., None]


class _Canvas:
    """Draws one scene; remembers where things are so that they do not overlap."""

    def __init__(self, rng: np.random.Generator, surfaces: Gallery, columns: int, rows: int) -> None:
        self.rng, self.surfaces = rng, surfaces
        self.width, self.height = columns * PATCH, rows * PATCH
        self.image = surfaces.background(rng, self.width, self.height)
        self.taken: list[Box] = []

    def place(self, width: int, height: int, gap: int = 3) -> tuple[int, int] | None:
        """A free upper-left corner for a box, or None after 30 tries."""
        if width + 2 > self.width or height + 2 > self.height:
            return None
        for _ in range(30):
            x = int(self.rng.integers(1, self.width - width))
            y = int(self.rng.integers(1, self.height - height))
            right, bottom = x + width + gap, y + height + gap
            if all(right < b[0] or b[2] + gap < x or bottom < b[1] or b[3] + gap < y for b in self.taken):
                self.taken.append((x, y, x + width, y + height))
                return x, y
        return None

    def distractor(self) -> Box | None:
        width, height = (int(v) for v in self.rng.integers(30, min(76, FABRIC_SIZE, self.width // 2 + 8), 2))
        corner = self.place(width, height, gap=1)
        if corner is None:
            return None
        piece, mask = self.surfaces.distractor(self.rng, width, height)
        self.image.paste(piece, corner, mask)
        return (corner[0], corner[1], corner[0] + width, corner[1] + height)

    def thing(self, shape: str, color: str, size: str) -> Thing | None:
        radius = int(self.rng.integers(12, 16) if size == "small" else self.rng.integers(22, 29))
        corner = self.place(2 * radius, 2 * radius)
        if corner is None:
            return None
        self.paste(self.image, self.look(shape, color, radius), corner)
        return Thing(shape, color, size, corner[0] + radius, corner[1] + radius, radius)

    def look(self, shape: str, color: str, radius: int) -> tuple[Image.Image, Image.Image]:
        """Surface and silhouette of a thing, both 2 * radius pixels wide."""
        mask = _mask(shape, radius, int(self.rng.choice([-12, -6, 0, 6, 12])))
        tint = np.array(COLORS[color], np.float32) + self.rng.normal(0, 9, 3).astype(np.float32)
        return Image.fromarray(np.clip(tint * _light(radius), 0, 255).astype(np.uint8)), mask

    @staticmethod
    def paste(image: Image.Image, look: tuple[Image.Image, Image.Image], corner: tuple[int, int]) -> None:
        """Draw a thing with its shadow."""
        fill, mask = look
        shadow = mask.point(lambda v: int(v * 0.35))
        image.paste((20, 20, 24), (corner[0] + 2, corner[1] + 2), shadow)
        image.paste(fill, corner, mask)

    def sign(self, text: str) -> Sign | None:
        size = int(self.rng.integers(23, 30))
        face = self.surfaces.face(self.rng)
        font = _font(size, face)
        advances = [font.getlength(c) + 2 for c in text]
        width, height = int(sum(advances)) + 10, int(size * 0.75) + 11
        corner = self.place(width, height)
        if corner is None:
            return None
        x, y = corner
        tone = [int(v) for v in self.rng.integers(0, 40, 3)]
        pale = tuple(255 - v for v in tone)
        ink, plate = (pale, tuple(tone)) if self.rng.random() < 0.5 else (tuple(tone), pale)
        draw = ImageDraw.Draw(self.image)
        draw.rounded_rectangle([x, y, x + width, y + height], radius=4, fill=plate, outline=ink)
        glyphs, left = [], float(x + 5)
        for character, advance in zip(text, advances, strict=True):
            # Stroke: Pillow's face is thin, and a 14-pixel patch sees little of a thin line.
            draw.text(
                (left + 1, y + height / 2),
                character,
                font=font,
                fill=ink,
                anchor="lm",
                stroke_width=0.0 if face else 0.6,
                stroke_fill=ink,
            )
            glyphs.append((left, float(y), left + advance, float(y + height)))
            left += advance
        return Sign(text, (x, y, x + width, y + height), tuple(glyphs))


def _texts(rng: np.random.Generator, count: int) -> list[str]:
    """`count` strings, numbers and words alternating, so that "the number" is unique for two signs."""
    alphabets = [DIGITS, LETTERS] if rng.random() < 0.5 else [LETTERS, DIGITS]
    return [_text(rng, alphabets[i % 2]) for i in range(count)]


def _text(rng: np.random.Generator, alphabet: str) -> str:
    # "THE" is a word of the questions as well, and would not be spelled by the tokenizer.
    while (text := "".join(rng.choice(list(alphabet), TEXT_LENGTH))) == "THE":
        pass
    return text


def _contents(rng: np.random.Generator, columns: int, rows: int) -> tuple[int, int, int]:
    """How many things, signs and distractors fit a scene of this size."""
    patches = columns * rows
    if patches >= 400:
        return int(rng.integers(5, 10)), 2, int(rng.integers(7, 12))
    if patches >= 220:
        return int(rng.integers(3, 6)), int(rng.integers(1, 3)), int(rng.integers(1, 4))
    if patches >= 120:
        return int(rng.integers(2, 5)), int(rng.integers(0, 3)), int(rng.integers(0, 3))
    if patches >= 60:
        return int(rng.integers(1, 3)), int(rng.integers(0, 2)), int(rng.integers(0, 2))
    return (0, 1, 0) if rng.random() < 0.3 else (int(rng.integers(1, 3)), 0, 0)


T = TypeVar("T")


def _placed(found: Iterable[T | None]) -> list[T]:
    """What found room on the canvas."""
    return [one for one in found if one]


def make_scene(
    rng: np.random.Generator,
    surfaces: Gallery,
    columns: int = GRID,
    rows: int = GRID,
    contents: tuple[int, int, int] | None = None,
) -> Scene:
    """Draw a scene of `columns` x `rows` patches.

    `contents`: numbers of things, signs and distractors to try to place; by default drawn to suit the size.
    """
    canvas = _Canvas(rng, surfaces, columns, rows)
    n_things, n_signs, n_distractors = contents or _contents(rng, columns, rows)
    scene = Scene(canvas.image)
    scene.signs = _placed(canvas.sign(text) for text in _texts(rng, n_signs))
    for _ in range(n_things):
        shape, color = SHAPES[rng.integers(6)], COLOR_NAMES[rng.integers(6)]
        if scene.things and rng.random() < 0.25:
            shape = scene.things[rng.integers(len(scene.things))].shape
        if scene.things and rng.random() < 0.2:
            color = scene.things[rng.integers(len(scene.things))].color
        if thing := canvas.thing(shape, color, SIZES[rng.integers(2)]):
            scene.things.append(thing)
    scene.distractors = _placed(canvas.distractor() for _ in range(n_distractors))
    return scene


def counting_scene(
    rng: np.random.Generator, surfaces: Gallery, columns: int, rows: int, contents: tuple[int, int, int], many: int
) -> Scene:
    """As `make_scene`, with `many` things of one colour or one shape first and the others of neither."""
    canvas = _Canvas(rng, surfaces, columns, rows)
    n_things, n_signs, n_distractors = contents
    scene, by_color = Scene(canvas.image), rng.random() < 0.5
    shape, color = SHAPES[rng.integers(6)], COLOR_NAMES[rng.integers(6)]
    scene.signs = _placed(canvas.sign(text) for text in _texts(rng, n_signs))
    for index in range(max(n_things, many)):
        form, tint = SHAPES[rng.integers(6)], COLOR_NAMES[rng.integers(6)]
        if index < many:
            form, tint = (form, color) if by_color else (shape, tint)
        elif by_color:
            tint = str(rng.choice([c for c in COLOR_NAMES if c != color]))
        else:
            form = str(rng.choice([s for s in SHAPES if s != shape]))
        if thing := canvas.thing(form, tint, SIZES[rng.integers(2)]):
            scene.things.append(thing)
    scene.distractors = _placed(canvas.distractor() for _ in range(n_distractors))
    return scene


def grouped_scene(
    rng: np.random.Generator,
    surfaces: Gallery,
    columns: int,
    rows: int,
    contents: tuple[int, int, int],
    groups: tuple[int, ...],
) -> Scene:
    """As `make_scene`, with groups of things of one colour each (or one shape each), and others of none of these."""
    canvas = _Canvas(rng, surfaces, columns, rows)
    n_things, n_signs, n_distractors = contents
    names = SHAPES if rng.random() < 0.5 else COLOR_NAMES
    order = [str(name) for name in rng.permutation(names)]
    members = [order[group] for group, many in enumerate(groups) for _ in range(many)]
    rest = order[len(groups) :]
    members += [rest[rng.integers(len(rest))] for _ in range(n_things - len(members))]
    scene = Scene(canvas.image)
    scene.signs = _placed(canvas.sign(text) for text in _texts(rng, n_signs))
    for name in members:
        other = (COLOR_NAMES if names is SHAPES else SHAPES)[rng.integers(6)]
        form, tint = (name, other) if names is SHAPES else (other, name)
        if thing := canvas.thing(form, tint, SIZES[rng.integers(2)]):
            scene.things.append(thing)
    scene.distractors = _placed(canvas.distractor() for _ in range(n_distractors))
    return scene
