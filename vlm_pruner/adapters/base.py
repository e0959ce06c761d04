"""Defines an adapter: it finds a model's decoder, and the visual tokens of a forward call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from vlm_pruner.adapters.clip_tower import ClipTower
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner


class Adapter:
    """One model family. A subclass implements `spans` and is listed in `adapters/__init__.py`.

    `decoder` and `entry` fit transformers' own vision-language models: a ...ForConditionalGeneration with a ...Model
    in `model`, or that ...Model alone, whose decoder is `language_model`.

    released_rounding: how the released code turns a share of this family's tokens into a number.
    """

    released_rounding: ClassVar[Literal["round", "floor"]] = "round"

    videos = False  # whether a video is one span whose tokens know their frame

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def check(self, method: Pruner) -> None:
        """Raises PruningError if the method suits no image of this model; called before anything runs."""

    def tower(self) -> ClipTower:
        """The vision tower, for methods that choose by its class token. Raises PruningError if there is none."""
        raise PruningError(
            f"{type(self.model).__name__} does not take its visual tokens one by one from a vision tower with a class "
            "token; methods that choose by that token's attention work with LLaVA-1.5 only"
        )

    @property
    def decoder(self) -> nn.Module:
        """The language model: has `layers` and `config`, and passes rotary `position_embeddings` to its layers."""
        decoder: nn.Module = self.entry.language_model
        return decoder

    @property
    def entry(self) -> nn.Module:
        """The module whose forward receives what `spans` needs; a pre-hook on it reads every call's arguments."""
        entry: nn.Module = self.model.model if hasattr(self.model, "lm_head") else self.model
        return entry

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        """Visual spans per batch row in one forward call of `entry`; a decoding step has none."""
        raise NotImplementedError

    def fit(self, layout: TokenLayout) -> Fit | None:
        """How the processor fitted a picture or video to the grid of `layout`; None if unknown.

        Receipts carry it, and drawings of kept tokens use it. By default the picture was scaled to fill the grid.
        """
        return grid_fit(layout)


def check_videos(method: Pruner, takes_videos: bool, model: str) -> None:
    """Raises PruningError if the method prunes nothing but videos and the model takes none."""
    if method.videos_only and not takes_videos:
        raise PruningError(
            f"{method.name} compares the frames of videos, and {model} takes no video as one run of frames; use a "
            "method for pictures, such as vlm-pruner"
        )


def grid_fit(layout: TokenLayout, kind: str = "stretch", pixels: int = 0) -> Fit:
    """The fit of a single grid, or of one grid per frame."""
    columns, rows = (int(axis.max()) + 1 for axis in layout.coords[:, -2:].T)
    frames = 1 if layout.coords.shape[1] == 2 else len(layout.coords[:, 0].unique())
    return Fit(kind, rows, columns, frames, pixels=pixels)


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name, positional ones included."""
    if not args:  # so `generate` calls at every step, and reading the signature takes longer than all else here
        return kwargs
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def encoded(call: dict[str, Any], kind: str) -> Any:
    """Features of the call's images or videos (`kind`), if `generate` has encoded them beforehand; otherwise None."""
    output = (call.get("mm_encoder_outputs") or {}).get(kind)
    return None if output is None else output.pooler_output


def picture_count(call: dict[str, Any]) -> int:
    """Pictures, or tiles of pictures, that the call brings along."""
    features = encoded(call, "image")
    pictures = call.get("pixel_values") if features is None else features
    return 0 if pictures is None else len(pictures)


def placeholders(call: dict[str, Any], token_id: int) -> list[list[int]]:
    """Per row of the call's prompts, the positions of its placeholders, ascending.

    Plain lists: right after a model's matrix products, each tensor or NumPy operation takes longer than a loop over a
    prompt. A GPU is waited for once. Raises PruningError if the call gives embeddings instead of ids.
    """
    ids = call.get("input_ids")
    if ids is None:
        raise _embeddings()
    return [[index for index, token in enumerate(row) if token == token_id] for row in ids.tolist()]


def rows_without_spans(call: dict[str, Any]) -> list[list[VisualSpan]]:
    """An empty list per batch row. Raises PruningError if the call gives a prompt as embeddings."""
    ids = call.get("input_ids")
    if ids is None and call["inputs_embeds"].shape[1] > 1:
        raise _embeddings()
    return [[] for _ in range((call["inputs_embeds"] if ids is None else ids).shape[0])]


def _embeddings() -> PruningError:
    return PruningError(
        "pass input_ids, not inputs_embeds: pruning finds pictures by their placeholders, which embeddings do not show"
    )


