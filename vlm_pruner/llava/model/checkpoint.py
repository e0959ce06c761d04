"""Reads checkpoint folders: finds them, and reads their config.json and their tensors under the names on disk."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]

MOST_LAYERS = 1000
_WEIGHT_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded. The message is one line and names the offending value and the remedy."""


def find_folder(name: str | Path, role: str, remedy: str, weights: bool = True) -> Path:
    """Finds the folder `name`; a name of the form "owner/repository" that is not a folder is looked up on the Hub.

    role: what the folder should contain ("checkpoint", "vision tower"). remedy: what to do if it is missing.
    weights: whether a download includes them.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{role} {name} is a file, not a folder; {remedy}")
    if not _is_hub_name(str(name)):
        raise CheckpointError(f"{role} folder {name} does not exist; {remedy}")
    return _download(str(name), role, remedy, weights)


def read_json(path: Path, role: str) -> dict[str, Any]:
    """Reads the JSON object in a file. Errors name the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}, so it is not a {role} folder; give the folder that holds it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # the last: nested a thousand deep
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, not an object; download it again")
    return content


def read_config(folder: Path, role: str) -> dict[str, Any]:
    """Reads a folder's config.json. Raises CheckpointError for a number of layers that no model has."""
    config = read_json(folder / "config.json", role)
    _check_layers(config, folder)
    return config


def _check_layers(config: Any, folder: Path) -> None:
    """Raises for a number of layers that no model has, at any depth of a config.json.

    transformers makes list entries and modules for each layer before it reads any weight.
    """
    for name, value in config.items() if isinstance(config, dict) else ():
        counts = name == "depth" or "layers" in name
        if counts and isinstance(value, int | float) and not value <= MOST_LAYERS:
            raise CheckpointError(
                f"{folder}/config.json: {name} is {value}, more than any model has (at most {MOST_LAYERS} here); "
                "download it again"
            )
        _check_layers(value, folder)


def read_weights(folder: Path, role: str) -> Tensors:
    """Reads all tensors of a folder under their names on disk. Safetensors stay memory-mapped until used.

    Raises `CheckpointError` for a folder without weights, a missing shard or a damaged file.
    """
    found = next((folder / name for name in _WEIGHT_NAMES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{role} {folder} holds no weights (looked for {', '.join(_WEIGHT_NAMES)}); download them{_hint(folder)}"
        )
    if found.suffix != ".json":
        return _read_file(found)
    weight_map = read_json(found, role).get("weight_map", {})
    tensors: Tensors = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{role} {folder} lacks the shard {shard} that {found.name} lists; download it again")
        tensors.update(_read_file(folder / shard))
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise CheckpointError(
            f"{found} lists {absent[0]}, which its shard does not hold; download {role} {folder} again"
        )
    return tensors


def read_trained_beside(folder: Path) -> Tensors:
    """Reads tensors that LoRA training trained in full, such as the projector, and stored beside the merged weights.

    The merged files contain their values from before the training, or lack them.
    """
    path = folder / "non_lora_trainables.bin"
    if not path.is_file():
        return {}
    tensors = {name.removeprefix("base_model."): tensor for name, tensor in _read_file(path).items()}
    nested = any(name.startswith("model.model.") for name in tensors)  # peft's wrapper is one more "model."
    return {name.removeprefix("model.") if nested else name: tensor for name, tensor in tensors.items()}


def _read_file(path: Path) -> Tensors:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _read_bin(path)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({first_line(error)}); download it again") from None


def _read_bin(path: Path) -> Tensors:
    """Reads a legacy pickle file with weights-only loading, which cannot run code."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: not a zip file, cannot be memory-mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain weights file ({first_line(error)}); convert it to safetensors where you trust it"
        ) from None
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _is_hub_name(name: str) -> bool:
    """ "owner/repository", unless `owner` is a folder here: then a local folder was meant."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and not Path(parts[0]).is_dir()


def _download(name: str, role: str, remedy: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    small = ["*.json", "*.jinja", "*.model", "*.txt"]
    try:
        if not weights:
            return Path(snapshot_download(name, allow_patterns=small))
        folder = Path(snapshot_download(name, allow_patterns=[*small, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*small, "*.bin"]))
    except Exception as error:  # the client raises many kinds of error: offline, not found, gated, timed out
        reason = first_line(error)
        raise CheckpointError(f"{role} {name} is no folder and not on the Hub ({reason}); {remedy}") from None
    return folder


def _hint(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "; the folder holds a LoRA adapter: merge it into its base model first"
    if (folder / "mm_projector.bin").is_file():
        return "; the folder holds only a projector: merge it with its base model first"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for use inside another message."""
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
