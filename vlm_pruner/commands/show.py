"""`vlm-pruner show`: which tokens several methods keep of a picture, drawn side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlm_pruner.commands import options
from vlm_pruner.console import at_least, words

if TYPE_CHECKING:
    from vlm_pruner.drawing.overlay import Style
    from vlm_pruner.drawing.shapes import Drawing
    from vlm_pruner.methods import Pruner

EXAMPLES = """examples:
  vlm-pruner show photo.jpg
  vlm-pruner show photo.jpg --method vlm-pruner,divprune,fastv,random --keep 64 --out kept.svg
  vlm-pruner show photo.jpg --keep 32,64,128 --folds hue
  vlm-pruner show a.jpg b.jpg --model checkpoints/llava-v1.5-7b --question "What is on the table?" --method fastv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures; each is pruned on its own")
    parser.add_argument("--method", default="vlm-pruner", metavar="NAME,NAME", help="or FILE.py:CLASS (%(default)s)")
    options.add_method_arguments(parser)
    options.add_model_arguments(parser)
    parser.add_argument(
        "--question",
        default="What is in the picture?",
        metavar="TEXT",
        help="for methods that look at it (%(default)s)",
    )
    parser.add_argument(
        "--folds", choices=("hue", "arrows"), help="show which kept token each dropped one was folded into"
    )
    parser.add_argument(
        "--focus", default="", metavar="N,N", help="with --folds: only of the kept tokens with these numbers"
    )
    parser.add_argument(
        "--first", type=int, default=None, metavar="N", help="only the first N of the order of selection"
    )
    parser.add_argument("--side", type=int, default=768, metavar="PX", help="longer side of a picture (%(default)s)")
    parser.add_argument(
        "--columns", type=int, default=None, metavar="N", help="pictures in a row (all budgets of a method)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/show/kept.png"), metavar="FILE", help=".png or .svg (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """One sheet, and its path on standard output."""
    options.check_model(args)
    from vlm_pruner.drawing.sheet import save_sheet, sheet

    style = _style(args)
    if args.out.suffix not in (".png", ".svg"):
        raise ValueError(f"--out {args.out} ends in {args.out.suffix!r}; use a name that ends in .png or .svg")
    at_least(1, columns=args.columns)
    arms = _arms(args)
    pictures = options.read_pictures(args.images)
    chat = options.load_chat(args)
    panels = [
        (_title(args.images, number, method), draw_kept(chat, picture, args.question, method, style))
        for number, picture in enumerate(pictures)
        for method in (arm.on(chat, [picture], args.question) for arm in arms)
    ]
    options.warn_of_other_worlds(args.model, pictures)
    budgets = len(words(args.keep))
    columns = args.columns or (budgets if budgets > 1 else min(len(arms), 4))
    for path in save_sheet(sheet(panels, columns), args.out):
        print(path)
    return 0


def _style(args: argparse.Namespace) -> Style:
    from vlm_pruner.drawing.overlay import Style

    try:
        focus = tuple(int(word) for word in args.focus.split(",") if word.strip())
    except ValueError:
        raise ValueError(f"--focus {args.focus!r} is not a list of numbers such as 1,2,3") from None
    if focus and not args.folds:
        raise ValueError("--focus says whose folded tokens to show; give --folds hue or --folds arrows with it")
    return Style(first=args.first, folds=args.folds, focus=focus, side=args.side)


def _arms(args: argparse.Namespace) -> list[options.Wanted]:
    for flag, value in (("method", args.method), ("keep", args.keep)):
        if not words(value):
            raise ValueError(f"--{flag} {value} names none; give one or more with commas between")
    return [
        options.Wanted.read(name, budget, args.layer, args.settings)
        for name in words(args.method)
        for budget in words(args.keep)
    ]


def _title(files: Sequence[str], number: int, method: Pruner) -> str:
    kept = f"{method.keep_tokens} tokens" if method.keep_tokens else f"{method.reduction_ratio:g} removed"
    name = f"{Path(files[number]).name}: " if len(files) > 1 else ""
    return f"{name}{method.name}, {kept}"


def draw_kept(chat: Any, picture: Image.Image, question: str, method: Pruner, style: Style) -> Drawing:
    """Draws the tokens that `method` keeps. The model writes a single token: pruning happens in the prefill."""
    from vlm_pruner.drawing.overlay import draw_overlay

    answer = chat.ask(picture, question, method, max_new_tokens=1)
    if not answer.images:
        raise ValueError(f"{method.name} found no visual tokens in this picture; try another --method")
    return draw_overlay(picture, answer.images[0].kept(), style)
