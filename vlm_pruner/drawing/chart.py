"""Charts as scenes: lines with intervals, intervals about a zero, stacked bars; in the style of all other pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vlm_pruner.drawing.colours import FAINT, GREY, INK, RIGHT, WRONG
from vlm_pruner.drawing.scene import Line, Polygon, Rectangle, Scene, Shape, Text, text_width

TITLE, TICK, LABEL = 17.0, 13.0, 14.0
MARKERS = ("circle", "square", "diamond", "up", "down")


@dataclass(frozen=True)
class Point:
    """low, high: ends of the interval, if there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One line. marker: one of MARKERS. strong: drawn thicker and on top."""

    label: str
    points: Sequence[Point]
    colour: str = INK
    marker: str = "circle"
    strong: bool = False
    dash: float = 0.0


@dataclass(frozen=True)
class Level:
    """A dashed line across the chart at `y`, with the interval around it."""

    label: str
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axis:
    """Of the chart, in data units. ticks: where, and what is written there."""

    label: str
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def position(self, value: float, low: float, high: float) -> float:
        """Share of the way from `low` to `high`."""
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return (value - low) / (high - low) if high > low else 0.5


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover low .. high with at most about `most` steps."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    x_axis: Axis,
    y_label: str,
    *,
    levels: Sequence[Level] = (),
    size: tuple[float, float] = (620, 430),
    unit: Callable[[float], str] = "{:g}".format,
) -> Scene:
    """Lines with their names at their right ends. Raises ValueError if there is no point."""
    points = [point for line in series for point in line.points]
    if not points:
        raise ValueError(f"there is nothing to draw in the chart {title!r}: no series has a point")
    ends = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    ends += [v for level in levels for v in (level.y, level.low, level.high) if v is not None]
    ticks = nice_ticks(min(ends), max(ends))
    frame = _Frame(size, x_axis, [x for x, _ in x_axis.ticks] + [p.x for p in points], ticks, [s.label for s in series])
    shapes = [*frame.background(title, y_label, unit), *(shape for level in levels for shape in frame.level(level))]
    for line in sorted(series, key=lambda line: line.strong):
        shapes += frame.line(line)
    return Scene(*size, [*shapes, *frame.names(series)], title)


class _Frame:
    """Where data lie in the picture."""

    def __init__(
        self,
        size: tuple[float, float],
        x_axis: Axis,
        xs: Sequence[float],
        y_ticks: Sequence[float],
        names: Sequence[str],
    ) -> None:
        self.x_axis, self.y_ticks = x_axis, y_ticks
        self.low, self.high = min(xs), max(xs)
        self.left, self.top = 62.0, 58.0
        self.right = size[0] - max((text_width(name, LABEL) for name in names), default=0) - 26
        self.bottom = size[1] - 52.0

    def x(self, value: float) -> float:
        inner = 14.0
        share = self.x_axis.position(value, self.low, self.high)
        return self.left + inner + share * (self.right - self.left - 2 * inner)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def background(self, title: str, y_label: str, unit: Callable[[float], str]) -> list[Shape]:
        shapes: list[Shape] = [Text((0, 17), title, TITLE), Text((0, 38), y_label, TICK, GREY)]
        for value in self.y_ticks:
            y = self.y(value)
            shapes.append(Line([(self.left, y), (self.right, y)], FAINT))
            shapes.append(Text((self.left - 8, y + 4.5), unit(value), TICK, GREY, "end"))
        for value, word in self.x_axis.ticks:
            shapes.append(Line([(self.x(value), self.bottom), (self.x(value), self.bottom + 5)], GREY))
            shapes.append(Text((self.x(value), self.bottom + 20), word, TICK, GREY, "middle"))
        middle = (self.left + self.right) / 2
        shapes.append(Text((middle, self.bottom + 43), self.x_axis.label, TICK, GREY, "middle"))
        return shapes

    def level(self, level: Level) -> list[Shape]:
        shapes: list[Shape] = []
        if level.low is not None and level.high is not None:
            shapes.append(Rectangle((self.left, self.y(level.high), self.right, self.y(level.low)), GREY, opacity=0.13))
        y = self.y(level.y)
        shapes.append(Line([(self.left, y), (self.right, y)], GREY, 1.4, dash=6))
        return [*shapes, Text((self.left + 6, y - 6), level.label, TICK, GREY)]

    def line(self, line: Series) -> list[Shape]:
        width = 2.8 if line.strong else 1.5
        shapes: list[Shape] = []
        for point in line.points:
            if point.low is not None and point.high is not None:
                x = self.x(point.x)
                shapes.append(Line([(x, self.y(point.low)), (x, self.y(point.high))], line.colour, 1.1, 0.55))
        at = [(self.x(point.x), self.y(point.y)) for point in sorted(line.points, key=lambda point: point.x)]
        if len(at) > 1:
            shapes.append(Line(at, line.colour, width, dash=line.dash))
        return [*shapes, *(marker(line.marker, place, 5.5 if line.strong else 4.2, line.colour) for place in at)]

    def names(self, series: Sequence[Series]) -> list[Shape]:
        """At the right, each as near to its line's end as the others allow, and led to it by a thin line."""
        ends = []
        for line in series:
            last = max(line.points, key=lambda point: point.x)
            ends.append((self.y(last.y), self.x(last.x), line))
        ends.sort(key=lambda end: end[0])
        places = apart([y for y, _, _ in ends], LABEL + 2.5, self.top - 8, self.bottom + 8)
        shapes: list[Shape] = []
        for (y, x, line), place in zip(ends, places, strict=True):
            shapes.append(Line([(x + 7, y), (self.right + 2, place), (self.right + 8, place)], line.colour, 0.8, 0.5))
            shapes.append(Text((self.right + 12, place + 4.5), line.label, LABEL, line.colour))
        return shapes


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places moved as little as a simple rule allows so that they are `gap` apart, within low .. high."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else low))
    limit = high
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def marker(kind: str, place: tuple[float, float], radius: float, colour: str) -> Shape:
    """A small shape with a white edge, so that it shows where lines cross."""
    x, y = place
    if kind == "circle":
        box = (x - radius, y - radius, x + radius, y + radius)
        return Rectangle(box, colour, "#ffffff", 1.0, round=radius)
    sides = {"square": 4, "diamond": 4, "up": 3, "down": 3}[kind]
    turn = {"square": 0.25, "diamond": 0.0, "up": 0.0, "down": 0.5}[kind]
    reach = radius * (1.25 if sides == 4 else 1.35)
    angles = [2 * math.pi * (corner / sides + turn * (0.5 if kind == "square" else 1)) for corner in range(sides)]
    points = [(x + reach * math.sin(angle), y - reach * math.cos(angle)) for angle in angles]
    return Polygon(points, colour, "#ffffff", 1.0)


