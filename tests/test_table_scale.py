"""The DeepSpeed configuration, and the refusal to start generators under it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import checkpoint
from llava.eval.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]


def test_zero3_is_an_inference_configuration():
    config = json.loads((ROOT / "scripts" / "zero3.json").read_text())
    assert config["zero_optimization"]["stage"] == 3
    assert config["train_micro_batch_size_per_gpu"] == 1, "accelerate needs it where there is no data loader"
    assert "optimizer" not in config and "scheduler" not in config and "auto" not in str(config)


def test_generators_do_not_start_under_deepspeed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UsageError, match="--device-map auto"):
        checkpoint.load_checkpoint(None)
