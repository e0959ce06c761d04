"""Ask a LLaVA model about pictures or a video, and print the answer.

    python -m llava.eval.run_llava --model-path checkpoints/llava-v1.5-7b --image-file a.png --query "What is it?"
    python -m llava.eval.run_llava --model-path checkpoints/llava-v1.5-7b --image-file a.png,b.png \\
        --query "What has changed?" --sparse --reduction_ratio 0.889
    python -m llava.eval.run_llava --model-path checkpoints/LLaVA-Video-7B-Qwen2 --conv-mode qwen_1_5 \\
        --video film.mp4 --force-sample --add-time-instruction --query "What happens?"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vlm_pruner.console import BAD_INPUT, OneLineParser, home, one_line
from vlm_pruner.images import read_image
from vlm_pruner.llava.eval import options
from vlm_pruner.llava.eval.errors import UsageError
from vlm_pruner.llava.eval.evaluate import load_engine
from vlm_pruner.llava.eval.films import add_video_arguments
from vlm_pruner.llava.eval.questions import Question


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m llava.eval.run_llava", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    options.add_model_arguments(parser)
    parser.add_argument("--image-file", default=None, help="picture, or several with --sep between them")
    parser.add_argument("--video", default=None, metavar="FILE", help="video file, or a folder of frames")
    parser.add_argument("--sep", default=",", help="between pictures (default: a comma)")
    parser.add_argument("--query", required=True, help="the question")
    add_video_arguments(parser)
    options.add_generation_arguments(parser)
    options.add_pruning_arguments(parser)
    parser.set_defaults(max_new_tokens=512, batch_size=1, image_folder="")
    return parser


def ask(args: argparse.Namespace) -> str:
    """The reply; what was kept of the pictures goes to standard error."""
    method = options.build_method(args)
    options.check_generation(args)
    released = args.compat == "released"
    if not args.image_file and not args.video:
        raise UsageError("there is nothing to look at: give --image-file PICTURE or --video FILE")
    names = args.image_file.split(args.sep) if args.image_file else []
    pictures = tuple(read_image(home(name.strip()), as_released=released) for name in names)
    films = (Path(home(args.video)),) if args.video else ()
    engine = load_engine(args, method)
    question = Question(0, 0, asked=args.query, prompt=args.query, images=pictures, videos=films)
    reply = engine.generate([engine.prepare(question)])[0]
    if method is not None:
        kept = reply.metadata
        print(f"{method.name}: {kept['kept']} of {kept['visual_tokens']} visual tokens kept", file=sys.stderr)
    return reply.text


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        print(ask(args))
        return 0
    except (ValueError, OSError) as error:
        print(f"run_llava: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
