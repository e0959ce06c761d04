"""The benchmark script from end to end on the kit's tiny checkpoint: usage, missing data, dense and pruned, resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conformance import conformance
from PIL import Image
from test_eval_engine import write_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def pope(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "v1_5" / "eval" / "pope.sh"), *arguments]
    variables = {**os.environ, "VENV_PYTHON": sys.executable, "MINI": "", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """MODEL and DATA of a benchmark with twelve questions."""
    root = tmp_path_factory.mktemp("world")
    source = conformance("llava")
    (root / "clip-tiny-336").symlink_to(source / "clip-tiny-336")
    (root / "tiny").mkdir()
    for file in (source / "llava-tiny").iterdir():
        (root / "tiny" / file.name).symlink_to(file)
    write_tokenizer(root / "tiny")
    write_benchmark(root / "data" / "pope")
    return {"MODEL": str(root / "tiny"), "DATA": str(root / "data")}


def write_benchmark(folder: Path) -> None:
    (folder / "coco").mkdir(parents=True)
    (folder / "val2014").mkdir()
    questions = []
    for offset, category in enumerate(("adversarial", "popular", "random")):
        labels = []
        for place in range(4):
            image = f"{offset}{place}.png"
            Image.effect_noise((40, 30), 60).convert("RGB").save(folder / "val2014" / image)
            questions.append({"question_id": 100 * offset + place, "image": image, "text": "w1?", "category": category})
            labels.append({"question_id": place, "label": ["yes", "no"][place % 2]})
        (folder / "coco" / f"coco_pope_{category}.json").write_text("\n".join(map(json.dumps, labels)))
    (folder / "llava_pope_test.jsonl").write_text("\n".join(map(json.dumps, questions)))


@pytest.mark.parametrize("arguments", [[], ["0.889"], ["0.889", "0.8"], ["--help"]])
def test_usage(arguments: list[str]) -> None:
    done = pope(*arguments)
    assert done.returncode == 2 and "usage:" in done.stderr and done.stderr.count("\n") == 1


def test_missing_data_is_named_file_by_file(world: dict[str, str], tmp_path: Path) -> None:
    done = pope("0.889", "0.8", "16", MODEL=world["MODEL"], DATA=str(tmp_path))
    assert done.returncode == 2 and world["MODEL"] not in done.stderr
    for name in ("llava_pope_test.jsonl", "val2014", "coco"):
        assert str(tmp_path / "pope" / name) in done.stderr


def test_pruned_then_dense_then_again(world: dict[str, str]) -> None:
    pruned = pope("0.889", "0.8", "16", "--max_new_tokens", "2", "--device", "cpu", **world)
    assert pruned.returncode == 0, pruned.stderr
    assert "pope: F1" in pruned.stdout and "12 of 12 questions answered" in pruned.stderr
    folder = Path(world["DATA"]) / "pope"
    result = json.loads((folder / "results" / "tiny_vlm-pruner_r0.889_t0.8_b16.json").read_text())
    assert result["n"] == 12 and result["run"]["config"]["method"]["token_batch"] == 16

    dense = pope("0", "--max_new_tokens", "2", "--device", "cpu", **world)
    assert dense.returncode == 0, dense.stderr
    assert json.loads((folder / "results" / "tiny_dense.json").read_text())["run"]["config"]["method"] is None

    again = pope("0.0", "0.8", "16", "--max_new_tokens", "2", "--device", "cpu", **world)
    assert again.returncode == 0 and again.stdout == dense.stdout
