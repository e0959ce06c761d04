"""`vlm-pruner prior`: what a model attends to in any picture, for methods that divide by it (d2pruner)."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from vlm_pruner.commands import options
from vlm_pruner.console import at_least

EXAMPLES = """examples:
  vlm-pruner prior pictures/ --out prior.json
  vlm-pruner prior *.jpg --model llava-hf/llava-1.5-7b-hf --device cuda --out prior.json
  vlm-pruner compare --methods dense,d2pruner:prior=prior.json --budget 64

A prior is of one model, one layer and one size of pictures. The paper averages over 1000 pictures.
"""
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="pictures, or folders of pictures")
    parser.add_argument(
        "--question", default="Describe this image.", metavar="TEXT", help="a generic prompt (%(default)s)"
    )
    parser.add_argument("--layer", type=int, default=2, metavar="K", help="first layer on the short sequence (2)")
    parser.add_argument("--limit", type=int, default=1000, metavar="N", help="pictures at most (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="gets the prior, as JSON")
    options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Asks the model about each picture, and writes the average attention of the layer before --layer."""
    from vlm_pruner.asking.priors import average_attention

    at_least(1, limit=args.limit)
    files = [file for path in args.pictures for file in _files(path)][: args.limit]
    pictures = (picture for file in files for picture in options.read_pictures([str(file)]))
    prior = average_attention(options.load_chat(args), pictures, args.question, args.layer)
    options.write_json(args.out, {"prior": asdict(prior)})
    print(f"{args.out}: {prior.pictures} pictures of {prior.height} x {prior.width} tokens, layer {prior.layer}")
    return 0


def _files(path: Path) -> list[Path]:
    """The file itself, or a folder's pictures in order of their names."""
    if not path.is_dir():
        return [path]
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in _PICTURES)
    if not found:
        raise ValueError(f"{path} has no pictures ({', '.join(_PICTURES)})")
    return found
