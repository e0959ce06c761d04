"""`vlm-pruner count`: how many visual tokens pictures have for a model, before anything runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_pruner.commands import options
from vlm_pruner.console import COLUMNS, words, wrapped
from vlm_pruner.report.table import blocks, render

if TYPE_CHECKING:
    from PIL import Image

    from vlm_pruner.asking.counting import Counter

EXAMPLES = """examples:
  vlm-pruner count photo.jpg
  vlm-pruner count *.jpg --model Qwen/Qwen2.5-VL-7B-Instruct --method vlm-pruner,pyramiddrop --keep ratio:0.75,64
  vlm-pruner count photo.jpg --model checkpoints/llava-v1.6-vicuna-7b --json count.json

Reads the checkpoint's configuration and processor, never its weights: of a Hub name, only small files are downloaded.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="PICTURE", help="pictures, each counted as alone in its prompt")
    parser.add_argument(
        "--method", type=words, default=["vlm-pruner"], metavar="NAME,NAME", help="pruning methods (vlm-pruner)"
    )
    options.add_method_arguments(parser)
    parser.add_argument(
        "--model", default=str(options.CHECKPOINT), metavar="PATH",
        help="checkpoint folder or Hub name, LLaVA's original layout or transformers' (default: the embedded model)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="counts, stage by stage, as JSON")


def run(args: argparse.Namespace) -> int:
    """One line per picture: its size in pixels, its visual tokens, and what each method keeps."""
    from vlm_pruner.asking.counting import open_counter

    methods = {
        f"{name} {keep}": options.Wanted.read(name, keep, args.layer, args.settings)
        for name in args.method
        for keep in words(args.keep)
    }
    if not methods:
        raise ValueError("there is nothing to count; name a method and a budget, such as --method vlm-pruner --keep 64")
    pictures = options.read_pictures(args.images)
    options.check_model(args)
    counts = count(open_counter(args.model), args.images, pictures, methods)
    print(table(counts, list(methods)))
    if args.json:
        options.write_json(args.json, {"command": "vlm-pruner count", "model": args.model, "pictures": counts})
    return 0


def count(
    counter: Counter, files: Sequence[str], pictures: Sequence[Image.Image], methods: dict[str, options.Wanted]
) -> list[dict[str, Any]]:
    """Per picture: file, size [width, height], visual tokens, and for each method its (layer, tokens) steps."""
    counts = []
    for file, picture in zip(files, pictures, strict=True):
        tokens = counter.tokens_of(picture)
        kept = {name: counter.steps(method.solved(tokens, counter.shape), tokens) for name, method in methods.items()}
        counts.append({"file": file, "size": list(picture.size), "visual_tokens": tokens, "kept": kept})
    return counts


def table(counts: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    """The counts as text. A method with several stages shows each: 250>150>50. Where that is too wide for a terminal,
    methods follow one another."""
    printed = render(["picture", "pixels", "tokens", *methods], _rows(counts, methods))
    if max(map(len, printed.splitlines())) > COLUMNS:
        budgets = list(dict.fromkeys(name.rpartition(" ")[2] for name in methods))
        names = dict.fromkeys(name.rpartition(" ")[0] for name in methods)
        rows = [(name, row) for name in names for row in _rows(counts, [f"{name} {keep}" for keep in budgets])]
        printed = blocks(["picture", "pixels", "tokens", *budgets], rows)
    where = ", ".join(
        f"{name}: from layer {'>'.join(str(layer) for layer, _ in counts[0]['kept'][name])}" for name in methods
    )
    note = f"tokens: visual tokens, dense; below a method those that it keeps. {where}"
    return "\n".join([printed, "", wrapped(note)])


def _rows(counts: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[list[str]]:
    return [
        [
            Path(one["file"]).name,
            "x".join(map(str, one["size"])),
            str(one["visual_tokens"]),
            *(">".join(str(tokens) for _, tokens in one["kept"][name]) for name in methods),
        ]
        for one in counts
    ]
