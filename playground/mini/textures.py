"""Surfaces that scenes are made of: backgrounds, the fabric of distractors, and soft masks.

A `Gallery` draws a few dozen of each once, from a seed; scenes then cut pieces out of them, which keeps
rendering at a few milliseconds. Training and test scenes use galleries of different seeds. A `Style` says what kind of
world the surfaces belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

BACKGROUND_SIZE = 480
FABRIC_SIZE = 112
# Earth tones: far from the six saturated colours of the objects that questions are about.
MUTED = np.array(
    [
        (124, 102, 84), (168, 150, 120), (96, 104, 92), (140, 128, 138), (86, 92, 108), (186, 174, 158),
        (112, 84, 80), (150, 142, 104), (70, 74, 72), (196, 186, 190), (132, 116, 60), (102, 122, 124),
    ],
    dtype=np.float32,
)  # fmt: skip

FACES = ("DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Bold.ttf")  # of matplotlib


@dataclass(frozen=True)
class Style:
    """What a world's surfaces look like; the default is the default world's.

    photos: backgrounds like photographs out of focus instead of walls, fields and tiles. inks: colours that distractors
    wear beside the muted ones. faces: files of the type faces that signs are printed in, one drawn per sign; none means
    the face that ships with Pillow.
    """

    photos: bool = False
    inks: tuple[tuple[int, int, int], ...] = ()
    faces: tuple[str, ...] = ()


def face_path(file: str) -> Path:
    """Where a type face of matplotlib's lies. Raises FileNotFoundError when it is not installed."""
    spec = find_spec("matplotlib")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("matplotlib")
    path = folder / "mpl-data" / "fonts" / "ttf" / file
    if not path.is_file():
        raise FileNotFoundError(
            f"no type face {path}: this world's signs need matplotlib's: pip install 'vlm-pruner[figures]'"
        )
    return path


