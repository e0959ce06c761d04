"""Draws architecture.svg: the rooms of the package, floor above floor, with the way of a cut and of a command.

    python docs/draw_architecture.py

Plain strings and sums: 600 units wide, so that the smallest text is still legible on a phone.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, MARGIN, GAP, LINE = 600, 12, 8, 17
INK, MUTED, PAPER, ROOM, STROKE = "#1f2933", "#52606d", "#ffffff", "#f5f7fa", "#cbd2d9"
CUT, COMMAND = "#1d6fa5", "#b44d12"
FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif'"
MONO = "font-family='ui-monospace, SFMono-Regular, Menlo, Consolas, monospace'"


@dataclass(frozen=True)
class Room:
    """One box. lines: its purpose. stops: steps of the command here. steps: stages of a cut. cut: on its way."""

    name: str
    lines: tuple[str, ...]
    weight: float = 1.0
    stops: tuple[int, ...] = ()
    steps: tuple[str, ...] = ()
    cut: bool = False


STOREYS: tuple[tuple[Room, ...], ...] = (
    (
        Room("cli.py", ("one table of", "subcommands"), 0.8, (1,)),
        Room("commands/", ("one file per subcommand: arguments in,", "tables and files out"), 2, (2, 8)),
    ),
    (
        Room("web/", ("the live page",)),
        Room("lmms/", ("lmms-eval plug-in",)),
        Room("vllm/", ("vLLM plug-in",), 0.8),
        Room("report/", ("tables, pages, figures",), 1.25, (7,)),
    ),
    (
        Room("speed/", ("timings at true shapes",)),
        Room("experiments/", ("arms x questions, answers, verdicts",), 1.6, (3, 6)),
    ),
    (
        Room("asking/", ("a loaded model that", "answers questions"), 1.2),
        Room("llava/", ("LLaVA's checkpoints,", "prompts, evaluation"), 1.2, (4,)),
        Room("Qwen2-VL/", ("Qwen2-VL with a", "method inside")),
    ),
    (
        Room("drawing/", ("pictures and charts",), 1.0),
        Room("cost/", ("FLOPs, bytes, budgets",)),
        Room("serving/", ("a request's wish",), 0.8),
    ),
    (
        Room(
            "decoder/",
            ("everything that happens inside a running decoder",),
            stops=(5,),
            steps=("tap", "choose", "merge", "pack", "mask"),
            cut=True,
        ),
    ),
    (
        Room("receipts.py", ("what was kept,", "and from where"), cut=True),
        Room("adapters/", ("one file per", "model family"), cut=True),
        Room("methods/", ("one file per", "pruning method"), cut=True),
    ),
    (
        Room("kernels/", ("selection, fused", "for GPUs"), cut=True),
        Room("selection/", ("the mathematics:", "tensors in, indices out"), 1.35, cut=True),
        Room("geometry/", ("where tokens lie in", "picture and sequence"), 1.25, cut=True),
    ),
    (
        Room("scoring/", ("answer files", "become scores")),
        Room("console.py", ("parser,", "one-line errors")),
        Room("frames.py", ("any video", "to pictures")),
    ),
    (
        Room("images.py", ("any file to", "RGB")),
        Room("linefile.py", ("JSON lines that", "survive kills"), 1.15),
        Room("provenance.py", ("versions, commit,", "hardware"), 1.25),
        Room("errors.py", ("what we", "raise")),
    ),
)


def text(x: float, y: float, words: str, size: float, fill: str = INK, more: str = FONT) -> str:
    return f"<text x='{x:g}' y='{y:g}' font-size='{size:g}' fill='{fill}' {more}>{escape(words)}</text>"


def badge(x: float, y: float, word: str) -> str:
    """A numbered stop of a command, centred at (x, y)."""
    number = text(x, y + 4.5, word, 13, PAPER, f"{FONT} font-weight='700' text-anchor='middle'")
    return f"<circle cx='{x:g}' cy='{y:g}' r='9.5' fill='{COMMAND}'/>{number}"


def room(item: Room, x: float, y: float, width: float, height: float) -> list[str]:
    """A box with the room's name, its purpose, and what passes through it."""
    stroke = f"stroke='{CUT}' stroke-width='1.8'" if item.cut else f"stroke='{STROKE}'"
    shapes = [
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='6' fill='{ROOM}' {stroke}/>",
        text(x + 9, y + 21, item.name, 15.5, more=f"{MONO} font-weight='700'"),
    ]
    shapes += [text(x + 9, y + 39 + LINE * row, line, 13.5, MUTED) for row, line in enumerate(item.lines)]
    for place, stop in enumerate(reversed(item.stops)):
        shapes.append(badge(x + width - 15 - 23 * place, y + 15, str(stop)))
    if item.steps:
        shapes += chain(item.steps, x + 9, y + 50, width - 18)
    return shapes


def chain(steps: tuple[str, ...], x: float, y: float, width: float) -> list[str]:
    """The stages of a cut from left to right."""
    each = (width - 18 * (len(steps) - 1)) / len(steps)
    shapes = []
    for number, step in enumerate(steps):
        left = x + number * (each + 18)
        shapes.append(f"<rect x='{left:g}' y='{y:g}' width='{each:g}' height='30' rx='15' fill='{CUT}'/>")
        words = f"{FONT} font-weight='700' text-anchor='middle'"
        shapes.append(text(left + each / 2, y + 20.5, step, 15.5, PAPER, words))
        if number:
            shapes.append(arrow(left - 16, y + 15, left - 3, y + 15, CUT))
    return shapes


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    """A horizontal or vertical arrow."""
    if y1 == y2:
        head = f"{x2 - 6:g},{y2 - 4:g} {x2:g},{y2:g} {x2 - 6:g},{y2 + 4:g}"
    else:
        head = f"{x2 - 4:g},{y2 - 6:g} {x2:g},{y2:g} {x2 + 4:g},{y2 - 6:g}"
    line = f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{colour}' stroke-width='2'/>"
    return f"{line}<polygon points='{head}' fill='{colour}'/>"


def draw() -> str:
    """The whole picture as SVG."""
    shapes: list[str] = []
    y = float(MARGIN)
    for storey in STOREYS:
        height = 33 + LINE * max(len(item.lines) for item in storey) + (38 if storey[0].steps else 0)
        unit = (WIDTH - 2 * MARGIN - GAP * (len(storey) - 1)) / sum(item.weight for item in storey)
        x = float(MARGIN)
        for item in storey:
            shapes += room(item, x, y, item.weight * unit, height)
            x += item.weight * unit + GAP
        y += height + GAP
    shapes += legend(y + 10)
    size = f"width='{WIDTH}' height='{y + 62:g}' viewBox='0 0 {WIDTH} {y + 62:g}'"
    words = "The rooms of VLM-Pruner, floor above floor; a room imports only from rooms below it."
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img' aria-label='{words}'>"
    background = f"<rect width='100%' height='100%' fill='{PAPER}'/>"
    return "\n".join([head, background, *shapes, "</svg>"]) + "\n"


def legend(y: float) -> list[str]:
    x = MARGIN + 10
    return [
        f"<rect x='{x - 10}' y='{y - 9:g}' width='20' height='18' rx='9' fill='{CUT}'/>",
        text(x + 18, y + 5, "rooms that one cut passes through, and its five stages", 13.5),
        badge(x, y + 26, "1"),
        text(x + 18, y + 31, "one command, vlm-pruner compare, step by step", 13.5),
    ]


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw(), encoding="utf-8")