def check_not_cut(call: dict[str, Any], positions: list[list[int]]) -> None:
    """For families whose pictures end with a text token. positions: from `placeholders`.

    Raises PruningError if a row ends with a picture, as in a chunked prefill: each part would count as a whole one.
    """
    last = call["input_ids"].shape[1] - 1
    for row, own in enumerate(positions):
        if own and own[-1] == last:
            raise PruningError(f"row {row} ends within a picture; give the prompt uncut and in one forward call")


def lay_out(call: dict[str, Any], visuals: Mapping[int, list[TokenLayout]]) -> list[list[VisualSpan]]:
    """Spans per row. visuals: for each placeholder id, the layouts of all rows' pictures or videos, in order.

    An id without layouts is not visual: without pictures, placeholders are tokens that a model may generate.
    """
    spans = rows_without_spans(call)
    for token_id, layouts in visuals.items():
        if layouts:
            in_order = iter(layouts)
            by_row = placeholder_positions(placeholders(call, token_id), [len(layout) for layout in layouts])
            for row_spans, own in zip(spans, by_row, strict=True):
                row_spans += [VisualSpan.at(where, next(in_order)) for where in own]
    return spans


def placeholder_positions(positions: list[list[int]], sizes: list[int]) -> list[list[list[int]]]:
    """Splits each row of `positions`, from `placeholders`, into those of each of its images.

    sizes: visual tokens of the images of all rows, in order. Text may stand within an image. Raises PruningError if a
    row's placeholders are not those of whole images, as when a prompt is cut or prefilled in chunks.
    """
    wanted = iter(sizes)
    rows: list[list[list[int]]] = [[] for _ in positions]
    for row, images in enumerate(rows):
        left = positions[row]
        while left:
            size = next(wanted, 0)
            if not 0 < size <= len(left):
                raise PruningError(
                    f"row {row}: the {len(left)} placeholders from position {left[0]} on are not those of whole "
                    f"images (of {sizes} tokens in all rows); give the prompt uncut and in one forward call"
                )
            images.append(left[:size])
            left = left[size:]
    return rows


def tokens_by_size(call: dict[str, Any], pixels: int) -> list[int]:
    """Visual tokens of the call's pictures of any size. pixels: of a token's height and width."""
    features = encoded(call, "image")
    if features is not None:
        return [len(tokens) for tokens in features]
    if call.get("pixel_values") is None or call.get("image_sizes") is None:
        return []
    sizes: list[int] = (torch.as_tensor(call["image_sizes"]) // pixels).prod(dim=-1).tolist()
    return sizes


def lay_out_rows(call: dict[str, Any], token_id: int, sizes: list[int]) -> list[list[VisualSpan]]:
    """Spans per row of pictures whose rows of tokens each end with a text token, as in prompts for Pixtral's tower.

    sizes: visual tokens of the call's pictures, in order.
    """
    if not sizes:
        return lay_out(call, {})
    where = placeholders(call, token_id)
    check_not_cut(call, where)
    rows = placeholder_positions(where, sizes)
    return lay_out(call, {token_id: [_grid(picture) for row in rows for picture in row]})


def _grid(where: list[int]) -> TokenLayout:
    """Of the picture at positions `where` [N]: a row ends where the positions break off."""
    rows = runs(where)
    if len(set(rows)) != 1:
        raise PruningError(
            f"the {len(where)} placeholders of a picture do not form rows of {rows[0]}; give the prompt as the "
            "processor returns it, with a break after every row"
        )
    return TokenLayout.grid(len(rows), rows[0])


def has_class_token(tower: nn.Module) -> bool:
    """Whether a vision tower puts a token before its patches, as CLIP does and SigLIP and Pixtral do not."""
    embeddings = getattr(getattr(tower, "vision_model", tower), "embeddings", None)
    return hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token")


def check_one_token_a_patch(model: nn.Module, tower: nn.Module) -> None:
    """Raises PruningError if the model takes more or fewer features from its tower than one for each patch."""
    strategy = model.config.vision_feature_select_strategy
    wanted = "default" if has_class_token(tower) else "full"
    if strategy != wanted:
        what = "adds the class token, which has no place in" if wanted == "default" else "leaves out a patch of"
        raise PruningError(
            f"vision_feature_select_strategy={strategy!r} with {type(tower).__name__} {what} the picture; pruning "
            f"needs {wanted!r}"
        )


def runs(positions: Sequence[int]) -> list[int]:
    """Lengths of the runs of consecutive positions, which are ascending."""
    breaks = [index for index, (one, next_one) in enumerate(pairwise(positions), 1) if next_one != one + 1]
    return [end - start for start, end in pairwise([0, *breaks, len(positions)])] if positions else []
