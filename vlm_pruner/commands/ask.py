"""`vlm-pruner ask`: one question, answered dense and pruned, with what each cost and which tokens were kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlm_pruner.commands import options
from vlm_pruner.console import DENSE, at_least, wrapped
from vlm_pruner.report.table import render

if TYPE_CHECKING:
    from vlm_pruner.asking import Answer
    from vlm_pruner.drawing.overlay import PictureOrFrames
    from vlm_pruner.frames import Clip
    from vlm_pruner.methods import Pruner
    from vlm_pruner.receipts import ImageReceipt

EXAMPLES = """examples:
  vlm-pruner ask photo.jpg --question "What is on the table?"
  vlm-pruner ask photo.jpg --question "What is on the table?" --method fastv --keep 32 --layer 3
  vlm-pruner ask a.png b.png --question "What has changed?" --model checkpoints/llava-v1.5-7b --device cuda
  vlm-pruner ask --video clip.mp4 --question "What happens?" --model Qwen/Qwen2.5-VL-3B-Instruct --keep ratio:0.9
  vlm-pruner ask --video clip.mp4 --fps 2 --frames 32 --video-max-pixels 200704 --question "What happens?" --model DIR
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, in the order in which they are shown")
    parser.add_argument("--question", required=True, metavar="TEXT")
    parser.add_argument("--video", metavar="FILE", help="a video file, a folder of frames, or an animated picture")
    parser.add_argument(
        "--frames", type=int, default=8, metavar="N", help="frames taken of the video; with --fps at most (%(default)s)"
    )
    parser.add_argument("--fps", type=float, metavar="F", help="frames taken of a second of the video")
    options.add_pixel_arguments(parser)
    parser.add_argument(
        "--method", default="vlm-pruner", metavar="NAME",
        help="see vlm-pruner methods; dense; or FILE.py:CLASS (%(default)s)",
    )  # fmt: skip
    options.add_method_arguments(parser)
    options.add_model_arguments(parser)
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="length of an answer (%(default)s)")
    parser.add_argument("--no-dense", action="store_true", help="the pruned answer alone")
    parser.add_argument("--no-warm-up", action="store_true", help="do not answer once untimed before the timed answers")
    parser.add_argument(
        "--out", type=Path, default=Path("results/ask"), metavar="DIR", help="gets kept.png, kept.svg (%(default)s)"
    )
    parser.add_argument("--no-cells", action="store_true", help="no picture of the kept tokens in the terminal")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="answers, costs and receipts as JSON")
    parser.add_argument(
        "--colour", choices=("auto", "always", "never"), default="auto", help="of the terminal's picture"
    )


def run(args: argparse.Namespace) -> int:
    """Answers and costs on standard output, the pictures of kept tokens into --out."""
    options.check_model(args)
    _check(args)
    wanted = None if args.method == DENSE else options.Wanted.read(
        args.method, args.keep, args.layer, args.settings
    )  # fmt: skip
    options.pixel_limits(args)  # raises if they contradict each other
    pictures = options.read_pictures(args.images)
    video = _video(args)
    chat = options.load_chat(args)
    method = None if wanted is None else wanted.on(chat, pictures, args.question, video)
    answers = _answer(chat, pictures, video, args, method)
    print(report(args, answers))
    if args.video:
        print(frames_used(video))
    options.warn_of_other_worlds(args.model, [*pictures, *video])
    if method is not None:
        _show_kept(args, answers["pruned"], pictures, video)
    if args.json:
        options.write_json(args.json, _described(args, method, answers, video))
    return 0


def _video(args: argparse.Namespace) -> Clip:
    from vlm_pruner.frames import Clip, read_frames

    return read_frames(args.video, args.frames, args.fps) if args.video else Clip([], [], 0, 1.0)


def _check(args: argparse.Namespace) -> None:
    if not args.question.strip():
        raise ValueError('the question is empty; give one, such as --question "What is in the picture?"')
    if not args.images and not args.video:
        raise ValueError("there is nothing to ask about; name at least one picture, or give --video FILE")
    at_least(1, max_new_tokens=args.max_new_tokens)
    if args.no_dense and args.method == DENSE:
        raise ValueError("--no-dense and --method dense leave nothing to run; drop one of them")


def _answer(
    chat: Any,
    pictures: Sequence[Image.Image],
    video: Sequence[Image.Image],
    args: argparse.Namespace,
    method: Pruner | None,
) -> dict[str, Answer]:
    """By name: "dense", "pruned". Runs each once untimed, so that neither pays for set-up."""
    ways: dict[str, Pruner | None] = {} if args.no_dense else {"dense": None}
    if method is not None:
        ways["pruned"] = method

    def ask(method: Pruner | None, tokens: int) -> Answer:
        answer: Answer = chat.ask(pictures, args.question, method, video=video, max_new_tokens=tokens)
        return answer

    if not args.no_warm_up:
        for way in ways.values():
            ask(way, 1)
    return {name: ask(way, args.max_new_tokens) for name, way in ways.items()}


