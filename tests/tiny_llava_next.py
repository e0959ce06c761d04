"""A LLaVA-NeXT of transformers' classes, small enough to build in code: tiles of 6 x 6 tokens, 4 decoder layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from tests import llava_tiny

IMAGE, SIDE, TILE = 63, 6, 84
CANVASES = [[84, 168], [168, 84], [168, 168], [252, 84], [84, 252]]  # (height, width), as transformers writes them
SIZES = [(300, 100), (90, 90), (100, 290), (120, 97), (33, 50)]  # pictures, (width, height)
EXTREME = [(900, 10), (10, 900)]  # less than one token high or wide


def tiny_llava_next(seed: int = 0) -> LlavaNextForConditionalGeneration:
    text = {key: value for key, value in llava_tiny.CONFIG.items() if not key.startswith(("mm_", "image_", "token"))}
    text = {**text, "initializer_range": 0.25}
    del text["architectures"], text["model_type"], text["torch_dtype"]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**{**llava_tiny.VISION, "initializer_range": 0.25}),
        text_config=LlamaConfig(**text),
        image_token_index=IMAGE,
        image_grid_pinpoints=CANVASES,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.image_newline)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model


def tiles(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Pixel values of one picture, [1 + tiles, 3, 84, 84]."""
    from vlm_pruner.geometry.anyres import get_anyres_image_grid_shape

    across, down = get_anyres_image_grid_shape(size, [[w, h] for h, w in CANVASES], TILE)
    return torch.randn(1 + across * down, 3, TILE, TILE, generator=torch.Generator().manual_seed(seed))


def packed(model: LlavaNextForConditionalGeneration, size: tuple[int, int], seed: int = 0) -> Tensor:
    """The picture's features as transformers packs them, [N, d]."""
    with torch.no_grad():
        output = model.get_image_features(tiles(size, seed)[None], torch.tensor([size[::-1]]), return_dict=True)
    return output.pooler_output[0]


def inputs(model: LlavaNextForConditionalGeneration, *pictures: tuple[int, int]) -> dict[str, Tensor]:
    """transformers' call about one picture per row; row i asks with text of its own. Padded on the left."""
    rows = []
    for index, size in enumerate(pictures):
        ids = llava_tiny.prompt_ids(index)[0].tolist()
        place = ids.index(-200)
        rows.append([*ids[:place], *[IMAGE] * len(packed(model, size, index)), *ids[place + 1 :]])
    longest = max(map(len, rows))
    pixels = [tiles(size, index) for index, size in enumerate(pictures)]
    most = max(map(len, pixels))
    padded = [torch.cat([view, view.new_zeros(most - len(view), 3, TILE, TILE)]) for view in pixels]
    return {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": torch.stack(padded),
        "image_sizes": torch.tensor([size[::-1] for size in pictures]),
    }


def original_config(**changes: Any) -> dict[str, Any]:
    """config.json of LLaVA-1.6 in the original layout; the embedding of a placeholder is part of its vocabulary."""
    return {
        **llava_tiny.CONFIG,
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[width, height] for height, width in CANVASES],
        "tokenizer_model_max_length": 4096,
        **changes,
    }


def write_original(model: LlavaNextForConditionalGeneration, folder: Path) -> Path:
    """`model` in the original layout in `folder`/llava, with its tower in `folder`/clip; returns the former."""
    own, tower = {}, {}
    for name, tensor in model.state_dict().items():
        if "vision_tower" in name:
            tower["vision_model." + name.split("vision_tower.")[1].removeprefix("vision_model.")] = tensor.contiguous()
            continue
        name = name.replace("model.language_model.", "model.")
        for number, layer in ((1, 0), (2, 2)):
            name = name.replace(f"multi_modal_projector.linear_{number}.", f"mm_projector.{layer}.")
        own[name] = tensor.contiguous()
    llava_tiny.write_json(folder / "llava" / "config.json", original_config())
    save_file(own, folder / "llava" / "model.safetensors")
    llava_tiny.write_json(folder / "clip" / "config.json", llava_tiny.VISION)
    llava_tiny.write_json(folder / "clip" / "preprocessor_config.json", llava_tiny.PREPROCESSOR)
    save_file(tower, folder / "clip" / "model.safetensors")
    return folder / "llava"


def write_transformers(model: LlavaNextForConditionalGeneration, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder
