"""The benchmark scripts on mini benchmarks: one from end to end, and the commands of all nine run one by one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conformance import llava_checkpoint

from playground.mini import benchmarks
from vlm_pruner import scoring
from vlm_pruner.commands.check_data import BENCHMARKS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {needs.script: name for name, needs in BENCHMARKS.items()}


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "v1_5" / "eval" / f"{name}.sh"), *arguments]
    clean = {
        key: value for key, value in os.environ.items() if key not in ("MODEL", "DATA", "METHOD", "MINI", "SEED", "ALL")
    }
    variables = {**clean, "VENV_PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """MODEL and DATA of nine benchmarks with a few questions each."""
    root = tmp_path_factory.mktemp("world")
    model = llava_checkpoint(root)
    benchmarks.write(root / "data", [benchmark.folder for benchmark in BENCHMARKS.values()], count=2)
    return {"MODEL": str(model), "DATA": str(root / "data")}


@pytest.mark.parametrize("arguments", [[], ["0.889"], ["0.889", "0.8"], ["--help"]])
def test_usage(arguments: list[str]) -> None:
    done = script("pope", *arguments)
    assert done.returncode == 2 and "usage:" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_checkpoint_is_named(world: dict[str, str]) -> None:
    done = script("gqa", "0", DATA=world["DATA"], MODEL="nowhere/llava")
    assert done.returncode == 2 and "no checkpoint nowhere/llava" in done.stderr and done.stderr.count("\n") == 1


def test_missing_data_is_named_file_by_file(world: dict[str, str], tmp_path: Path) -> None:
    done = script("pope", "0.889", "0.8", "16", MODEL=world["MODEL"], DATA=str(tmp_path))
    assert done.returncode == 2 and "docs/evaluation.md" in done.stderr
    for name in ("llava_pope_test.jsonl", "val2014", "coco/coco_pope_random.json"):
        assert str(tmp_path / "pope" / name) in done.stderr


def test_from_end_to_end(world: dict[str, str]) -> None:
    flags = ["--max_new_tokens", "2", "--device", "cpu"]
    done = script("pope", "0.889", "0.8", "16", *flags, BATCH="4", **world)
    assert done.returncode == 0, done.stderr
    assert "pope: F1" in done.stdout and "(standard error)" in done.stdout
    folder = Path(world["DATA"]) / "pope"
    assert (folder / "answers" / "llava-tiny_vlm-pruner_r0.889_t0.8_b16.jsonl").is_file()
    result = json.loads((folder / "results" / "llava-tiny_vlm-pruner_r0.889_t0.8_b16.json").read_text())
    assert result["n"] == 12 and result["run"]["config"]["method"]["token_batch"] == 16


def commands_of(name: str, tmp_path: Path, *arguments: str, **environment: str) -> list[list[str]]:
    """What a script starts, in order: each command's arguments after ``python -m``."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f"#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done >> {log}\nprintf '\\n' >> {log}\n")
    python.chmod(0o755)
    done = script(name, *arguments, **{**environment, "VENV_PYTHON": str(python)})
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip("\0").split("\0") for line in log.read_text().splitlines()]
    assert all(line[0] == "-m" for line in lines)
    return [line[1:] for line in lines]


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_answers_and_scores(name: str, world: dict[str, str], tmp_path: Path) -> None:
    """Its commands run in this process, which saves starting Python three times."""
    fixed = ["--max_new_tokens", "2", "--device", "cpu"]
    commands = commands_of(name, tmp_path, "0.889", "0.8", "16", *fixed, **world, METHOD="random", SEED="3", BATCH="8")
    for module, *arguments in commands:
        assert importlib.import_module(module).main(arguments) == 0
    folder = Path(world["DATA"]) / BENCHMARKS[SCRIPTS[name]].folder
    result = json.loads((folder / "results" / "llava-tiny_random_r0.889_s3.json").read_text())
    assert result["benchmark"] == SCRIPTS[name] and result["n"] > 0
    assert isinstance(result["headline"]["stderr"], float)
    assert result["run"]["config"]["method"]["name"] == "random" and result["run"]["seed"] == 3
    answers = [json.loads(line) for line in Path(result["answers"]).read_text().splitlines()]
    assert len(answers) == sum(1 for line in answers if line["metadata"]["kept"] == 64) > 0
    assert (folder / "answers" / "llava-tiny_random_r0.889_s3_upload").is_dir() == (name == "mmbench")


def test_variables_become_flags(world: dict[str, str], tmp_path: Path) -> None:
    more = {"BATCH": "8", "LIMIT": "5", "PROCESSES": "2", "ALLOW_ERRORS": "3"}
    _, generate, score = commands_of("gqa", tmp_path, "0.667", "0.8", "16", **world, **more)
    assert generate[0] == "accelerate.commands.launch" and generate[generate.index("--num_processes") + 1] == "2"
    asked = generate[generate.index("llava.eval.model_vqa_loader") :]
    for flag, value in (("--batch-size", "8"), ("--limit", "5"), ("--allow-errors", "3"), ("--token_batch", "16")):
        assert asked[asked.index(flag) + 1] == value
    assert score[score.index("--allow-errors") + 1] == "3"


@pytest.mark.parametrize(("name", "flag"), [("sqa", "--image-only"), ("seed", "--image-prefix")])
def test_all_questions_on_request(name: str, flag: str, world: dict[str, str], tmp_path: Path) -> None:
    for number, more in enumerate(({}, {"ALL": "1"})):
        (tmp_path / str(number)).mkdir()
        _, generate, _ = commands_of(name, tmp_path / str(number), "0", **world, **more)
        assert (flag in generate) == (not more) and "" not in generate


@pytest.mark.parametrize(("ratio", "method"), [("0", "vlm-pruner"), ("0.0", ""), ("0.889", "dense")])
def test_dense_runs(world: dict[str, str], tmp_path: Path, ratio: str, method: str) -> None:
    numbers = [ratio] if float(ratio) == 0 else [ratio, "0.8", "16"]
    _, generate, score = commands_of("pope", tmp_path, *numbers, **world, METHOD=method)
    assert "--sparse" not in generate and score[score.index("--answers") + 1].endswith("/llava-tiny_dense.jsonl")


def test_mini_benchmarks_are_made_on_first_use(world: dict[str, str], tmp_path: Path) -> None:
    data = tmp_path / "mini"
    done = script("okvqa", "0", "--limit", "1", "--max_new_tokens", "1", MINI="1", MODEL=world["MODEL"], DATA=str(data))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in data.iterdir()] == ["okvqa"] and "okvqa: VQA score" in done.stdout


@pytest.mark.parametrize("name", list(scoring.MODULES))
def test_scripts_name_the_files_that_the_scorer_needs(name: str) -> None:
    """Shell scripts spell file names out; the list of each benchmark's files is its scorer's."""
    needs = scoring.needs(name)
    text = (ROOT / "scripts" / "v1_5" / "eval" / f"{needs.script}.sh").read_text(encoding="utf-8")
    assert f"setup {name} {needs.folder} " in text and f'"$BENCH/{needs.questions.path}"' in text
    folders = {"" if folder == "." else f"/{folder}" for folder in needs.pictures}
    assert not folders or any(f"$BENCH{folder}" in text for folder in folders)
