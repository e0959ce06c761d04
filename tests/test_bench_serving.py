"""benchmarks/serving.py without vLLM: what it would serve, and what its table says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "serving.py"


@pytest.fixture(scope="module")
def serving():
    spec = importlib.util.spec_from_file_location("benchmark_of_serving", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(("name", "millions"), [("tiny", None), ("llava-1.5-7b", 7063), ("llava-1.5-13b", 13351)])
def test_random_weights_have_the_published_shapes(serving, name, millions, tmp_path):
    folder = serving.random_weights(name, tmp_path / name)
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert not list(folder.glob("*.safetensors*"))  # engines make them up: --load-format dummy
    assert config.image_token_index == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert len(processor.tokenizer) <= config.text_config.vocab_size
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    if millions is not None:
        assert round(sum(weight.numel() for weight in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("gpu", "flags"), [(True, "--dtype bfloat16"), (False, "--dtype float32 --enforce-eager")], ids=["gpu", "cpu"]
)
def test_a_dry_run_prints_the_command_and_the_configuration(serving, gpu, flags, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    serving.main(["--shapes", "llava-1.5-7b", "--dry-run"])
    command, _, config = capsys.readouterr().out.partition("\n")
    assert "vllm serve" in command and f"--load-format dummy {flags} --host" in command
    assert json.loads(config)["text_config"]["num_hidden_layers"] == 32


def test_ratios_are_against_dense_at_the_same_pictures_and_concurrency(serving):
    cells = [
        serving.Cell("dense", 1, "new", 10, 10.0, 8.0, 0.0),
        serving.Cell("64", 1, "new", 10, 5.0, 2.0, 0.5),
        serving.Cell("64", 8, "new", 10, 1.0, 1.0, 0.0),  # its dense cell was not measured
    ]
    rows = serving.table(cells).splitlines()[2:]
    assert [row.split("|")[5].strip() for row in rows] == ["1.00", "2.00", "-"]
    assert rows[1] == "| new | 1 | 64 | 2.00 | 2.00 | 0.20 | 4.00 | 50 % |"


@pytest.mark.parametrize("pictures", ["new", "same"])
def test_new_pictures_are_asked_once_and_the_same_ones_again(serving, pictures, monkeypatch):
    asked = []
    monkeypatch.setattr(serving, "ask", lambda port, body: asked.append(body))
    monkeypatch.setattr(serving, "hits", lambda port: (0.0, float(len(asked))))
    monkeypatch.setattr(serving.Server, "cpu_seconds", lambda server: float(len(asked)))
    cells = [serving.run_cell(serving.Server(0, 0), "64", 1, pictures, 6, seed) for seed in (6, 12)]
    shown = [json.loads(body)["messages"][0]["content"][0]["image_url"]["url"] for body in asked]
    assert len(shown) == 14 and len(set(shown)) == (14 if pictures == "new" else 2 * serving.PICTURES)
    assert [cell.work for cell in cells] == [1.0, 1.0]


def test_a_server_that_stops_says_why(serving, tmp_path, monkeypatch):
    script = 'print("ValueError: no memory for KV blocks: 1"); print("x" * 5000); raise SystemExit(1)'
    monkeypatch.setattr(serving, "command", lambda *_: [sys.executable, "-c", script])
    with (
        pytest.raises(SystemExit, match="the server stopped: ValueError: no memory for KV blocks: 1"),
        serving.serving(tmp_path, tmp_path, [], deadline=float("inf")),
    ):
        pass


def test_nothing_starts_after_the_deadline(serving, monkeypatch):
    asked = []
    monkeypatch.setattr(serving, "run_cell", lambda *cell: asked.append(cell))
    assert serving.measure(None, serving.arguments(["--minutes", "1"]), deadline=0) == [] and not asked
