"""LLaVA's addition to a decoder: a tower and a projector that turn pictures and videos into its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from vlm_pruner.adapters.base import check_videos, grid_fit
from vlm_pruner.adapters.llava_next import anyres_fit
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.anyres import parse_pinpoints
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.llava.model.image_tokens import ImageTokens, single_view, tiled_view
from vlm_pruner.llava.model.llava_config import PATCH_MERGE_TYPES, AnyLlavaConfig
from vlm_pruner.llava.model.multimodal_encoder.builder import VisionTower, build_vision_tower
from vlm_pruner.llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower
from vlm_pruner.llava.model.multimodal_projector.builder import build_vision_projector
from vlm_pruner.llava.model.video_tokens import check_video_config, video_tokens
from vlm_pruner.methods.base import Pruner

Images: TypeAlias = Tensor | Sequence[Tensor]
ImageSizes: TypeAlias = Sequence[tuple[int, int] | None]
Modalities: TypeAlias = str | Sequence[str]

KINDS = ("image", "video")


class LlavaMetaModel(nn.Module):
    """Precedes a decoder in a class's bases and adds tower and projector, named as in the original checkpoints."""

    def __init__(self, config: AnyLlavaConfig) -> None:
        if config.mm_patch_merge_type not in PATCH_MERGE_TYPES:
            supported = ", ".join(map(repr, PATCH_MERGE_TYPES))
            raise ValueError(f"mm_patch_merge_type is {config.mm_patch_merge_type!r}; supported: {supported}")
        super().__init__(config)
        self.vision_tower = build_vision_tower(config)
        self.mm_projector = build_vision_projector(config)
        self.image_newline: nn.Parameter | None = None
        if config.mm_patch_merge_type == "spatial_unpad":
            self.image_newline = nn.Parameter(torch.zeros(config.hidden_size))
        self.post_init()

    def check(self, method: Pruner) -> None:
        """Raises PruningError if `method` keeps more tokens than a picture has, if all have the same number.

        Raises it also if `method` reproduces the released code on a model that the released code does not support.
        """
        check_videos(method, self.config.takes_videos, type(self).__name__)
        if self.config.takes_videos and method.released:
            raise PruningError(
                "compat='released' reproduces the released code, which has none for LLaVA-Video and LLaVA-OneVision; "
                "leave compat out"
            )
        if not self.config.anyres and not self.config.takes_videos:
            method.budget(self.vision_tower.num_patches)

    def fit(self, layout: TokenLayout) -> Fit | None:
        """How the evaluation's image processing lays a picture on a grid with tokens at `layout`; None if unknown."""
        config, tower = self.config, self.vision_tower
        side, pixels = tower.num_patches_per_side, tower.config.image_size
        untiled = "stretch" if isinstance(tower, SiglipVisionTower) else "crop"
        if layout.coords.shape[1] == 3:
            rows, frames = int(layout.coords[:, 2].max()) + 1, len(layout.coords[:, 0].unique())
            newlines = "" if self.image_newline is None else config.mm_newline_position
            return Fit(untiled, rows, rows, frames, pixels=pixels, newlines=newlines)
        if len(layout) in (side**2, side**2 + (self.image_newline is not None)):
            square = TokenLayout(layout.coords[: side**2], layout.diagonal)
            return grid_fit(square, "pad" if config.image_aspect_ratio == "pad" else untiled, pixels)
        if not config.anyres or config.mm_patch_merge_type != "spatial_unpad":
            return None
        canvases = tuple(parse_pinpoints(config.image_grid_pinpoints, pixels))
        return anyres_fit(layout, side, pixels, canvases, rounds=config.unpad_rounds)

    def get_vision_tower(self) -> VisionTower:
        return self.vision_tower


def encode_images(
    model: LlavaMetaModel,
    images: Images,
    image_sizes: ImageSizes | None = None,
    modalities: Modalities | None = None,
) -> list[ImageTokens]:
    """Tokens of each picture or video.

    images:      [B, 3, side, side], or a list of one tensor per picture or video: [3, side, side], for AnyRes
                 [tiles, 3, side, side], of a video [F, 3, side, side].
    image_sizes: the pictures' original (width, height) in pixels, which AnyRes needs; a video's entry is not read, and
                 videos may have none.
    modalities:  "image" or "video" for each, or one word for all; pictures by default.
    """
    kinds = _kinds(model.config, modalities, len(images))
    if isinstance(images, Tensor) and images.ndim == 4 and "video" not in kinds:
        return _encode_squares(model, images)
    sizes = _sizes(image_sizes, kinds)
    items = list(zip(images, sizes, kinds, strict=True))
    # One batch often asks several questions about a picture: the same tensor several times is encoded once.
    keys = [(id(pixels), size, kind) for pixels, size, kind in items]
    distinct = dict(zip(keys, items, strict=True))
    encoded = dict(zip(distinct, _encode_views(model, list(distinct.values())), strict=True))
    return [encoded[key] for key in keys]


