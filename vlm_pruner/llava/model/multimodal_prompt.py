"""Splices ids and pictures into the one sequence that the decoder reads, in LLaVA's and in transformers' convention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm_pruner.geometry.anyres import get_anyres_image_grid_shape
from vlm_pruner.geometry.layout import VisualSpan
from vlm_pruner.llava.constants import IMAGE_TOKEN_INDEX
from vlm_pruner.llava.model.image_tokens import ImageTokens
from vlm_pruner.llava.model.llava_arch import Images, ImageSizes, LlavaMetaModel, Modalities, encode_images
from vlm_pruner.llava.model.llava_config import AnyLlavaConfig

PIXELS = ("pixel_values", "pixel_values_videos")
"""Arguments that hold pictures and videos in transformers' convention."""


@dataclass(frozen=True)
class MultimodalPrompt:
    """The decoder's input, in place of ids.

    inputs_embeds:  [B, T, d], shorter rows padded.
    attention_mask: [B, T] long, 0 on padding.
    position_ids:   [B, T] long, counting each row's real tokens from 0.
    visual_spans:   per row, the spans of its pictures in the padded row.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    visual_spans: list[list[VisualSpan]]

    def padded_behind_pictures(self) -> MultimodalPrompt:
        """Moves the padding of left-padded rows to after their last picture.

        Rows about one picture then start with the same tokens, whatever the length of their questions.
        """
        order, spans = [], []
        length = self.inputs_embeds.shape[1]
        for row, own in enumerate(self.visual_spans):
            padding = length - int(self.attention_mask[row].sum())
            end = max((span.stop for span in own), default=padding)
            order.append([*range(padding, end), *range(padding), *range(end, length)])
            spans.append([replace(span, start=span.start - padding) for span in own])
        index = torch.tensor(order, device=self.inputs_embeds.device)
        embeds = self.inputs_embeds.gather(1, index[:, :, None].expand_as(self.inputs_embeds))
        mask, positions = self.attention_mask.gather(1, index), self.position_ids.gather(1, index)
        return MultimodalPrompt(embeds, mask, positions, spans)


@dataclass(frozen=True)
class _Row:
    embeds: Tensor  # [T, d]
    spans: list[VisualSpan]


def prepare_prompt(
    model: LlavaMetaModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    images: Images | None,
    image_sizes: ImageSizes | None = None,
    modalities: Modalities | None = None,
    *,
    padding_side: str = "right",
) -> MultimodalPrompt:
    """Puts each picture's or video's tokens where its id -200 stands in `input_ids` [B, T], in order of appearance.

    Raises `ValueError` if the numbers of pictures and of ids -200 differ, or if a row exceeds the model's length.
    """
    rows = list(input_ids)
    if attention_mask is not None:
        rows = [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask, strict=True)]
    _check_counts(rows, images)
    pictures = iter(encode_images(model, images, image_sizes, modalities) if images is not None else [])
    spliced = [_splice(model, row, pictures) for row in rows]
    _check_length(model.config, max(row.embeds.shape[0] for row in spliced))
    return _pad(spliced, padding_side)


def expanded_prompt_spans(
    model: LlavaMetaModel, input_ids: Tensor, image_sizes: Tensor | None, **pixels: Tensor | None
) -> tuple[Tensor, list[list[VisualSpan]]]:
    """transformers' convention: `input_ids` [B, T] contain one placeholder per visual token, pictures in order.

    AnyRes pictures come as `pixel_values` [n, most tiles, 3, side, side], padded with empty tiles, or all tiles after
    one another; and `image_sizes` [n, 2], which are (height, width) in this convention. Videos come as
    `pixel_values_videos` [n, F, 3, side, side], and have a placeholder of their own.

    Returns embeddings [B, T, d] and the visual spans. Raises `ValueError` if placeholders and visual tokens differ.
    """
    config, placeholders = model.config, input_ids == _placeholder(model.config)
    if config.takes_videos and config.video_token_index is not None:
        placeholders |= input_ids == config.video_token_index
    embeds = model.embed_tokens(input_ids.masked_fill(placeholders, 0))
    spans: list[list[VisualSpan]] = [[] for _ in input_ids]
    for _, mask, tokens in _by_kind(model, input_ids, image_sizes, **pixels):
        expected, found = sum(len(image.layout) for image in tokens), int(mask.sum())
        if expected != found:
            raise ValueError(
                f"{len(tokens)} pictures make {expected} visual tokens, but input_ids hold {found} placeholders: "
                "repeat the placeholder once per visual token, or pass images= with one id -200 per picture"
            )
        features = torch.cat([image.features for image in tokens]).to(embeds)
        embeds = embeds.masked_scatter(mask[..., None], features)
        spans = [row + more for row, more in zip(spans, _expanded_spans(mask, tokens), strict=True)]
    return embeds, [sorted(row, key=lambda span: span.start) for row in spans]


def _by_kind(
    model: LlavaMetaModel,
    input_ids: Tensor,
    image_sizes: Tensor | None,
    pixel_values: Tensor | None = None,
    pixel_values_videos: Tensor | None = None,
) -> Iterator[tuple[str, Tensor, list[ImageTokens]]]:
    """Pictures, then videos: the argument that holds them, where placeholders stand (bool [B, T]), and their tokens."""
    config = model.config
    if pixel_values is not None:
        tokens = encode_images(model, *_own_tiles(config, pixel_values, image_sizes))
        yield "pixel_values", input_ids == _placeholder(config), tokens
    if pixel_values_videos is not None:
        if not config.takes_videos or config.video_token_index is None:
            raise ValueError(
                "pixel_values_videos are given, but the configuration names no placeholder for videos "
                "(video_token_index); pass images= and modalities= with one id -200 per video"
            )
        mask = input_ids == config.video_token_index
        tokens = encode_images(model, list(pixel_values_videos), modalities="video")
        yield "pixel_values_videos", mask, tokens


def _placeholder(config: AnyLlavaConfig) -> int:
    return IMAGE_TOKEN_INDEX if config.image_token_index is None else config.image_token_index


def repeat_pictures(
    model: LlavaMetaModel, input_ids: Tensor, times: int, image_sizes: Tensor | None = None, **pixels: Tensor | None
) -> dict[str, Tensor]:
    """The arguments about a batch's pictures in transformers' convention, for `times` copies of every row."""
    repeated = {}
    for name, mask, tokens in _by_kind(model, input_ids, image_sizes, **pixels):
        counts = [len(row) for row in _expanded_spans(mask, tokens)]
        order = torch.cat([row for row in torch.arange(sum(counts)).split(counts) for _ in range(times)])
        values = pixels[name]
        assert values is not None
        tiles, sizes = _own_tiles(model.config, values, image_sizes if name == "pixel_values" else None)
        if values.ndim == 4 and sizes is not None:  # all pictures' tiles after one another
            repeated[name] = torch.cat([tiles[i] for i in order.tolist()])
        else:
            repeated[name] = values[order.to(values.device)]
        if name == "pixel_values" and image_sizes is not None:
            repeated["image_sizes"] = image_sizes[order]
    return repeated


def _own_tiles(
    config: AnyLlavaConfig, pixel_values: Tensor, image_sizes: Tensor | None
) -> tuple[Tensor | list[Tensor], list[tuple[int, int]] | None]:
    """Converts transformers' convention to LLaVA's: one tensor of tiles per picture, and sizes as (width, height)."""
    if image_sizes is None or config.image_grid_pinpoints is None:
        return pixel_values, None
    sizes = [(int(width), int(height)) for height, width in image_sizes.tolist()]
    side = pixel_values.shape[-1]
    grids = [get_anyres_image_grid_shape(size, config.image_grid_pinpoints, side) for size in sizes]
    counts = [1 + across * down for across, down in grids]
    if pixel_values.ndim == 4:
        return list(pixel_values.split(counts)), sizes
    return [tiles[:count] for tiles, count in zip(pixel_values, counts, strict=True)], sizes


def _expanded_spans(mask: Tensor, tokens: Sequence[ImageTokens]) -> list[list[VisualSpan]]:
    pictures = iter(tokens)
    spans: list[list[VisualSpan]] = []
    for row in mask.cpu():
        positions = row.nonzero()[:, 0].tolist()
        spans.append([])
        while positions:
            image = next(pictures)
            length = len(image.layout)
            if len(positions) < length or positions[length - 1] - positions[0] != length - 1:
                raise ValueError(
                    f"a picture's {length} placeholders must be contiguous; the run that starts at "
                    f"position {positions[0]} is not"
                )
            spans[-1].append(image.span(positions[0]))
            positions = positions[length:]
    return spans


def _check_counts(rows: Sequence[Tensor], images: Images | None) -> None:
    placeholders = sum(int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows)
    given = 0 if images is None else len(images)
    if placeholders != given:
        raise ValueError(
            f"{given} images given, but input_ids hold {placeholders} image ids ({IMAGE_TOKEN_INDEX}): "
            "write one <image> per picture into the prompt"
        )


def _check_length(config: AnyLlavaConfig, length: int) -> None:
    limit = config.tokenizer_model_max_length
    if limit is not None and length > limit:
        raise ValueError(
            f"the prompt has {length} tokens with its pictures, the model reads {limit} "
            "(tokenizer_model_max_length): shorten the text or pass fewer pictures"
        )


def _splice(model: LlavaMetaModel, ids: Tensor, pictures: Iterator[ImageTokens]) -> _Row:
    """One row's embeddings; takes as many pictures as the row has image ids."""
    breaks = (ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
    text = model.embed_tokens(ids[ids != IMAGE_TOKEN_INDEX])
    # `position - i` text tokens precede the i-th image id.
    pieces = text.tensor_split([position - i for i, position in enumerate(breaks)]) if breaks else (text,)
    parts, spans, length = [pieces[0]], [], pieces[0].shape[0]
    for piece in pieces[1:]:
        image = next(pictures)
        spans.append(image.span(length))
        parts += [image.features.to(text), piece]
        length += len(image.layout) + piece.shape[0]
    return _Row(torch.cat(parts), spans)


def _pad(rows: Sequence[_Row], padding_side: str) -> MultimodalPrompt:
    lengths = [row.embeds.shape[0] for row in rows]
    longest = max(lengths)
    embeds = pad_sequence([row.embeds for row in rows], batch_first=True, padding_side=padding_side)
    offsets = [longest - length if padding_side == "left" else 0 for length in lengths]
    positions = torch.arange(longest, device=embeds.device)[None]
    start = torch.tensor(offsets, device=embeds.device)[:, None]
    stop = start + torch.tensor(lengths, device=embeds.device)[:, None]
    return MultimodalPrompt(
        inputs_embeds=embeds,
        attention_mask=((positions >= start) & (positions < stop)).long(),
        position_ids=(positions - start).clamp(min=0).expand(len(rows), -1),
        visual_spans=[
            [replace(span, start=span.start + offset) for span in row.spans]
            for row, offset in zip(rows, offsets, strict=True)
        ],
    )
