"""Opens the checkpoint of an experiment: LLaVA's original layout the fast way, any other as `vlm-pruner ask` does."""

from __future__ import annotations

from pathlib import Path

from vlm_pruner.asking.opening import is_original
from vlm_pruner.experiments.chat_answerer import ChatAnswerer
from vlm_pruner.experiments.llava_answerer import LlavaAnswerer
from vlm_pruner.llava.model.checkpoint import read_json


def load(checkpoint: Path, device: str) -> LlavaAnswerer:
    """Raises ValueError for everything that is wrong with the files."""
    config = read_json(checkpoint / "config.json", "checkpoint")
    if "model_type" in config and not is_original(config):
        return ChatAnswerer.load(checkpoint, device)
    return LlavaAnswerer.load(checkpoint, device)
