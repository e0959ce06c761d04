"""What `vlm-pruner ask` and `vlm-pruner show` have in common: flags, methods by name, pictures from files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlm_pruner.experiments.mini import CHECKPOINT, ONLY_ITS_OWN, SCENE, check_checkpoint

if TYPE_CHECKING:
    from vlm_pruner.methods import Pruner

DENSE = "dense"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=str(CHECKPOINT), metavar="PATH",
        help="checkpoint folder or Hub name, LLaVA's original layout or transformers' (default: the "
        "embedded model, which needs a clone)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--dtype", default=None, help="float32, float16 or bfloat16 (float32 on a CPU)")


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep",
        default="64",
        metavar="N",
        help="visual tokens kept per picture, or ratio:0.889, the share removed (64)",
    )
    parser.add_argument("--layer", type=int, default=None, metavar="K", help="first layer on the short sequence")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="a further setting of the method, such as spatial_weight=0; may be repeated",
    )  # fmt: skip


def check_model(args: argparse.Namespace) -> None:
    """Raises FileNotFoundError if the embedded model is asked for and is not there, before torch is imported."""
    if Path(args.model) == CHECKPOINT:
        check_checkpoint(CHECKPOINT)


def load_chat(args: argparse.Namespace) -> Any:
    """The checkpoint, opened."""
    from vlm_pruner.asking import load

    print(f"loading {args.model if Path(args.model) != CHECKPOINT else 'the embedded model'}", file=sys.stderr)
    return load(args.model, device=args.device, dtype=args.dtype)


def warn_of_other_worlds(model: str, pictures: Sequence[Image.Image]) -> None:
    """One line on standard error where the embedded model is asked about a picture that cannot be a scene of its."""
    if Path(model) == CHECKPOINT and any(picture.size != SCENE for picture in pictures):
        print(f"warning: {ONLY_ITS_OWN}", file=sys.stderr)


def make_method(name: str, keep: str, layer: int | None = None, settings: Sequence[str] = ()) -> Pruner:
    """The method `name` with a budget and settings ("field=value"). Raises PruningError that lists what there is."""
    from vlm_pruner.cost import budgets
    from vlm_pruner.methods import words

    given = [*settings, *([] if layer is None else [f"layer={layer}"])]
    return budgets.plain(budgets.Budget.parse(keep), words.maker(name, given))


def read_pictures(files: Sequence[str]) -> list[Image.Image]:
    """Upright RGB pictures; of an animated one the first frame, with a note on standard error.

    Raises vlm_pruner.images.ImageReadError, which names the file and the remedy.
    """
    from vlm_pruner.images import read_image

    pictures = [read_image(file) for file in files]
    for file in files:
        with Image.open(file) as opened:
            count = getattr(opened, "n_frames", 1)
        if count > 1:
            print(
                f"{file} is animated: the first of its {count} frames is taken (--video takes them all)",
                file=sys.stderr,
            )
    return pictures
