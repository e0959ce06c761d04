"""Every supported family, small enough to build in code, and prompts that fit them all.

`FAMILIES` is the one list: a family that is added to it is put through every shared test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from llava.model.image_tokens import count_tiled
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM
from tests import tiny_qwen
from tests.tiny_qwen import IMAGE, PAD, VIDEO, prepare, text

_BREAK, _START, _END = 94, 92, 93
_PATCH = 14
# Qwen's tiny decoder, without the three axes of its positions.
_TEXT = {key: value for key, value in tiny_qwen._TEXT.items() if key != "rope_parameters"}
_TEXT["max_position_embeddings"] = 1024
_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class Picture:
    """shape: 0, 1 or 2: a small, a wide and a tall picture in families whose pictures vary in size."""

    shape: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Film:
    """Three frames."""

    seed: int = 0


Part = int | Picture | Film
Prompt = list[Part]

ONE: Prompt = [*text(4, 1), Picture(1, 1), *text(5, 2)]
TWO: Prompt = [*text(1, 3), Picture(0, 2), *text(3, 4), Picture(2, 3), *text(2, 5)]
FILM: Prompt = [*text(2, 6), Film(4), *text(4, 7)]
MIXED: Prompt = [*text(1, 8), Film(5), *text(3, 9), Picture(0, 6), *text(2, 10)]
WORDS: Prompt = [*text(9, 11)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


class Family:
    """One family: how it is built, and what its processor makes of a prompt.

    prefix: of its classes in transformers. videos: whether it takes them. frames: spans of a film.
    tower: the vision tower's name in the model. fixed: whether all its pictures have the same number of tokens.
    """

    prefix: str
    videos = False
    frames = 1
    fixed = False
    tower = "vision_tower"

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def prompts(self) -> dict[str, Prompt]:
        return {"one": ONE, "two": TWO} | ({"film": FILM, "mixed": MIXED} if self.videos else {})

    def config(self) -> Any:
        raise NotImplementedError

    def kind(self) -> Any:
        """Its class with the language head."""
        return getattr(transformers, f"{self.prefix}ForConditionalGeneration")

    def decoder(self, model: Any) -> Any:
        """The language model inside `model`."""
        return model.model.language_model

    def build(self, attn_implementation: str = "sdpa") -> Any:
        config = self.config()
        config._attn_implementation = attn_implementation
        return prepare(self.kind()(config))

    @cached_property
    def model(self) -> Any:
        return self.build()

    @cached_property
    def eager(self) -> Any:
        return self.build("eager")

    def tokens(self, part: Picture | Film, prompt: Prompt) -> list[int]:
        """What stands in the prompt for a picture or video."""
        raise NotImplementedError

    def visuals(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        """Arguments of the model about the pictures and videos of a batch."""
        raise NotImplementedError

    def positions(self, model: Any, whole: dict[str, Tensor], start: int) -> dict[str, Tensor]:
        """Arguments about positions for a call with the tokens of `whole` from `start` on."""
        return {}

    def seen(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a batch, what is about its pictures and videos."""
        return {name: value for name, value in batch.items() if name not in _TOKENS}

    def dialogue(self, *turns: Prompt) -> dict[str, Tensor]:
        """One row, of turns that follow each other."""
        batch = self.inputs(*turns)
        ids = batch["input_ids"][batch["attention_mask"].bool()][None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.seen(batch)}

    def inputs(self, *prompts: Prompt) -> dict[str, Tensor]:
        """A batch as the family's processor makes it, padded on the left."""
        rows = [
            [id for part in prompt for id in ([part] if isinstance(part, int) else self.tokens(part, prompt))]
            for prompt in prompts
        ]
        longest = max(map(len, rows))
        return {
            "input_ids": torch.tensor([[PAD] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
            **self.visuals(list(prompts)),
        }


def pictures(prompts: list[Prompt]) -> list[Picture]:
    return [part for prompt in prompts for part in prompt if isinstance(part, Picture)]


def films(prompts: list[Prompt]) -> list[Film]:
    return [part for prompt in prompts for part in prompt if isinstance(part, Film)]


class llava(Family):
    prefix, fixed = "Llava", True

    def config(self) -> Any:
        vision = transformers.CLIPVisionConfig(**_TOWER, image_size=5 * _PATCH, patch_size=_PATCH)
        return transformers.LlavaConfig(
            vision_config=vision, text_config=transformers.LlamaConfig(**_TEXT), image_token_id=IMAGE
        )

    def tokens(self, part: Picture | Film, prompt: Prompt) -> list[int]:
        return [IMAGE] * 25

    def visuals(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        views = [random(3, 5 * _PATCH, 5 * _PATCH, seed=one.seed) for one in pictures(prompts)]
        return {"pixel_values": torch.stack(views)} if views else {}


class _Own:
    """A family's model in this repository's own class, called by transformers' convention."""

    def decoder(self, model: Any) -> Any:
        return model.model


class llava_original(_Own, llava):
    """LLaVA-1.5."""

    def kind(self) -> Any:
        return LlavaLlamaForCausalLM

    def config(self) -> Any:
        vision = {**_TOWER, "model_type": "clip_vision_model", "image_size": 5 * _PATCH, "patch_size": _PATCH}
        return LlavaConfig(
            **_TEXT,
            mm_vision_config=vision,
            mm_hidden_size=_TOWER["hidden_size"],
            mm_projector_type="mlp2x_gelu",
            image_token_index=IMAGE,
            tie_word_embeddings=False,
        )


class llava_next(Family):
    """Tiles of 5 x 5 tokens. How many tokens a picture takes is asked of transformers' own packing."""

    prefix = "LlavaNext"
    side = 5
    sizes = ((60, 66), (64, 140), (190, 101))  # (height, width) in pixels
    canvases = ([70, 140], [140, 70], [140, 140])

    def vision_config(self) -> Any:
        return transformers.CLIPVisionConfig(**_TOWER, image_size=self.side * _PATCH, patch_size=_PATCH)

    def text_config(self) -> Any:
        return transformers.LlamaConfig(**_TEXT)

    def config(self, **more: Any) -> Any:
        return getattr(transformers, f"{self.prefix}Config")(
            vision_config=self.vision_config(),
            text_config=self.text_config(),
            image_token_index=IMAGE,
            image_grid_pinpoints=list(self.canvases),
            tie_word_embeddings=False,
            **more,
        )

    def tokens(self, part: Picture | Film, prompt: Prompt) -> list[int]:
        if isinstance(part, Film):
            return [VIDEO] * self.film_tokens()
        return [IMAGE] * self._picture_tokens(part.shape, len(pictures([prompt])))

    def film_tokens(self) -> int:
        return 3 * (self.side // 2) ** 2

    @cache  # noqa: B019 (families live as long as the tests)
    def _picture_tokens(self, shape: int, beside: int) -> int:
        arguments = {
            name: value
            for name, value in self.visuals([[Picture(shape)] * beside]).items()
            if name in ("pixel_values", "image_sizes", "batch_num_images")
        }
        with torch.no_grad():
            return len(self.model.get_image_features(**arguments, return_dict=True).pooler_output[0])

    def visuals(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        pixels = self.side * _PATCH
        found = {}
        shown = pictures(prompts)
        if shown:
            # Of the first shape two tiles are used, of the others up to four: behind them is padding.
            found["pixel_values"] = torch.stack([random(5, 3, pixels, pixels, seed=one.seed) for one in shown])
            found["image_sizes"] = torch.tensor([self.sizes[one.shape] for one in shown])
        if films(prompts):
            clips = [random(3, 3, pixels, pixels, seed=one.seed) for one in films(prompts)]
            found["pixel_values_videos"] = torch.stack(clips)
        return found


class llava_next_video(llava_next):
    prefix, videos = "LlavaNextVideo", True

    def config(self, **more: Any) -> Any:
        return super().config(video_token_index=VIDEO, **more)


class llava_onevision(llava_next):
    """A limit of two tiles, so that the tall picture's grid is shrunk."""

    prefix, videos = "LlavaOnevision", True

    def vision_config(self) -> Any:
        return transformers.SiglipVisionConfig(**_TOWER, image_size=self.side * _PATCH, patch_size=_PATCH)

    def text_config(self) -> Any:
        return transformers.Qwen2Config(**_TEXT)

    def config(self, **more: Any) -> Any:
        return super().config(video_token_index=VIDEO, vision_aspect_ratio="anyres_max_2", **more)

    def film_tokens(self) -> int:
        return 3 * 9 + 1

    def visuals(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        found = super().visuals(prompts)
        if "pixel_values" in found:
            counts = [len(pictures([prompt])) for prompt in prompts]
            found["batch_num_images"] = torch.tensor([count for count in counts if count])
        return found


class llava_qwen(_Own, llava_onevision):
    """LLaVA-Video: a newline after every row."""

    def kind(self) -> Any:
        return LlavaQwenForCausalLM

    def config(self, **more: Any) -> Any:
        vision = {**_TOWER, "num_hidden_layers": 3, "model_type": "siglip_vision_model"}
        return LlavaQwenConfig(
            **_TEXT,
            mm_vision_config={**vision, "image_size": self.side * _PATCH, "patch_size": _PATCH},
            mm_hidden_size=_TOWER["hidden_size"],
            mm_projector_type="mlp2x_gelu",
            mm_patch_merge_type="spatial_unpad",
            mm_newline_position="grid",
            image_aspect_ratio="anyres_max_2",
            image_grid_pinpoints=[[width, height] for height, width in self.canvases],
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            tie_word_embeddings=False,
        )

    def film_tokens(self) -> int:
        return 3 * 3 * (3 + 1)

    def _picture_tokens(self, shape: int, beside: int) -> int:
        height, width = self.sizes[shape]
        return count_tiled((width, height), self.side, self.side * _PATCH, self.model.config)

    def visuals(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        return {name: value for name, value in super().visuals(prompts).items() if name != "batch_num_images"}


class internvl(Family):
    """Tiles of 3 x 3 tokens; pictures of one tile, of two and of four, the thumbnail not counted.

    The frames of a film are pictures of one tile.
    """

    prefix, videos, frames = "InternVL", True, 3
    tiles = (1, 3, 5)

    def config(self) -> Any:
        vision = transformers.InternVLVisionConfig(**_TOWER, image_size=[84, 84], patch_size=[_PATCH, _PATCH])
        text = transformers.Qwen2Config(**_TEXT)
        return transformers.InternVLConfig(
            vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False
        )

    def tokens(self, part: Picture | Film, prompt: Prompt) -> list[int]:
        if isinstance(part, Film):
            return [_START, *[IMAGE] * 9, _END] * 3
        return [_START, *[IMAGE] * (9 * self.tiles[part.shape]), _END]

    def visuals(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        shown = [part for prompt in prompts for part in prompt if not isinstance(part, int)]
        counts = [self.tiles[part.shape] if isinstance(part, Picture) else 3 for part in shown]
        views = [random(count, 3, 84, 84, seed=part.seed) for part, count in zip(shown, counts, strict=True)]
        return {"pixel_values": torch.cat(views)} if views else {}


class mistral3(Family):
    prefix = "Mistral3"
    grids = ((3, 4), (2, 7), (5, 3))  # tokens

    def config(self) -> Any:
        vision = transformers.PixtralVisionConfig(**_TOWER, head_dim=16, image_size=224, patch_size=_PATCH)
        text = transformers.MistralConfig(**_TEXT, sliding_window=None)
        return transformers.Mistral3Config(
            vision_config=vision, text_config=text, image_token_index=IMAGE, tie_word_embeddings=False
        )

    def tokens(self, part: Picture | Film, prompt: Prompt) -> list[int]:
        assert isinstance(part, Picture)
        height, width = self.grids[part.shape]
        rows = [*[IMAGE] * width, _BREAK] * height
        return [*rows[:-1], _END]

    def visuals(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        shown = pictures(prompts)
        if not shown:
            return {}
        sizes = [tuple(2 * _PATCH * side for side in self.grids[one.shape]) for one in shown]
        pixels = torch.zeros(len(shown), 3, *(max(axis) for axis in zip(*sizes, strict=True)))
        for view, (height, width), one in zip(pixels, sizes, shown, strict=True):
            view[:, :height, :width] = random(3, height, width, seed=one.seed)
        return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


class _Qwen(Family):
    videos, tower = True, "visual"
    grids = ((3, 4), (2, 5), (5, 3))

    def build(self, attn_implementation: str = "sdpa") -> Any:
        return tiny_qwen.build(self.name, attn_implementation)

    def inputs(self, *prompts: Prompt) -> dict[str, Tensor]:
        return tiny_qwen.inputs(self.name, *[[self._part(part) for part in prompt] for prompt in prompts])

    def dialogue(self, *turns: Prompt) -> dict[str, Tensor]:
        batch = super().dialogue(*turns)
        ids = batch["input_ids"]
        return {**batch, "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}

    def positions(self, model: Any, whole: dict[str, Tensor], start: int) -> dict[str, Tensor]:
        about = {name: value for name, value in whole.items() if name in _TOKENS or name.endswith("grid_thw")}
        positions = model.model.get_rope_index(**about)[0]
        return {
            "position_ids": positions[..., start:],
            "mm_token_type_ids": whole["mm_token_type_ids"][:, start:],
        }

    def _part(self, part: Part) -> int | tiny_qwen.Visual:
        if isinstance(part, Picture):
            return tiny_qwen.image(*self.grids[part.shape], part.seed)
        return tiny_qwen.video(3, 3, 3, part.seed) if isinstance(part, Film) else part


class qwen2_vl(_Qwen): ...


class qwen2_5_vl(_Qwen): ...


class qwen3_vl(_Qwen): ...


class qwen3_vl_moe(_Qwen): ...


FAMILIES = [
    llava(),
    llava_original(),
    llava_next(),
    llava_next_video(),
    llava_onevision(),
    llava_qwen(),
    internvl(),
    mistral3(),
    qwen2_vl(),
    qwen2_5_vl(),
    qwen3_vl(),
    qwen3_vl_moe(),
]