def _smooth_noise(rng: np.random.Generator, size: int, cells: int, amplitude: float) -> np.ndarray:
    """Low-frequency colour noise, float [size, size, 3], zero mean."""
    coarse = rng.normal(0, amplitude, (cells, cells, 3)) + rng.normal(0, amplitude * 0.6, (cells, cells, 1))
    planes = [
        np.asarray(Image.fromarray(coarse[..., c].astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(planes, -1)


def _waves(rng: np.random.Generator, size: int, period: tuple[float, float], warp: float = 0.0) -> np.ndarray:
    """A sine grating in [-1, 1], float [size, size]; `warp` bends the lines like wood grain."""
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = xx * np.cos(angle) + yy * np.sin(angle)
    across = -xx * np.sin(angle) + yy * np.cos(angle)
    bend = warp * np.sin(across / rng.uniform(18, 45) + rng.uniform(0, 6))
    return np.sin((along + bend) * 2 * np.pi / rng.uniform(*period))


def _background(rng: np.random.Generator) -> np.ndarray:
    """One backdrop, uint8 [480, 480, 3]: a wall, a field, wood, tiles or sky-like gradient."""
    size = BACKGROUND_SIZE
    base = MUTED[rng.integers(len(MUTED))] * rng.uniform(0.6, 1.25) + rng.normal(0, 10, 3)
    canvas = base + _smooth_noise(rng, size, int(rng.integers(3, 8)), rng.uniform(6, 20))
    style = rng.integers(5)
    if style == 0:
        canvas += np.linspace(-1, 1, size)[:, None, None] * rng.uniform(15, 45) * rng.choice([-1, 1])
    elif style == 1:
        canvas += _waves(rng, size, (14, 40), warp=14)[..., None] * rng.uniform(4, 12)
    elif style == 2:
        grid = _waves(rng, size, (20, 60)) * _waves(rng, size, (20, 60))
        canvas += np.sign(grid)[..., None] * rng.uniform(3, 9)
    elif style == 3:
        canvas += _smooth_noise(rng, size, int(rng.integers(30, 70)), rng.uniform(6, 14))
    canvas += rng.normal(0, rng.uniform(1, 7), (size, size, 1))
    return np.clip(canvas, 8, 247).astype(np.uint8)


def _photo(rng: np.random.Generator) -> np.ndarray:
    """A backdrop like a photograph out of focus, uint8 [480, 480, 3]: detail at every scale, light from one side, and
    blurred bodies in front."""
    size = BACKGROUND_SIZE
    canvas = MUTED[rng.integers(len(MUTED))] * rng.uniform(0.7, 1.2) + np.zeros((size, size, 3))
    for cells in (4, 8, 16, 32, 64, 128):  # amplitude falls with the frequency, as in photographs
        canvas += _smooth_noise(rng, size, cells, rng.uniform(40, 80) / cells**0.7)
    yy, xx = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    canvas *= 1 + rng.uniform(0.2, 0.6) * (np.cos(angle) * xx + np.sin(angle) * yy)[..., None]
    bodies = Image.fromarray(np.clip(canvas, 8, 247).astype(np.uint8))
    draw = ImageDraw.Draw(bodies)
    for _ in range(int(rng.integers(8, 20))):
        x, y, width, height = rng.integers(-40, size), rng.integers(-40, size), *rng.integers(30, 160, 2)
        tone = tuple(int(v) for v in np.clip(MUTED[rng.integers(len(MUTED))] * rng.uniform(0.5, 1.3), 8, 247))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([int(x), int(y), int(x + width), int(y + height)], fill=tone)
    blurred = np.asarray(bodies.filter(ImageFilter.GaussianBlur(rng.uniform(5, 14))), dtype=np.float32)
    mixed = 0.6 * blurred + 0.4 * canvas + rng.normal(0, rng.uniform(2, 6), (size, size, 1))
    return np.clip(mixed, 8, 247).astype(np.uint8)


def _two_tones(rng: np.random.Generator, inks: tuple[tuple[int, int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two different colours of a fabric; at least one of `inks`, if there are any."""
    if not inks:
        pick = rng.choice(len(MUTED), 2, replace=False)
        first, second = (np.clip(MUTED[i] * rng.uniform(0.6, 1.3), 15, 235) for i in pick)
        return first, second
    bright = np.array(inks, np.float32)
    one = int(rng.integers(len(bright)))
    others = np.concatenate([np.delete(bright, one, 0), MUTED])
    pair = [bright[one], others[rng.integers(len(others))]]
    order = rng.permutation(2)
    first, second = (np.clip(pair[i] * rng.uniform(0.85, 1.1), 15, 240) for i in order)
    return first, second


def _fabric(rng: np.random.Generator, inks: tuple[tuple[int, int, int], ...] = ()) -> np.ndarray:
    """The surface of a distractor, uint8 [112, 112, 3]: bricks, dots, weave, scribbles, leaves or rubble."""
    size = FABRIC_SIZE
    first, second = _two_tones(rng, inks)
    image = Image.new("RGB", (size, size), tuple(int(v) for v in first))
    draw, ink = ImageDraw.Draw(image), tuple(int(v) for v in second)
    style = rng.integers(6)
    if style == 0:
        height, width = int(rng.integers(7, 15)), int(rng.integers(14, 32))
        for row, y in enumerate(range(0, size, height)):
            draw.line([(0, y), (size, y)], fill=ink, width=2)
            for x in range((row % 2) * width // 2, size, width):
                draw.line([(x, y), (x, y + height)], fill=ink, width=2)
    elif style == 1:
        step, radius = int(rng.integers(9, 18)), int(rng.integers(2, 5))
        for row, y in enumerate(range(0, size + step, step)):
            for x in range((row % 2) * step // 2, size + step, step):
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=ink)
    elif style == 2:
        for _ in range(int(rng.integers(8, 18))):
            draw.line(
                [tuple(p) for p in rng.integers(0, size, (5, 2)).tolist()], fill=ink, width=int(rng.integers(1, 4))
            )
    elif style == 3:
        for _ in range(int(rng.integers(30, 70))):
            x, y = rng.integers(-8, size, 2)
            w, h = rng.integers(5, 18, 2)
            shade = tuple(int(v) for v in np.clip(second + rng.normal(0, 22), 10, 240))
            draw.ellipse([int(x), int(y), int(x + w), int(y + h)], fill=shade)
    elif style == 4:
        mix = (_waves(rng, size, (6, 16)) > 0) ^ (_waves(rng, size, (6, 16)) > 0)
        image = Image.fromarray(np.where(mix[..., None], first, second).astype(np.uint8))
    else:
        mix = (_waves(rng, size, (7, 20), warp=5)[..., None] + 1) / 2
        image = Image.fromarray((first * mix + second * (1 - mix)).astype(np.uint8))
    noisy = np.asarray(image, dtype=np.float32) + rng.normal(0, rng.uniform(2, 9), (size, size, 1))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _blob(rng: np.random.Generator, size: int = FABRIC_SIZE) -> Image.Image:
    """A soft-edged outline for a distractor, mode L: rounded box, pebble or leaf."""
    mask = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(mask)
    style = rng.integers(3)
    if style == 0:
        draw.rounded_rectangle([3, 3, size - 4, size - 4], radius=int(rng.integers(6, 30)), fill=255)
    else:
        angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        wobble = 1 + sum(rng.normal(0, 0.09) * np.cos(k * angles + rng.uniform(0, 6)) for k in (2, 3, 4))
        radius = (size / 2 - 5) * np.clip(wobble / wobble.max(), 0.5, 1)
        points = [(size / 2 + r * np.cos(a), size / 2 + r * np.sin(a)) for a, r in zip(angles, radius, strict=True)]
        draw.polygon(points, fill=255)
    return mask.filter(ImageFilter.GaussianBlur(1.2))


class Gallery:
    """Backgrounds, fabrics and outlines drawn once from `seed`; pieces are cut from them at random."""

    def __init__(self, seed: int, backgrounds: int = 40, fabrics: int = 80, style: Style = Style()) -> None:
        rng = np.random.default_rng(seed)
        self.style = style
        self.backgrounds = [(_photo if style.photos else _background)(rng) for _ in range(backgrounds)]
        self.fabrics = [_fabric(rng, style.inks) for _ in range(fabrics)]
        self.outlines = [_blob(rng) for _ in range(24)]

    def background(self, rng: np.random.Generator, width: int, height: int) -> Image.Image:
        """A cut of `width` x `height` pixels (at most 480), mirrored and dimmed at random."""
        source = self.backgrounds[rng.integers(len(self.backgrounds))]
        x = rng.integers(0, BACKGROUND_SIZE - width + 1)
        y = rng.integers(0, BACKGROUND_SIZE - height + 1)
        cut = source[y : y + height, x : x + width]
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        return Image.fromarray(np.clip(cut * np.float32(rng.uniform(0.8, 1.15)), 0, 255).astype(np.uint8))

    def distractor(self, rng: np.random.Generator, width: int, height: int) -> tuple[Image.Image, Image.Image]:
        """A textured piece and its mask, both `width` x `height` pixels."""
        fabric = self.fabrics[rng.integers(len(self.fabrics))]
        mask = self.outlines[rng.integers(len(self.outlines))].resize((width, height), Image.Resampling.BILINEAR)
        return Image.fromarray(fabric[:height, :width]), mask

    def face(self, rng: np.random.Generator) -> str | None:
        """File of the type face that a sign is printed in; None: Pillow's own."""
        faces = self.style.faces
        return faces[rng.integers(len(faces))] if faces else None
