"""LLaVA's decoder: Llama with pruning, and the tower and projector that turn pictures into its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llava.model.image_tokens import ImageTokens, single_view, tiled_view
from llava.model.language_model.modeling_llama_self import VLMPruner
from llava.model.llava_config import PATCH_MERGE_TYPES, LlavaConfig
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from vlm_pruner.adapters.base import grid_fit
from vlm_pruner.adapters.llava_next import anyres_fit
from vlm_pruner.geometry.anyres import parse_pinpoints
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.base import Pruner

ImageSizes = Sequence[tuple[int, int]]


class LlavaLlamaModel(VLMPruner):
    """The decoder with tower and projector as children, under the names of the original checkpoints."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
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
        """Raises PruningError if `method` keeps more tokens than any picture has, where all have the same number."""
        tiled = (self.config.image_aspect_ratio or "").startswith("anyres")
        if self.vision_tower is not None and not tiled:
            method.budget(self.vision_tower.num_patches)

    def fit(self, layout: TokenLayout) -> Fit | None:
        """How the evaluation's image processing lays a picture on a grid with tokens at `layout`; None if not known."""
        side, config = self.vision_tower.num_patches_per_side, self.config
        pixels = side * self.vision_tower.config.patch_size
        if len(layout) == side**2:
            return grid_fit(layout, "pad" if config.image_aspect_ratio == "pad" else "crop", pixels)
        if config.image_aspect_ratio != "anyres" or config.mm_patch_merge_type != "spatial_unpad":
            return None
        return anyres_fit(layout, side, pixels, tuple(parse_pinpoints(config.image_grid_pinpoints)))

    def get_vision_tower(self) -> CLIPVisionTower:
        return self.vision_tower


def encode_images(
    model: LlavaLlamaModel, images: Tensor | Sequence[Tensor], image_sizes: ImageSizes | None = None
) -> list[ImageTokens]:
    """Tokens of each picture.

    `images` is [B, 3, side, side], or for AnyRes [B, tiles, 3, side, side] or a list of [tiles, 3, side, side].
    `image_sizes` are the original (width, height) in pixels; only AnyRes needs them.
    """
    if isinstance(images, Tensor):
        return _encode_distinct(model, images, image_sizes)
    # One batch often asks several questions about a picture: the same tensor several times is encoded once.
    first: dict[int, int] = {}
    places = [first.setdefault(id(image), len(first)) for image in images]
    distinct = [places.index(place) for place in range(len(first))]
    sizes = _of(image_sizes, distinct, len(places))
    encoded = _encode_distinct(model, _stack([images[i] for i in distinct]), sizes)
    return [encoded[place] for place in places]


def _of(sizes: ImageSizes | None, distinct: Sequence[int], images: int) -> ImageSizes | None:
    if sizes is None:
        return None
    if len(sizes) != images:
        raise ValueError(f"{images} images but {len(sizes)} image_sizes: give one (width, height) per image")
    return [sizes[i] for i in distinct]


def _stack(images: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """Single views of one shape as one tensor [B, 3, side, side]; anything else as it is."""
    single = all(image.ndim == 3 and image.shape == images[0].shape for image in images)
    return torch.stack(list(images)) if images and single else images


def _encode_distinct(
    model: LlavaLlamaModel, images: Tensor | Sequence[Tensor], image_sizes: ImageSizes | None
) -> list[ImageTokens]:
    if isinstance(images, Tensor) and images.ndim == 4:
        features = model.mm_projector(model.vision_tower(images))
        with_class = model.config.mm_vision_select_feature == "cls_patch"
        return [single_view(view, with_class) for view in features]
    views = [image if image.ndim == 4 else image[None] for image in images]
    if any(view.shape[1:] != views[0].shape[1:] or view.ndim != 4 for view in views):
        raise ValueError(
            f"images have shapes {[list(view.shape) for view in views]}; expected [B, 3, side, side], "
            "or [tiles, 3, side, side] for each picture"
        )
    if image_sizes is not None and len(image_sizes) != len(views):
        raise ValueError(f"{len(views)} images but {len(image_sizes)} image_sizes: give one (width, height) per image")
    features = model.mm_projector(model.vision_tower(torch.cat(views)))
    per_image = features.split([view.shape[0] for view in views])
    side = views[0].shape[-1]
    sizes: list[tuple[int, int] | None] = [None] * len(views)
    if image_sizes is not None:
        sizes = [(int(width), int(height)) for width, height in image_sizes]
    return [
        tiled_view(part, size, side, model.config, model.image_newline)
        for part, size in zip(per_image, sizes, strict=True)
    ]
