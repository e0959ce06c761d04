"""A model divided among two CPU processes by DeepSpeed ZeRO-3 answers what the undivided model answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from llava.eval import model_vqa_loader, model_vqa_science
from tests import checkpoints, llava_tiny

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 10
METHODS = ("dense", "vlm-pruner", "fastv", "pyramiddrop", "sparsevlm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = llava_tiny.write_original(tmp_path_factory.mktemp("model"))
    llava_tiny.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine questions: one process has five of them. The sixth picture is missing; lengths differ."""
    folder = tmp_path_factory.mktemp("data")
    for number, size in enumerate([(60, 40), (40, 60)]):
        Image.effect_noise(size, 80).convert("RGB").save(folder / f"{number}.png")
    names = ["none.png" if n == 5 else f"{n % 2}.png" for n in range(9)]
    lines = [{"question_id": n, "image": name, "text": "what is " * (1 + n % 3)} for n, name in enumerate(names)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    turns = [{"from": "human", "value": "what is\n<image>"}]
    pictured = ({"image": "0.png"}, {}, {}, {"image": "1.png"}, {})
    science = [{"id": str(n), "conversations": turns, **image} for n, image in enumerate(pictured)]
    (folder / "science.json").write_text(json.dumps(science))
    return folder


def together(*command: str, config: Path | None = ROOT / "scripts" / "zero3.json") -> str:
    """Two processes; what they wrote to the screen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    sort = ["--multi_gpu"] if config is None else ["--use_deepspeed", "--deepspeed_config_file", str(config)]
    stated = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *sort, *stated, "--main_process_port", port]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60 * MINUTES
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def flags_of(model: Path, data: Path, method: str) -> list[str]:
    flags = ["--model-path", str(model), "--image-folder", str(data), "--max_new_tokens", "4", "--device", "cpu"]
    pruning = [] if method == "dense" else ["--sparse", "--method", method, "--reduction_ratio", "0.5"]
    return [*flags, "--batch-size", "2", "--allow-errors", "1", *pruning]


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_one_process(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    flags = [*flags_of(model, data, method), "--question-file", str(data / "questions.jsonl")]
    assert model_vqa_loader.main([*flags, "--answers-file", str(tmp_path / "one.jsonl")]) == 0
    told = together("-m", "llava.eval.model_vqa_loader", *flags, "--answers-file", str(tmp_path / "two.jsonl"))
    assert told.count("8 of 9 questions answered") == 1
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_questions_without_pictures_are_asked_apart(model: Path, data: Path, tmp_path: Path) -> None:
    """They prune nothing, so FastV reads no attention, and a process with a picture would wait for the other."""
    flags = [*flags_of(model, data, "fastv"), "--question-file", str(data / "science.json"), "--single-pred-prompt"]
    assert model_vqa_science.main([*flags, "--answers-file", str(tmp_path / "one.jsonl")]) == 0
    together("-m", "llava.eval.model_vqa_science", *flags, "--answers-file", str(tmp_path / "two.jsonl"))
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_layers_are_divided_and_the_rest_is_whole(model: Path, tmp_path: Path) -> None:
    """Of small layers, DeepSpeed keeps everything; with a threshold of 0, nothing."""
    config = json.loads((ROOT / "scripts" / "zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "all.json").write_text(json.dumps(config))
    together("tests/zero3/shares.py", "divided", str(model), str(tmp_path / "out"), config=tmp_path / "all.json")
    for rank in (0, 1):
        told = json.loads((tmp_path / f"out.{rank}").read_text())
        assert told["layers"][0] == 0 and told["layers"][1] > 0, told
        assert told["rest"][0] == told["rest"][1] > 0, told
        assert told["layers"][1] / 2 <= told["parts"] < told["layers"][1] * 0.55, told


def test_divided_layers_answer_alike(model: Path, data: Path, tmp_path: Path) -> None:
    """The tiny model's layers really are in parts."""
    config = json.loads((ROOT / "scripts" / "zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "all.json").write_text(json.dumps(config))
    flags = [*flags_of(model, data, "fastv"), "--question-file", str(data / "questions.jsonl")]
    assert model_vqa_loader.main([*flags, "--answers-file", str(tmp_path / "one.jsonl")]) == 0
    answers = ["--answers-file", str(tmp_path / "two.jsonl")]
    together("-m", "llava.eval.model_vqa_loader", *flags, *answers, config=tmp_path / "all.json")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_tensor_parallelism_is_refused(tmp_path: Path) -> None:
    """transformers' tp_plan gives each process its own heads, so a dense answer is right and a pruned one is not."""
    folder = checkpoints.write(tmp_path / "llava", "llava")
    together("tests/zero3/shares.py", "tensor_parallel", str(folder), str(tmp_path / "out"), config=None)
    for rank in (0, 1):
        told = json.loads((tmp_path / f"out.{rank}").read_text())
        assert told["equal"] and "divided among 2 processes by tensor parallelism" in told["said"]
