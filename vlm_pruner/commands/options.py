"""Shared by subcommands: flags, methods by name, pictures from files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlm_pruner.experiments.mini import CHECKPOINT, ONLY_ITS_OWN, SCENE, check_checkpoint, embedded

if TYPE_CHECKING:
    from vlm_pruner.cost.budgets import Budget
    from vlm_pruner.cost.flops import DecoderShape
    from vlm_pruner.geometry.frame_sizes import PixelLimits
    from vlm_pruner.methods import Pruner
    from vlm_pruner.methods.words import Make

BUDGETS = "64 (tokens kept), ratio:0.889 (share removed), avg:64 (mean over layers), flops:0.3 (share of dense)"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=str(CHECKPOINT), metavar="PATH",
        help="checkpoint folder or Hub name, LLaVA's original layout or transformers' (default: the "
        "embedded model, which needs a clone)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="float32 on a CPU, else float16")


def add_experiment_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Flags of every command that asks a model many questions. out: the default folder of results."""
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, metavar="DIR", help="checkpoint folder (default: the embedded model)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="results (%(default)s)")


def add_pixel_arguments(parser: argparse.ArgumentParser) -> None:
    """Limits on pixels: those of a family that takes pictures of any size (Qwen-VL); the others refuse them."""
    whose = "Qwen-VL only; the checkpoint's unless given"
    parser.add_argument("--min-pixels", type=int, metavar="N", help=f"of a picture, and of a video's frame ({whose})")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="the same, at most")
    parser.add_argument("--video-min-pixels", type=int, metavar="N", help="of a frame, where it differs from pictures")
    parser.add_argument("--video-max-pixels", type=int, metavar="N", help="the same, at most")
    parser.add_argument("--total-pixels", type=int, metavar="N", help="of all frames of a video together, at most")


def pixel_limits(args: argparse.Namespace) -> PixelLimits:
    from vlm_pruner.geometry.frame_sizes import PixelLimits

    return PixelLimits(**{limit.name: getattr(args, limit.name, None) for limit in fields(PixelLimits)})


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", default="64", metavar="N", help=f"{BUDGETS} (64)")
    parser.add_argument("--layer", type=int, default=None, metavar="K", help="first layer on the short sequence")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="a further setting of the method, such as calibrate=size; may be repeated",
    )  # fmt: skip


def check_model(args: argparse.Namespace) -> None:
    """Raises FileNotFoundError if the embedded model is wanted but missing, before torch is imported."""
    if embedded(args.model):
        check_checkpoint(CHECKPOINT)


def load_chat(args: argparse.Namespace) -> Any:
    """The checkpoint, opened."""
    from vlm_pruner.asking import load

    print(f"loading {'the embedded model' if embedded(args.model) else args.model}", file=sys.stderr)
    return load(args.model, device=args.device, dtype=args.dtype, pixels=pixel_limits(args))


def warn_of_other_worlds(model: str, pictures: Sequence[Image.Image]) -> None:
    """Warns on standard error if the embedded model is asked about a picture from outside its world."""
    if embedded(model) and any(picture.size != SCENE for picture in pictures):
        print(f"warning: {ONLY_ITS_OWN}", file=sys.stderr)


@dataclass(frozen=True)
class Wanted:
    """A method as typed: its name, settings and budget, which may depend on the model and the picture."""

    budget: Budget
    make: Make

    @classmethod
    def read(cls, name: str, keep: str, layer: int | None = None, settings: Sequence[str] = ()) -> Wanted:
        """Raises PruningError for a name, setting or budget that does not exist, before any model is loaded."""
        from vlm_pruner.cost import budgets
        from vlm_pruner.methods import words

        given = [*settings, *([] if layer is None else [f"layer={layer}"])]
        wanted = cls(budgets.Budget.parse(keep), words.maker(name, given))
        if wanted.budget.fixed:
            wanted.plain()
        else:
            wanted.make(reduction_ratio=0.5)  # settings that no budget goes with are refused now, too
        return wanted

    def plain(self) -> Pruner:
        """The method, if its budget needs no model. Raises PruningError otherwise."""
        from vlm_pruner.cost import budgets

        return budgets.plain(self.budget, self.make)

    def solved(self, visual: int, shape: DecoderShape, text: int | None = None) -> Pruner:
        """The method that meets the budget for a picture of `visual` tokens in a prompt with `text` others."""
        from vlm_pruner.cost import budgets

        if self.budget.fixed:
            return self.plain()
        return budgets.solve(self.budget, self.make, visual, shape, budgets.TEXT if text is None else text).method

    def on(
        self, chat: Any, pictures: Sequence[Image.Image], question: str, video: Sequence[Image.Image] = ()
    ) -> Pruner:
        """The method that meets the budget for this prompt. Raises PruningError if it holds several pictures."""
        from vlm_pruner.cost.flops import DecoderShape
        from vlm_pruner.errors import PruningError

        if self.budget.fixed:
            return self.plain()
        if len(pictures) + bool(video) != 1:
            raise PruningError(
                f"--keep {self.budget} says what one picture may cost, and there are {len(pictures) + bool(video)}; "
                "give tokens or a ratio, which hold for each picture, such as --keep ratio:0.889"
            )
        prompt = chat.prompt(list(pictures), question, video)
        method = self.solved(prompt.visual_tokens, DecoderShape.of(chat.decoder.config), prompt.text_tokens)
        print(
            f"--keep {self.budget} of {prompt.visual_tokens} visual tokens is {method.keep_tokens} from layer "
            f"{method.layer} on", file=sys.stderr,
        )  # fmt: skip
        return method


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a result with the environment that made it."""
    from vlm_pruner.provenance import environment

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**document, "environment": environment()}, indent=1) + "\n", encoding="utf-8")


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
