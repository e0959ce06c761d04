"""Opens the checkpoint of an experiment.

Models of LLaVA's original layout that make one grid of every picture share pictures and layers among arms; all others
are asked as `vlm-pruner ask` asks them.
"""

from __future__ import annotations

from pathlib import Path

from vlm_pruner.asking.opening import is_original
from vlm_pruner.experiments.answerer import Answerer
from vlm_pruner.experiments.chat_answerer import ChatAnswerer
from vlm_pruner.experiments.llava_answerer import LlavaAnswerer
from vlm_pruner.llava.model.checkpoint import read_json


def load(checkpoint: Path, device: str) -> Answerer:
    """Raises ValueError for everything that is wrong with the files."""
    config = read_json(checkpoint / "config.json", "checkpoint")
    tiled = str(config.get("image_aspect_ratio", "")).startswith("anyres")
    videos = "LlavaQwenForCausalLM" in (config.get("architectures") or ())
    if "model_type" in config and (tiled or videos or not is_original(config)):
        return ChatAnswerer.load(checkpoint, device)
    return LlavaAnswerer.load(checkpoint, device)
