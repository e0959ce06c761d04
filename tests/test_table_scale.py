"""The DeepSpeed configuration, and when answer generators refuse to start with one (scripts/test_zero3.sh: a run)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import divided, model_vqa_loader
from llava.eval.errors import UsageError
from llava.eval.processes import Team

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "scripts" / "zero3.json"


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As under `accelerate launch --use_deepspeed`, with DeepSpeed installed."""
    monkeypatch.setattr(divided, "find_spec", lambda name: name)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(CONFIG))
    return monkeypatch


def test_zero3_is_an_inference_configuration() -> None:
    config = json.loads(CONFIG.read_text())
    assert config["zero_optimization"]["stage"] == 3
    assert config["train_micro_batch_size_per_gpu"] == 1, "accelerate needs it where there is no data loader"
    assert "optimizer" not in config and "scheduler" not in config and "auto" not in str(config)


def test_the_precision_is_the_models(deepspeed: pytest.MonkeyPatch) -> None:
    import torch

    divided.check(Team(0, 2))
    own = json.loads(CONFIG.read_text())
    assert divided.configuration(torch.float32) == own
    assert divided.configuration(torch.bfloat16) == {**own, "bf16": {"enabled": True}}
    assert divided.configuration(torch.float16) == {**own, "fp16": {"enabled": True}}


def test_one_process_divides_nothing(deepspeed: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="this is the only one: accelerate launch --use_deepspeed"):
        divided.check(Team())


def test_deepspeed_is_missing(deepspeed: pytest.MonkeyPatch) -> None:
    deepspeed.setattr(divided, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install deepspeed"):
        divided.check(Team(0, 2))


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"zero_optimization": {"stage": 2}}', "stage 2, which divides no weights"), ("[", "no DeepSpeed config"),
     ("{}", "no DeepSpeed config"), (None, "no DeepSpeed config")],
)  # fmt: skip
def test_another_configuration(deepspeed: pytest.MonkeyPatch, tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    deepspeed.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "config.json"))
    with pytest.raises(UsageError, match=said):
        divided.check(Team(0, 2))
    deepspeed.delenv("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    with pytest.raises(UsageError, match="without a configuration file"):
        divided.check(Team(0, 2))


def test_a_generator_says_so_in_one_line(
    deepspeed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "questions.jsonl").write_text('{"question_id": 1, "image": "a.png", "text": "?"}\n')
    paths = ["--model-path", "x", "--image-folder", str(tmp_path), "--answers-file", str(tmp_path / "answers.jsonl")]
    assert model_vqa_loader.main([*paths, "--question-file", str(tmp_path / "questions.jsonl")]) == 2
    assert "this is the only one" in capsys.readouterr().err
