"""Tiny models with random weights as folders that vLLM loads: Qwen's three, and LLaVA-NeXT.

vLLM's attention on a CPU takes heads of 32 channels and more, so these are wider than the other tests' models.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))

import tiny_qwen  # noqa: E402
import tiny_qwen_checkpoint  # noqa: E402

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next")
WIDTH, HEAD = 128, 32
MARK = "<|image_pad|>"

# (words, pictures' sizes as (width, height) in pixels)
PROMPTS = [
    ("Is there a red star in the", [(64, 48)]),
    ("w3 w8 w1 w40", [(48, 64)]),
    ("You are helpful", [(64, 64)]),
    ("w5 w6", [(64, 32), (40, 56)]),
    ("w7 w7 w9 star", [(56, 56), (64, 48), (32, 32)]),
    ("w1 w2 w3", []),
]


def pictures(number: int) -> list[Image.Image]:
    return [_picture(size, 10 * number + place) for place, size in enumerate(PROMPTS[number][1])]


def _picture(size: tuple[int, int], seed: int) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (height, width, 3), np.uint8))


def prompt(family: str, number: int) -> str:
    words, sizes = PROMPTS[number]
    mark = MARK if family == "llava_next" else f"<|vision_start|>{MARK}<|vision_end|>"
    return f"<|turn|> user {' '.join([mark] * len(sizes))} {words} <|close|> <|turn|> assistant"


def write(folder: Path, family: str) -> Any:
    """Writes a checkpoint, and returns the model."""
    model = _llava_next(folder) if family == "llava_next" else _qwen(folder, family)
    model.generation_config.suppress_tokens = None
    model.generation_config.save_pretrained(folder)
    return model


def _qwen(folder: Path, family: str) -> Any:
    with _wider():
        tiny_qwen_checkpoint.write(folder, family)
        model = tiny_qwen.build(family)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):  # vLLM normalises pictures by these
        normal = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25], "rescale_factor": 1 / 255}
        _update(folder / name, {**normal, "do_normalize": True, "do_rescale": True})
    if family == "qwen3_vl":  # as published; transformers interleaves the axes whatever the file says
        text = json.loads((folder / "config.json").read_text())["text_config"]
        text["rope_parameters"]["mrope_interleaved"] = True
        _update(folder / "config.json", {"text_config": text})
    return model


def _update(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@contextmanager
def _wider() -> Iterator[None]:
    """The other tests' models, as wide as vLLM needs them."""
    text, towers = dict(tiny_qwen._TEXT), [dict(vision) for _, vision, _ in tiny_qwen.FAMILIES.values()]
    rotary = {**text["rope_parameters"], "mrope_section": [4, 6, 6]}
    tiny_qwen._TEXT.update(hidden_size=WIDTH, head_dim=HEAD, rope_parameters=rotary)
    for _, vision, _ in tiny_qwen.FAMILIES.values():
        vision["hidden_size" if "embed_dim" in vision else "out_hidden_size"] = WIDTH
    try:
        yield
    finally:
        tiny_qwen._TEXT.update(text)
        for (_, vision, _), before in zip(tiny_qwen.FAMILIES.values(), towers, strict=True):
            vision.update(before)


def _llava_next(folder: Path) -> Any:
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2, image_size=70, patch_size=14
    )
    text = transformers.LlamaConfig(
        **{
            **tiny_qwen._TEXT,
            "hidden_size": WIDTH,
            "head_dim": HEAD,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        }
    )
    canvases = [[70, 140], [140, 70], [140, 140]]
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tiny_qwen.IMAGE,
        image_grid_pinpoints=canvases,
        tie_word_embeddings=False,
    )
    model = tiny_qwen.prepare(transformers.LlavaNextForConditionalGeneration(config))
    model.save_pretrained(folder)
    _name_as_published(folder / "model.safetensors")
    tiny_qwen_checkpoint._write_tokenizer(folder)
    square = {"height": 70, "width": 70}
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 70}, crop_size=square, image_grid_pinpoints=canvases
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=images,
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token=MARK,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    images.save_pretrained(folder)
    return model


def _name_as_published(path: Path) -> None:
    """transformers has dropped a level of names from CLIP's modules, which published files have and vLLM expects."""
    from safetensors.torch import load_file, save_file

    old, new = re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?"), "vision_tower.vision_model."
    save_file({old.sub(new, name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
