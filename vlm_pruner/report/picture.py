"""Which visual tokens were kept, drawn on the picture: kept patches bright and numbered, the rest dimmed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

PATCH = 28  # side of a drawn patch in pixels: room for its content and a small number
GAP = 16
BACKGROUND, INK, GREY, RIGHT, WRONG = "#ffffff", "#1f2430", "#6b7280", "#15803d", "#b91c1c"
# From the first selected token (yellow) to the last (violet); lightness falls all the way, so it reads in grey, too.
RAMP = ((253, 231, 37), (250, 165, 40), (232, 90, 80), (180, 50, 140), (105, 40, 180))

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Panel:
    """One arm's view of a picture. `kept` are (x, y) in token units in order of selection; None: nothing is dropped."""

    title: str
    answer: str
    correct: bool
    kept: Sequence[tuple[float, float]] | None = None


@dataclass(frozen=True)
class Example:
    """One row of the figure: a picture with its question, its right answer, and the arms' panels."""

    picture: Image.Image
    question: str
    answer: str
    panels: Sequence[Panel]


def draw_figure(examples: Sequence[Example], grid: tuple[int, int]) -> Image.Image:
    """All examples below each other. `grid` is (height, width) in tokens; a picture is stretched to cover it."""
    rows = [_draw_example(example, grid) for example in examples]
    key = _draw_key(max(row.width for row in rows))
    canvas = Image.new("RGB", (key.width, sum(row.height for row in rows) + key.height), BACKGROUND)
    top = 0
    for part in [*rows, key]:
        canvas.paste(part, (0, top))
        top += part.height
    return canvas


def draw_kept(picture: Image.Image, kept: Sequence[tuple[float, float]] | None, grid: tuple[int, int]) -> Image.Image:
    """The picture at PATCH pixels per token: dropped patches dimmed, kept ones framed and numbered from 1.

    Raises ValueError when a token lies outside of the grid.
    """
    height, width = grid
    bright = picture.convert("RGB").resize((width * PATCH, height * PATCH), Image.Resampling.LANCZOS)
    if kept is None:
        return bright
    result = _dim(bright)
    draw = ImageDraw.Draw(result)
    for index, (x, y) in enumerate(kept):
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
            raise ValueError(f"token at ({x}, {y}) lies outside of the grid of {width} x {height} tokens")
        box = patch_box(x, y)
        result.paste(bright.crop(box), box[:2])
        colour = order_colour(index, len(kept))
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=colour, width=2)
        corner = (box[2] - 4, box[3] - 3)  # not the middle: the patch's content is to be seen, too
        draw.text(corner, str(index + 1), "white", _font(10), "rs", stroke_width=1, stroke_fill="black")
    return result


def patch_box(x: float, y: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels (right and bottom exclusive) of the token at (x, y)."""
    left, top = round(x * PATCH), round(y * PATCH)
    return left, top, left + PATCH, top + PATCH


def order_colour(index: int, count: int) -> tuple[int, int, int]:
    """Colour of the `index`-th of `count` selected tokens, interpolated along RAMP."""
    position = index / max(count - 1, 1) * (len(RAMP) - 1)
    lower = min(int(position), len(RAMP) - 2)
    share = position - lower
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(RAMP[lower], RAMP[lower + 1], strict=True))
    return red, green, blue


def _dim(picture: Image.Image) -> Image.Image:
    grey = ImageEnhance.Color(picture).enhance(0.25)
    return Image.blend(grey, Image.new("RGB", picture.size, "#ffffff"), 0.62)


def _draw_example(example: Example, grid: tuple[int, int]) -> Image.Image:
    panels = [draw_kept(example.picture, panel.kept, grid) for panel in example.panels]
    side, height = panels[0].size
    width = len(panels) * (side + GAP) + GAP
    lines = wrap(example.question, _font(26), width - 2 * GAP)
    top = GAP + 34 * (len(lines) + 1) + 4
    canvas = Image.new("RGB", (width, top + height + 56), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + 34 * number), line, INK, _font(26))
    draw.text((GAP, GAP + 34 * len(lines)), f"right answer: {example.answer}", GREY, _font(22))
    for index, (image, panel) in enumerate(zip(panels, example.panels, strict=True)):
        left = GAP + index * (side + GAP)
        canvas.paste(image, (left, top))
        _draw_caption(draw, panel, (left, top + height + 10), side)
    return canvas


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces; a single word that is longer stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _draw_caption(draw: ImageDraw.ImageDraw, panel: Panel, place: tuple[int, int], width: int) -> None:
    """Title and answer in one line of at most `width` pixels; a long answer is cut."""
    font = _font(22)
    title, verdict = f"{panel.title}: ", "right" if panel.correct else "wrong"
    left = place[0] + draw.textlength(title, font)
    answer = panel.answer or "(nothing)"
    while len(answer) > 1 and left + draw.textlength(f"{answer} ({verdict})", font) > place[0] + width:
        answer = answer[:-2] + "…"
    draw.text(place, title, INK, font)
    draw.text((left, place[1]), f"{answer} ({verdict})", RIGHT if panel.correct else WRONG, font)


def _draw_key(width: int) -> Image.Image:
    """The colour scale of the order of selection."""
    canvas = Image.new("RGB", (width, 44), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 6), "kept tokens, first", GREY, _font(20))
    left = GAP + int(draw.textlength("kept tokens, first", _font(20))) + 10
    for index in range(120):
        draw.rectangle((left + 2 * index, 8, left + 2 * index + 1, 26), fill=order_colour(index, 120))
    draw.text((left + 250, 6), "to last selected; everything else is dropped after the first layers", GREY, _font(20))
    return canvas


def _font(size: int) -> Font:
    return ImageFont.load_default(size)