@dataclass(frozen=True)
class Row:
    """One line of an interval chart; note is written behind it. heading: a title between rows, without an interval."""

    label: str
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    note: str = ""
    heading: bool = False


def interval_chart(title: str, rows: Sequence[Row], x_label: str, width: float = 860) -> Scene:
    """Differences about zero, each with its interval: green above zero, red below, grey where the interval holds it."""
    if not any(not row.heading for row in rows):
        raise ValueError(f"there is nothing to draw in the chart {title!r}: it has no rows")
    left = max(text_width(row.label, LABEL) for row in rows) + 20
    right = width - max(text_width(row.note, TICK) for row in rows) - 16
    ticks = nice_ticks(min(0.0, *(r.low for r in rows)), max(0.0, *(r.high for r in rows)))
    top, step = 46.0, 25.0
    bottom = top + step * len(rows)

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    shapes: list[Shape] = [Text((0, 17), title, TITLE)]
    for tick in ticks:
        shapes.append(Line([(x(tick), top), (x(tick), bottom)], GREY if tick == 0 else FAINT, 1.4 if tick == 0 else 1))
        shapes.append(Text((x(tick), bottom + 18), f"{tick:+g}" if tick else "0", TICK, GREY, "middle"))
    for number, row in enumerate(rows):
        y = top + step * (number + 0.5)
        shapes.append(Text((0, y + 5), row.label, LABEL, INK if row.heading else GREY))
        if not row.heading:
            colour = GREY if row.low <= 0 <= row.high else RIGHT if row.value > 0 else WRONG
            shape = "circle" if row.low <= 0 <= row.high else "up" if row.value > 0 else "down"  # not by colour alone
            shapes.append(Line([(x(row.low), y), (x(row.high), y)], colour, 2))
            shapes.append(marker(shape, (x(row.value), y), 5, colour))
            shapes.append(Text((right + 14, y + 5), row.note, TICK, GREY))
    shapes.append(Text(((left + right) / 2, bottom + 40), x_label, TICK, GREY, "middle"))
    return Scene(width, bottom + 52, shapes, title)


def bar_chart(
    title: str, bars: Sequence[tuple[str, Mapping[str, float]]], colours: Mapping[str, str],
    unit: Callable[[float], str], size: tuple[float, float] = (620, 0),
) -> Scene:  # fmt: skip
    """Stacked bars that lie, with a name before and the sum behind, and the key below. Negative parts count as none."""
    if not bars:
        raise ValueError(f"there is nothing to draw in the chart {title!r}: it has no bars")
    width, step, top = size[0], 34.0, 40.0
    left = max(text_width(name, LABEL) for name, _ in bars) + 14
    sums = [sum(max(value, 0.0) for value in parts.values()) for _, parts in bars]
    right = width - max(text_width(unit(whole), LABEL) for whole in sums) - 14
    scale = (right - left) / max(*sums, 1e-12)
    shapes: list[Shape] = [Text((0, 17), title, TITLE)]
    for number, ((name, parts), whole) in enumerate(zip(bars, sums, strict=True)):
        x, y = left, top + step * number
        shapes.append(Text((0, y + 18), name, LABEL))
        for part, value in parts.items():
            shapes.append(Rectangle((x, y + 2, x + scale * max(value, 0.0), y + step - 8), colours[part]))
            x += scale * max(value, 0.0)
        shapes.append(Text((x + 8, y + 18), unit(whole), LABEL, GREY))
    x, y = left, top + step * len(bars) + 12
    for part, colour in colours.items():
        shapes += [Rectangle((x, y, x + 13, y + 13), colour), Text((x + 19, y + 11.5), part, TICK, GREY)]
        x += 19 + text_width(part, TICK) + 18
    return Scene(width, max(size[1], y + 26), shapes, title)