def report(args: argparse.Namespace, answers: dict[str, Answer]) -> str:
    """Answers in full, then the costs side by side."""
    from vlm_pruner.asking.answer import in_a_sentence

    names = {"dense": "dense", "pruned": args.method}
    said = [wrapped(f"{names[way]}: {answer.text or '(nothing)'}") for way, answer in answers.items()]
    rows = list(zip(FIGURES, *map(_figures, answers.values()), strict=True))
    table = render(["", *(f" {names[way]}" for way in answers)], rows)
    if len(answers) == 2:
        said.append(in_a_sentence(answers["dense"], answers["pruned"]))
    return "\n".join([*said, "", table, "", _how_measured(args, answers)])


FIGURES = (
    "visual tokens", "from layer", "text tokens", "first token, ms", "whole answer, ms", "tokens answered",
    "tokens/s after the first", "keys and values, MB",
)  # fmt: skip


def _figures(answer: Answer) -> list[str]:
    """FIGURES of one answer."""
    rate = answer.tokens_per_second
    return [
        f"{answer.kept} of {answer.visual_tokens}" if answer.images else str(answer.visual_tokens),
        str(answer.images[0].layer) if answer.images else "-",
        str(answer.prompt_tokens),
        f"{1000 * answer.first_token_seconds:.0f}",
        f"{1000 * answer.seconds:.0f}",
        str(answer.tokens),
        "-" if rate is None else f"{rate:.1f}",
        f"{answer.kv_bytes / 1e6:.2f}",
    ]


def frames_used(video: Clip) -> str:
    """The frames that the model saw, and when they were shown."""
    listed = ", ".join(map(str, video.indices)) if len(video) <= 16 else f"{video.indices[0]} ... {video.indices[-1]}"
    return wrapped(f"video: {len(video)} of {video.total} frames ({listed}), {video.fps:g} per second")


def _how_measured(args: argparse.Namespace, answers: dict[str, Answer]) -> str:
    before = "each a cold first call" if args.no_warm_up else "after one untimed call of each"
    what = "one run each" if len(answers) > 1 else "one run"
    return f"{what} on {args.device}, {before};\nthe first token includes the vision tower"


def _show_kept(
    args: argparse.Namespace, answer: Answer, pictures: Sequence[Image.Image], video: Sequence[Image.Image]
) -> None:
    """One sheet of all pictures as PNG and SVG, and each in the terminal. Without them the answers still stand."""
    from vlm_pruner.drawing.overlay import Style, draw_overlay
    from vlm_pruner.drawing.sheet import save_sheet, sheet
    from vlm_pruner.drawing.terminal import draw_cells, wants_ascii, wants_colour

    try:
        shown = [(picture, image.kept()) for image, picture in pair(answer.images, pictures, video)]
        drawings = [("", draw_overlay(picture, kept, Style())) for picture, kept in shown]
    except ValueError as error:
        print(f"no picture of the kept tokens: {error}", file=sys.stderr)
        return
    if not args.no_cells:
        for picture, kept in shown:
            cells = draw_cells(
                picture, kept, colour=wants_colour(sys.stdout, args.colour), ascii_only=wants_ascii(sys.stdout)
            )
            print(f"\n{cells}")
    print()
    for path in save_sheet(sheet(drawings), args.out / "kept.png", args.out / "kept.svg"):
        print(path)


def pair(
    images: Sequence[ImageReceipt], pictures: Sequence[Image.Image], video: Sequence[Image.Image]
) -> list[tuple[ImageReceipt, PictureOrFrames]]:
    """Every receipt with what it is of. Raises ValueError if there are more or fewer than pictures and video."""
    shown: list[PictureOrFrames] = [*pictures, *([list(video)] if video else [])]
    if len(images) == len(pictures) + len(video):  # a video whose frames were pruned one by one
        shown = [*pictures, *video]
    if len(images) != len(shown):
        raise ValueError(f"{len(images)} visual spans were pruned, and {len(shown)} pictures given: which is which?")
    return list(zip(images, shown, strict=True))


def _described(
    args: argparse.Namespace, method: Pruner | None, answers: dict[str, Answer], video: Clip
) -> dict[str, Any]:
    return {
        "command": "vlm-pruner ask",
        "question": args.question,
        "images": args.images,
        "video": args.video,
        "frames": {name: getattr(video, name) for name in ("indices", "total", "fps")} if args.video else None,
        "pixels": asdict(options.pixel_limits(args)),
        "model": args.model,
        "method": method and {"name": method.name, **method.config()},
        "warm_up": not args.no_warm_up,
        "answers": {name: _as_dict(answer) for name, answer in answers.items()},
    }


def _as_dict(answer: Answer) -> dict[str, Any]:
    own = {entry.name: getattr(answer, entry.name) for entry in fields(answer) if entry.name != "images"}
    return {**own, "images": [image.to_dict() for image in answer.images]}
