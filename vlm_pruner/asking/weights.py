"""Loads models in transformers' layout, if configuration and weights belong together.

transformers gives a weight that the files lack a random value, and allocates what config.json asks for before it
compares it with them. Here both end in a CheckpointError, the second before anything is allocated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm_pruner.llava.model.checkpoint import CheckpointError, find_folder, read_config

_OF_WEIGHTS = ("*.safetensors", "*.bin")
_REMEDY = "use the config.json that belongs to these weights, or download the checkpoint again"
# A weight takes a byte or more, or half a byte in a quantised checkpoint; twice that is allowed.
_MOST_PER_BYTE, _MOST_PER_BYTE_QUANTISED = 2, 4


def load_model(checkpoint: str | Path, **options: Any) -> nn.Module:
    """The model of a checkpoint folder or Hub name, in evaluation mode, with every weight from its files.

    options: for `from_pretrained` (dtype, device_map, attn_implementation).
    """
    folder = find_folder(checkpoint, "checkpoint", "check the path, or download the checkpoint first")
    check_size(folder)
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=False, output_loading_info=True, **options
    )
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more weights" if len(missing) > 1 else ""
        raise CheckpointError(
            f"checkpoint {checkpoint} lacks {missing[0]}{more}, which config.json asks for; {_REMEDY}"
        )
    model.config.name_or_path = str(checkpoint)
    return model.eval()


def check_size(folder: Path) -> None:
    """Raises CheckpointError for a config.json whose model is far larger than the folder's weight files."""
    raw = read_config(folder, "checkpoint")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    asked = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    stored = sum(path.stat().st_size for pattern in _OF_WEIGHTS for path in folder.glob(pattern))
    most = stored * (_MOST_PER_BYTE_QUANTISED if "quantization_config" in raw else _MOST_PER_BYTE)
    if asked > most:
        raise CheckpointError(
            f"{folder}/config.json describes a model of {asked:,} parameters, and its weight files have {stored:,} "
            f"bytes, too few for them; {_REMEDY}"
        )