def _kinds(config: AnyLlavaConfig, modalities: Modalities | None, items: int) -> list[str]:
    """One kind for each item. LLaVA's scripts write ["image"] for any number of pictures."""
    if modalities is None or list(modalities) == ["image"]:
        return ["image"] * items
    kinds = [modalities] * items if isinstance(modalities, str) else list(modalities)
    if len(kinds) != items:
        raise ValueError(
            f"{items} pictures and videos, but {len(kinds)} modalities ({kinds}): "
            "give one 'image' or 'video' for each, and every video as one tensor [F, 3, side, side] in a list"
        )
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"modalities hold {min(unknown)!r}; known: {', '.join(map(repr, KINDS))}")
    if "video" in kinds:
        if not config.takes_videos:
            raise ValueError(
                f"modalities hold 'video', but a model of type {config.model_type!r} takes pictures only; "
                "load a LLaVA-Video or LLaVA-OneVision checkpoint, or give frames as pictures"
            )
        check_video_config(config)
    return kinds


def _sizes(sizes: ImageSizes | None, kinds: Sequence[str]) -> list[tuple[int, int] | None]:
    """One size for each item; None for videos, and for pictures where none are given."""
    if sizes is None:
        return [None] * len(kinds)
    pictures = kinds.count("image")
    if len(sizes) not in (len(kinds), pictures):
        raise ValueError(f"{pictures} images but {len(sizes)} image_sizes: give one (width, height) per image")
    in_order = iter(sizes)
    whole = [next(in_order) if len(sizes) == len(kinds) or kind == "image" else None for kind in kinds]
    read = zip(whole, kinds, strict=True)
    return [(int(size[0]), int(size[1])) if size is not None and kind == "image" else None for size, kind in read]


def _project(model: LlavaMetaModel, pixels: Tensor) -> Tensor:
    """[B, 3, side, side] -> [B, N, d]."""
    return model.mm_projector(model.vision_tower(pixels))


def _encode_squares(model: LlavaMetaModel, pixels: Tensor) -> list[ImageTokens]:
    """Pictures of one view each, without newlines, as LLaVA encodes one tensor [B, 3, side, side]."""
    with_class = model.config.mm_vision_select_feature == "cls_patch"
    grid = model.vision_tower.grid(pixels)
    return [single_view(view, with_class, grid) for view in _project(model, pixels)]


def _encode_views(
    model: LlavaMetaModel, items: Sequence[tuple[Tensor, tuple[int, int] | None, str]]
) -> list[ImageTokens]:
    """items: pixel values, size and kind."""
    views = [pixels if pixels.ndim == 4 else pixels[None] for pixels, _, _ in items]
    if any(view.shape[1:] != views[0].shape[1:] or view.ndim != 4 for view in views):
        raise ValueError(
            f"images have shapes {[list(view.shape) for view in views]}; expected [B, 3, side, side], "
            "or [tiles, 3, side, side] for each picture and [frames, 3, side, side] for each video"
        )
    features = _project(model, torch.cat(views)).split([view.shape[0] for view in views])
    return [_tokens(model, own, *item) for own, item in zip(features, items, strict=True)]


def _tokens(
    model: LlavaMetaModel, features: Tensor, pixels: Tensor, size: tuple[int, int] | None, kind: str
) -> ImageTokens:
    """Of one picture or video, from its projected features [views, N, d] and its pixel values."""
    if kind == "video":
        return video_tokens(features, model.config, model.image_newline)
    if pixels.ndim == 3 and model.image_newline is None:
        with_class = model.config.mm_vision_select_feature == "cls_patch"
        return single_view(features[0], with_class, model.vision_tower.grid(pixels))
    return tiled_view(features, size, pixels.shape[-1], model.config, model.image_newline)
