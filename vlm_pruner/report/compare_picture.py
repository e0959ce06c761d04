"""Accuracy against kept tokens, a panel for each method: its line and interval, with all others in grey behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vlm_pruner.experiments.verdicts import BETTER, WORSE, Cell

SCALE = 2  # drawn this much larger and shrunk, for smooth lines
WIDTH, HEIGHT, COLUMNS = 300, 220, 4  # of a panel, in pixels of the result
LEFT, RIGHT, TOP, BOTTOM, HEAD = 42, 12, 30, 34, 34
# Two hues of Okabe and Ito's palette that stay apart for every kind of colour vision, and greys.
LINE, BAND, DENSE = (0, 114, 178), (196, 222, 238), (213, 94, 0)
INK, FAINT, GRID = (40, 40, 40), (190, 190, 190), (232, 232, 232)
Point = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """From kept tokens (on a logarithmic scale) and accuracy (a share) to pixels within a panel."""

    tokens: tuple[float, float]
    shares: tuple[float, float]

    def x(self, tokens: float) -> float:
        low, high = (math.log(bound) for bound in self.tokens)
        part = (math.log(tokens) - low) / (high - low) if high > low else 0.5
        return SCALE * (LEFT + 14 + part * (WIDTH - LEFT - RIGHT - 28))

    def y(self, share: float) -> float:
        low, high = self.shares
        return SCALE * (TOP + (high - share) / (high - low) * (HEIGHT - TOP - BOTTOM))


def draw(cells: Sequence[Cell]) -> Image.Image:
    """One row of panels after another for each benchmark. Raises ValueError if there is no cell."""
    if not cells:
        raise ValueError("nothing to draw: there is no cell")
    sheets = [
        _sheet(name, [c for c in cells if c.benchmark == name]) for name in dict.fromkeys(c.benchmark for c in cells)
    ]
    canvas = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        canvas.paste(sheet, (0, top))
        top += sheet.height
    return canvas.resize((canvas.width // SCALE, canvas.height // SCALE), Image.Resampling.LANCZOS)


def _sheet(name: str, cells: Sequence[Cell]) -> Image.Image:
    dense = next((cell for cell in cells if cell.arm.method is None), None)
    lines = {
        label: sorted((c for c in cells if c.arm.label == label and c.arm.method is not None), key=tokens)
        for label in dict.fromkeys(cell.arm.label for cell in cells if cell.arm.method is not None)
    }
    axes = _axes(cells)
    rows = max(1, -(-len(lines) // COLUMNS))
    sheet = Image.new("RGB", (SCALE * WIDTH * COLUMNS, SCALE * (HEAD + HEIGHT * rows)), "white")
    title = f"{name}: exact match in % (mean over kinds, n = {cells[0].accuracy.n}) against kept visual tokens"
    ImageDraw.Draw(sheet).text((SCALE * 12, SCALE * 4), title, INK, _font(15))
    _legend(sheet, dense is not None)
    for number, label in enumerate(lines):
        panel = _panel(label, lines, dense, axes)
        down, across = divmod(number, COLUMNS)
        sheet.paste(panel, (SCALE * WIDTH * across, SCALE * (HEAD + HEIGHT * down)))
    return sheet


def tokens(cell: Cell) -> float:
    """Where it stands: by its own count where budgets are tokens or shares removed, else by the mean over layers."""
    if cell.arm.accounting is not None and cell.arm.budget.startswith(("avg", "flops")):
        return cell.arm.accounting.average_tokens
    return cell.arm.tokens


def _axes(cells: Sequence[Cell]) -> Axes:
    kept = [tokens(cell) for cell in cells if cell.arm.method is not None] or [1.0]
    low, high = min(c.accuracy.low for c in cells), max(c.accuracy.high for c in cells)
    return Axes((min(kept), max(kept)), (math.floor(10 * low) / 10, max(math.ceil(10 * high) / 10, low + 0.1)))


def _legend(sheet: Image.Image, dense: bool) -> None:
    pen, y, font = ImageDraw.Draw(sheet), SCALE * 13, _font(12)
    x = SCALE * 610
    entries = [("line", LINE, "the method, 95 % interval (hollow: worse than dense)"), ("thin", FAINT, "the others")]
    for kind, colour, text in entries + ([("dash", DENSE, "dense")] if dense else []):
        if kind == "line":
            pen.rectangle((x, y - SCALE * 6, x + SCALE * 26, y + SCALE * 6), BAND)
        if kind == "dash":
            _dashes(pen, x, x + SCALE * 26, y)
        else:
            pen.line((x, y, x + SCALE * 26, y), colour, SCALE * (2 if kind == "line" else 1))
        pen.text((x + SCALE * 32, y), text, INK, font, anchor="lm")
        x += SCALE * 44 + int(pen.textlength(text, font))


def _panel(label: str, lines: dict[str, list[Cell]], dense: Cell | None, axes: Axes) -> Image.Image:
    panel = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
    pen = ImageDraw.Draw(panel)
    own = lines[label]
    _band(pen, own, axes)
    _frame(pen, axes, sorted({tokens(cell) for line in lines.values() for cell in line}))
    for other, line in lines.items():
        if other != label:
            pen.line(_points(line, axes), FAINT, SCALE)
    if dense is not None:
        _dashes(pen, SCALE * LEFT, SCALE * (WIDTH - RIGHT), axes.y(dense.accuracy.mean))
    pen.line(_points(own, axes), LINE, 3 * SCALE)
    for cell in own:
        _mark(pen, cell, axes)
    pen.text((SCALE * LEFT, SCALE * 8), label, INK, _font(14))
    return panel


def _band(pen: ImageDraw.ImageDraw, line: Sequence[Cell], axes: Axes) -> None:
    """The intervals; of a single budget a bar."""
    upper = [(axes.x(tokens(cell)), axes.y(cell.accuracy.high)) for cell in line]
    lower = [(axes.x(tokens(cell)), axes.y(cell.accuracy.low)) for cell in line]
    if len(line) > 1:
        pen.polygon([*upper, *reversed(lower)], BAND)
    else:
        (x, top), (_, bottom) = upper[0], lower[0]
        pen.rectangle((x - 4 * SCALE, top, x + 4 * SCALE, bottom), BAND)


def _frame(pen: ImageDraw.ImageDraw, axes: Axes, ticks: Sequence[float]) -> None:
    left, right, bottom = SCALE * LEFT, SCALE * (WIDTH - RIGHT), SCALE * (HEIGHT - BOTTOM)
    low, high = axes.shares
    step = 0.1 if high - low <= 0.5 else 0.2
    for number in range(round(low / step), round(high / step) + 1):
        share = number * step
        if low - 1e-9 <= share <= high + 1e-9:
            pen.line((left, axes.y(share), right, axes.y(share)), GRID, SCALE)
            pen.text((left - 6 * SCALE, axes.y(share)), f"{100 * share:.0f}", INK, _font(12), anchor="rm")
    last = -math.inf
    for tick in ticks:
        if axes.x(tick) - last > SCALE * 30:
            pen.line((axes.x(tick), bottom, axes.x(tick), bottom + 4 * SCALE), INK, SCALE)
            pen.text((axes.x(tick), bottom + 6 * SCALE), f"{tick:.0f}", INK, _font(12), anchor="mt")
            last = axes.x(tick)


def _mark(pen: ImageDraw.ImageDraw, cell: Cell, axes: Axes) -> None:
    """A dot; hollow where the method is clearly worse than dense, with a ring around it where it is better."""
    x, y, r = axes.x(tokens(cell)), axes.y(cell.accuracy.mean), 4 * SCALE
    verdict = cell.against["dense"].verdict if "dense" in cell.against else ""
    pen.ellipse((x - r, y - r, x + r, y + r), "white" if verdict == WORSE else LINE, LINE, 2 * SCALE)
    if verdict == BETTER:
        pen.ellipse((x - 2 * r, y - 2 * r, x + 2 * r, y + 2 * r), None, LINE, SCALE)


def _points(line: Sequence[Cell], axes: Axes) -> list[Point]:
    return [(axes.x(tokens(cell)), axes.y(cell.accuracy.mean)) for cell in line]


def _dashes(pen: ImageDraw.ImageDraw, left: float, right: float, y: float) -> None:
    for start in range(int(left), int(right), 9 * SCALE):
        pen.line((start, y, min(start + 5 * SCALE, right), y), DENSE, 2 * SCALE)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)
