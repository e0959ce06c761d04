"""Write a trained model as a LLaVA checkpoint in the original layout: `python -m playground.mini.export RUN`.

`checkpoint/` holds config, decoder, projector and tokenizer; `clip/` the tower that `mm_vision_tower` names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from playground.mini import tokenizer
from playground.mini.model import MiniModel
from playground.mini.world import GRID, PATCH

HERE = Path(__file__).parent
TOWER = "vision_model."


def export(model: MiniModel, folder: Path) -> None:
    """Write `folder/checkpoint` and `folder/clip`, weights in float16."""
    export_decoder(model, folder / "checkpoint")
    export_tower(model, folder / "clip")


def export_tower(model: MiniModel, clip: Path) -> None:
    """Write the tower into `clip`."""
    clip.mkdir(parents=True, exist_ok=True)
    _weights(tower_tensors(model), clip)
    settings = model.tower.config.to_diff_dict()
    _json(clip / "config.json", {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", **settings})
    _json(clip / "preprocessor_config.json", preprocessing())


def export_decoder(model: MiniModel, folder: Path, tower: str = "../clip") -> None:
    """Write decoder, projector and tokenizer into `folder`; `tower`: where the tower lies, seen from there."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    _weights(decoder_tensors(model), folder)
    _json(folder / "config.json", decoder_settings(model) | {"mm_vision_tower": tower})
    _json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})


def decoder_tensors(model: MiniModel) -> dict[str, Tensor]:
    """Decoder and projector under the original layout's names."""
    tensors = dict(model.decoder.state_dict())
    return tensors | {f"model.mm_projector.{name}": t for name, t in model.projector.state_dict().items()}


def tower_tensors(model: MiniModel) -> dict[str, Tensor]:
    """The tower under the published CLIP names, which transformers versions spell with and without a prefix."""
    return {TOWER + name.removeprefix(TOWER): tensor for name, tensor in model.tower.state_dict().items()}


def decoder_settings(model: MiniModel) -> dict[str, object]:
    config = model.decoder.config
    names = "bos_token_id eos_token_id pad_token_id hidden_act hidden_size intermediate_size max_position_embeddings"
    names += " num_attention_heads num_hidden_layers num_key_value_heads head_dim rms_norm_eps vocab_size"
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        **{name: getattr(config, name) for name in names.split()},
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": model.tower.config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -1,
        "tokenizer_padding_side": "left",
        "tokenizer_model_max_length": 2048,
        "use_cache": True,
    }


def preprocessing() -> dict[str, object]:
    """CLIP's own, for 336-pixel pictures."""
    side = GRID * PATCH
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    }


def load(run: Path) -> MiniModel:
    """The model of a run of `playground.mini.train`, or of the first recipe."""
    from playground.mini import first_recipe, train  # which write checkpoints themselves

    state = torch.load(run / "state.pt", weights_only=True, map_location="cpu")
    return train.load(run) if "mean" in state else first_recipe.load(run)


def _weights(tensors: dict[str, Tensor], folder: Path) -> None:
    floats = {name: t.detach().cpu() for name, t in tensors.items() if t.is_floating_point()}
    half = {name: t.to(torch.float16).contiguous() for name, t in floats.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})


def _json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a training run (its state.pt is read)")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="where checkpoint/ and clip/ go (default: beside this file)"
    )
    args = parser.parse_args(argv)
    export(load(args.run), args.out)
    size = sum(p.stat().st_size for name in ("checkpoint", "clip") for p in (args.out / name).iterdir())
    print(f"{args.run}: {args.out}/checkpoint and clip, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
