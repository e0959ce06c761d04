"""The SigLIP vision tower, which turns pictures into its last layer's features, and its fixed image processing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, SiglipVisionConfig, SiglipVisionModel

from vlm_pruner.llava.model.multimodal_encoder.tower import Tower

# The original code's defaults, from google/siglip-so400m-patch14-384; a tower's config.json overrides each.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}

_MEAN = _STD = 0.5


class SiglipImageProcessor:
    """Scales pictures to the tower's square, whatever their shape, and their values to [-1, 1].

    LLaVA's code fixes this processing; a checkpoint's preprocessor_config.json is ignored.
    """

    def __init__(self, side: int) -> None:
        self.size = self.crop_size = {"height": side, "width": side}
        self.image_mean = self.image_std = (_MEAN, _MEAN, _MEAN)
        self.resample = Image.Resampling.BICUBIC

    def preprocess(self, images: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """`pixel_values`, float32 [n, 3, side, side], of one picture, or of a list or array of them.

        Pictures are Pillow's, or 8-bit arrays [height, width, 3]; a video's frames may be one array [F, .., .., 3].
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is supported")
        single = isinstance(images, Image.Image) or (hasattr(images, "ndim") and images.ndim == 3)
        pictures = [images] if single else list(images)
        return BatchFeature({"pixel_values": torch.stack([self._pixels(picture) for picture in pictures])})

    __call__ = preprocess

    def _pixels(self, picture: Image.Image | np.ndarray | Tensor) -> Tensor:
        scaled = _picture(picture).resize((self.size["width"], self.size["height"]), self.resample)
        values = (np.asarray(scaled).astype(np.float64) / 255).astype(np.float32)
        return torch.from_numpy((values - np.float32(_MEAN)) / np.float32(_STD)).permute(2, 0, 1)


def _picture(picture: Image.Image | np.ndarray | Tensor) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"a picture is an array of {array.dtype} {list(array.shape)}; expected uint8 [height, width, 3]"
        )
    return Image.fromarray(array)


class SiglipVisionTower(Tower):
    """A SigLIP vision model without its last layer; features come from before the final LayerNorm.

    LLaVA trains on it that way, regardless of mm_vision_select_layer and mm_vision_select_feature.
    """

    def __init__(self, vision_config: dict[str, Any]) -> None:
        super().__init__()
        whole = {**DEFAULTS, **vision_config}
        layers = whole["num_hidden_layers"] - 1
        self.config = SiglipVisionConfig(**{**whole, "num_hidden_layers": layers, "vision_use_head": False})
        self.vision_tower = SiglipVisionModel(self.config)
        self.image_processor = SiglipImageProcessor(self.config.image_size)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Pixel values [B, 3, side, side] -> features [B, N, d]; no gradient: the tower is never trained here."""
        tower = getattr(self.vision_tower, "vision_model", self.vision_tower)  # a level that newer versions removed
        embeddings = tower.embeddings(images.to(self.device, self.dtype), interpolate_pos_encoding=self.interpolates)
        return tower.encoder(inputs_embeds=embeddings).last_hidden_state
