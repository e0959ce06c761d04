"""LLaVA on top of a language model: pictures, videos and text in, logits or new tokens out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.decoder.cache_names import with_cache
from vlm_pruner.decoder.refusals import counting_positions
from vlm_pruner.geometry.layout import VisualSpan
from vlm_pruner.llava.constants import IMAGE_TOKEN_INDEX
from vlm_pruner.llava.model.llava_arch import Images, ImageSizes, LlavaMetaModel, Modalities, encode_images
from vlm_pruner.llava.model.llava_config import AnyLlavaConfig
from vlm_pruner.llava.model.multimodal_encoder.builder import VisionTower
from vlm_pruner.llava.model.multimodal_prompt import PIXELS, expanded_prompt_spans, prepare_prompt, repeat_pictures

# The prompt's pictures: the first forward call of a generation needs them, later ones must not get them.
_PREFILL_ONLY = ("images", "image_sizes", "modalities", "visual_spans", *PIXELS)


class LlavaMetaForCausalLM(nn.Module):
    """Precedes a transformers ...ForCausalLM in a class's bases; the model in `model` is a `LlavaMetaModel`.

    Pictures and videos can be passed in two ways, to `forward` and `generate` alike:

    - LLaVA's: one id -200 for each in `input_ids`, and `images`; for AnyRes also `image_sizes` as (width, height), and
      with videos `modalities`; see `encode_images`. `generate` returns the new tokens only.
    - transformers': one placeholder id per visual token in `input_ids`, `pixel_values` and `pixel_values_videos`
      [n, F, 3, side, side], and for AnyRes `image_sizes` as (height, width). `generate` returns prompt and new tokens.
    """

    def build(self, config: AnyLlavaConfig, model: LlavaMetaModel) -> None:
        """For constructors, which skip the ...ForCausalLM's own: that would build a second, plain decoder."""
        self.model = model
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaMetaModel:
        return self.model

    def get_vision_tower(self) -> VisionTower:
        return self.model.vision_tower

    def encode_images(
        self, images: Images, image_sizes: ImageSizes | None = None, modalities: Modalities | None = None
    ) -> list[Tensor]:
        """Each picture's or video's embeddings, [N, d], in the order of the sequence."""
        return [item.features for item in encode_images(self.model, images, image_sizes, modalities)]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        images: Images | None = None,
        image_sizes: ImageSizes | Tensor | None = None,
        modalities: Modalities | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        visual_spans: list[list[VisualSpan]] | None = None,
        past_key_values: Any = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """The language model's `forward`, with pictures; logits are [B, T, vocabulary] over the spliced sequence.

        cache: the key-value cache, which may also be called `past_key_values`, whichever transformers is installed.
        logits_to_keep: compute logits for only this many last positions. Named because `generate` reads the signature
        and, if it can, asks for the last position alone: a whole prompt's logits take 2 % of a 7B's prefill, and 40 MB.
        """
        kwargs["logits_to_keep"] = logits_to_keep
        by_position = counting_positions(kwargs)
        pixels = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos}
        given = any(value is not None for value in pixels.values())
        if input_ids is None and given:
            raise ValueError(
                "pixel_values are given with inputs_embeds, which do not show where pictures go; pass input_ids with "
                "one placeholder per visual token"
            )
        if input_ids is not None and given:
            _refuse_both(images, given)
            inputs_embeds, visual_spans = expanded_prompt_spans(self.model, input_ids, image_sizes, **pixels)
            input_ids = None
        elif input_ids is not None and (images is not None or _has_image_ids(input_ids)):
            _refuse_labels(kwargs)
            side = self.config.tokenizer_padding_side
            prompt = prepare_prompt(
                self.model, input_ids, attention_mask, images, image_sizes, modalities, padding_side=side
            )
            input_ids, inputs_embeds, visual_spans = None, prompt.inputs_embeds, prompt.visual_spans
            attention_mask, position_ids = prompt.attention_mask, prompt.position_ids
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            visual_spans=visual_spans,
            by_position=by_position,
            **with_cache(kwargs, past_key_values if cache is None else cache),
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Images | None = None,
        image_sizes: ImageSizes | Tensor | None = None,
        modalities: Modalities | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generates after `inputs` (or `input_ids`) [B, T]; see the class for the two conventions.

        Raises `ValueError` if the numbers of pictures and placeholders differ.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        given = any(kwargs.get(name) is not None for name in PIXELS)
        _refuse_both(images, given)
        if input_ids is None or given:
            if image_sizes is not None:
                kwargs["image_sizes"] = image_sizes
            return super().generate(input_ids, **kwargs)
        _refuse_without_cache(kwargs)
        prompt = prepare_prompt(
            # Left, whatever the configuration says, because new tokens are appended on the right.
            self.model,
            input_ids,
            kwargs.pop("attention_mask", None),
            images,
            image_sizes,
            modalities,
            padding_side="left",
        )
        return super().generate(
            inputs_embeds=prompt.inputs_embeds,
            attention_mask=prompt.attention_mask,
            visual_spans=prompt.visual_spans,
            **kwargs,
        )

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        visual_spans: list[list[VisualSpan]] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Beams repeat every row of the batch. transformers repeats tensors; this repeats pictures with their rows."""
        pictures = {}
        if expand_size > 1 and input_ids is not None:
            given = {name: kwargs.pop(name) for name in ("image_sizes", *PIXELS) if kwargs.get(name) is not None}
            pictures = repeat_pictures(self.model, input_ids, expand_size, **given) if given else {}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        if visual_spans is not None:
            kwargs["visual_spans"] = [row for row in visual_spans for _ in range(expand_size)]
        return input_ids, {**kwargs, **pictures}

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        # Named because transformers reads the signature to find out whether a model can start from embeddings.
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs = {name: value for name, value in kwargs.items() if name not in _PREFILL_ONLY}
        return super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )


def _has_image_ids(input_ids: Tensor) -> bool:
    # Reading the ids waits for the device, which a one-token decoding step must not do.
    return input_ids.shape[1] > 1 and bool((input_ids == IMAGE_TOKEN_INDEX).any())


def _refuse_both(images: Images | None, pixels_given: bool) -> None:
    if images is not None and pixels_given:
        raise ValueError(
            "both images and pixel_values are given; pass one: images goes with ids -200 (LLaVA's convention), "
            "pixel_values with one placeholder per visual token (transformers')"
        )


def _refuse_without_cache(kwargs: dict[str, Any]) -> None:
    if kwargs.get("use_cache") is False:
        raise ValueError(
            "use_cache=False: without a cache every step needs the pictures again, which LLaVA's convention gives to "
            "the first alone; leave the cache on, or give pictures in transformers' convention (pixel_values)"
        )


def _refuse_labels(kwargs: dict[str, Any]) -> None:
    if kwargs.get("labels") is not None:
        raise ValueError("labels with images= are not supported yet; train in transformers' convention (pixel_values)")
