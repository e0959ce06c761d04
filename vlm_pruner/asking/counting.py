"""Counts a picture's visual tokens from a checkpoint's configuration and processor, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from vlm_pruner import adapters
from vlm_pruner.asking.opening import in_words, is_original
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.errors import PruningError
from vlm_pruner.llava.eval.checkpoint import Checkpoint
from vlm_pruner.llava.model.builder import model_class, open_checkpoint
from vlm_pruner.llava.model.checkpoint import find_folder, read_config
from vlm_pruner.methods import Pruner


@dataclass(frozen=True)
class Counter:
    """What a checkpoint makes of a picture that is alone in its prompt.

    tokens_of: visual tokens of a picture (RGB). shape: of the decoder. rounding: as for `Pruner.budget`.
    one_size: whether all pictures have the same number of tokens; then keeping more of them is refused.
    """

    tokens_of: Callable[[Image.Image], int]
    shape: DecoderShape
    rounding: str = "round"
    one_size: bool = False

    def steps(self, method: Pruner, tokens: int) -> list[tuple[int, int]]:
        """(layer, tokens from that layer on) that a receipt will show for a picture of `tokens` visual tokens.

        Raises PruningError if all pictures have fewer tokens than it should keep, and for a method that keeps newline
        tokens beside its budget: their number depends on the kept ones.
        """
        if method.newlines == "of-kept-rows":
            raise PruningError(
                "newlines='of-kept-rows' keeps newline tokens beside the budget, as many as there are rows with a kept "
                "token, so their number is not known beforehand; leave it out to count"
            )
        layers = method.layers(self.shape.layers)
        if (
            method.keep_tokens is not None and method.keep_tokens > tokens and not self.one_size
        ):  # then the picture keeps all of them
            return [(layer, tokens) for layer in layers]
        return list(zip(layers, method.budgets(tokens, self.shape.layers, self.rounding), strict=True))


def open_counter(checkpoint: str | Path) -> Counter:
    """Opens a checkpoint folder or Hub name, in LLaVA's original layout or in transformers'. Loads no weights.

    Raises ValueError for a folder without a checkpoint, UnsupportedModelError for a model that no adapter supports.
    """
    folder = find_folder(checkpoint, "checkpoint", "check the path, or download the checkpoint first", weights=False)
    config = read_config(folder, "checkpoint")
    with in_words(checkpoint):
        return _original(folder) if is_original(config) else _processed(folder, str(checkpoint), config)


def _original(folder: Path) -> Counter:
    config = open_checkpoint(folder, weights=False).config
    with torch.device("meta"):
        model = model_class(config)(config)
    read = Checkpoint(str(folder), None, model, None)
    return Counter(
        lambda picture: read.tokens_of(picture.size),
        DecoderShape.of(config),
        one_size=read.visual_tokens is not None,
    )


def _processed(folder: Path, name: str, config: dict[str, object]) -> Counter:
    from vlm_pruner.asking.processed import Prompts

    architectures = config.get("architectures")
    family = str(architectures[0]) if isinstance(architectures, list) and architectures else str(config["model_type"])
    prompts = Prompts.open(folder, name)
    adapter = adapters.of_class(family)
    return Counter(
        lambda picture: prompts.prompt(picture, "?").visual_tokens,
        DecoderShape.of(prompts.config.get_text_config()),
        adapter.released_rounding,
        one_size=prompts.config.model_type == "llava" and prompts.config.vision_config.model_type != "pixtral",
    )
