"""The whole table by one command: order, progress, resuming, missing data, and one loaded model for all."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from llava.eval import checkpoint, plan
from tests.every_method import of_pictures
from vlm_pruner.commands import reproduce

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """#!/usr/bin/env bash
name=$(basename "$0" .sh)
if [[ ! -e data/$name ]]; then echo "$name: missing: data/$name" >&2; exit 2; fi
arm=${METHOD:-dense}_$*
"$VENV_PYTHON" -m vlm_pruner.stub "generate $name" "$MODEL" "$@"
result="results/$name ${arm// /_}.json"
"$VENV_PYTHON" -m vlm_pruner.stub "score $name" "$MODEL" "$1" "${3:-}" "${METHOD:-}" --json "$result"
"""


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """Three benchmark scripts, of which mme has no data, and a stub for what they call."""
    folder = tmp_path / "scripts" / "v1_5" / "eval"
    folder.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    for name in ("gqa", "pope", "mme"):
        (folder / f"{name}.sh").write_text(SCRIPT)
    for name in ("gqa", "pope"):
        (tmp_path / "data" / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCHMARKS", "gqa pope mme")
    for name in ("METHODS", "RATIOS", "MINI", "MODEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


class Stub:
    """Stands in for generators and scorers; writes down every call and, for `score`, a result file."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def main(self, arguments: list[str]) -> int:
        self.calls.append(arguments)
        what, name = arguments[0].split()
        if what == "score":
            model, ratio, batch, method = arguments[1:5]
            chosen = {"name": method, "reduction_ratio": float(ratio), "token_batch": int(batch)} if method else None
            run = {"config": {"model_path": model, "method": chosen}}
            headline = {"name": "score", "value": 50.0, "stderr": 1.0}
            path = Path(arguments[arguments.index("--json") + 1])
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"benchmark": name, "headline": headline, "n": 9, "failed": 0, "run": run}))
        return 0


@pytest.fixture
def stub(monkeypatch) -> Stub:
    stub = Stub()
    monkeypatch.setattr(plan, "import_module", lambda name: stub)
    return stub


def test_everything_is_run_once_and_missing_data_are_told_at_the_end(world, stub, monkeypatch, capsys):
    monkeypatch.setenv("METHODS", "vlm-pruner vlm-pruner:1")
    monkeypatch.setenv("RATIOS", "0.889")
    assert reproduce.main(["m/llava-v1.5-7b", "--batch-size", "8"]) == 1
    generated = [call for call in stub.calls if call[0].startswith("generate")]
    assert generated[0] == ["generate gqa", "m/llava-v1.5-7b", "0", "--batch-size", "8"]
    assert generated[2] == ["generate gqa", "m/llava-v1.5-7b", "0.889", "0.8", "16", "--batch-size", "8"]
    assert [call[4:5] for call in generated] == [["8"]] * 2 + [["16"]] * 2 + [["1"]] * 2
    printed = capsys.readouterr()
    assert "== [1 of 9, 0:00:0" in printed.err and "] mme, vlm-pruner:1 0.889" in printed.err
    assert "6 of 9 done" in printed.err
    assert printed.err.count("not done: mme, dense: mme: missing: data/mme") == 1
    ours = [line for line in printed.out.splitlines() if " ours " in line]
    assert [line.split(" ours ")[0].strip() for line in ours] == ["dense", "VLM-Pruner", "VLM-Pruner B=1"]


def test_what_has_a_result_is_not_run_again(world, stub, monkeypatch, capsys):
    monkeypatch.setenv("METHODS", "random")
    monkeypatch.setenv("BENCHMARKS", "gqa,pope")
    assert reproduce.main(["m/llava-v1.5-7b"]) == 0
    done = len(stub.calls)
    assert done == 2 * 2 * 4
    torn = next(Path("results").glob("pope*0.778*.json"))
    torn.write_text(torn.read_text()[:20])
    assert reproduce.main(["m/llava-v1.5-7b"]) == 0
    assert len(stub.calls) == done + 2
    assert "8 of 8 done" in capsys.readouterr().err


def test_a_benchmark_that_fails_does_not_stop_the_others(world, stub, monkeypatch, capsys):
    def main(arguments: list[str]) -> int:
        if arguments[0] == "generate gqa":
            raise RuntimeError("broken")
        return Stub.main(stub, arguments)

    monkeypatch.setattr(plan, "import_module", lambda name: argparse.Namespace(main=main))
    monkeypatch.setenv("METHODS", "random")
    monkeypatch.setenv("BENCHMARKS", "gqa pope")
    assert reproduce.main(["m/llava-v1.5-7b"]) == 1
    errors = capsys.readouterr().err
    assert "4 of 8 done" in errors and "not done: gqa, dense: " in errors and "dense: RuntimeError: broken\n" in errors


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, "give the checkpoint's folder"),
        (["m"], {"METHODS": "magic"}, "unknown method 'magic'"),
        (["m"], {"METHODS": "vlm-pruner:x"}, "'vlm-pruner:x'"),
        (["m", "--methods", "magic"], {"METHODS": "random"}, "unknown method 'magic'"),
        (["m", "--ratios", "64"], {}, "'64' is not a share of removed tokens"),
    ],
)
def test_bad_input(world, monkeypatch, capsys, arguments, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        reproduce.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_mini_runs_what_the_embedded_model_is_compared_with():
    arms = list(reproduce.arms_of(mini=True))
    assert [arm.label for arm in arms[:5]] == [
        "dense",
        "random 0.667",
        "random 0.778",
        "random 0.889",
        "vlm-pruner 0.667",
    ]
    assert len(arms) == 10 and arms[-1].numbers == ["0.889", "0.8", "1"]
    assert next(arm for arm in reproduce.arms_of() if arm.method).method == "vlm-pruner"


def test_all_methods_are_planned_and_only_planned(world, stub, capsys):
    """By one word every method that runs with settings alone, and a word about the one that does not."""
    assert reproduce.main(["m/llava-v1.5-7b", "--methods", "all", "--ratios", "0.889", "--plan"]) == 0
    told = capsys.readouterr().err
    assert not stub.calls
    arms = [arm.label for arm in reproduce.arms_of("all", "0.889")]
    assert f"plan: {len(arms)} arms x 3 benchmarks = {3 * len(arms)} runs" in told and ", ".join(arms) in told
    assert arms[:3] == ["dense", "vlm-pruner 0.889", "vlm-pruner:1 0.889"] and len(set(arms)) == len(arms)
    assert {label.split()[0] for label in arms} == {"dense", "vlm-pruner:1", *of_pictures()}
    assert "not among them: cdpruner" in told


def test_the_scripts_tell_their_commands(tmp_path):
    """The real scripts: what they would run on data that are not there, and what checking these says."""
    (tmp_path / "model").mkdir()
    environment = {"MODEL": str(tmp_path / "model"), "DATA": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for script in reproduce.BENCHMARKS:
        told = plan.plan_of([str(ROOT / f"scripts/v1_5/eval/{script}.sh"), "0.889", "0.8", "16"], environment)
        assert not told.problem
        modules = [command[1] for command in told.commands]
        assert modules[0] == "vlm_pruner.cli" and modules[1].startswith("llava.eval.model_vqa_")
        assert plan.finished(told) is None and "--json" in told.commands[-1]
    mine = {**environment, "METHOD": "my/own/file.py:MyPruner"}
    told = plan.plan_of([str(ROOT / "scripts/v1_5/eval/pope.sh"), "0.889", "0.8", "16"], mine)
    answering = told.commands[1]
    assert answering[answering.index("--method") + 1] == mine["METHOD"], "a method in a file"
    assert Path(answering[answering.index("--answers-file") + 1]).name == "model_my_own_file.py:MyPruner_r0.889.jsonl"
    told = plan.plan_of([str(ROOT / "scripts/v1_5/eval/pope.sh")], environment)
    assert "usage:" in told.problem
    shutil.rmtree(tmp_path / "model")
    assert "no checkpoint" in plan.plan_of([str(ROOT / "scripts/v1_5/eval/pope.sh"), "0"], environment).problem


def test_one_loaded_checkpoint_is_shared(monkeypatch):
    loaded = []
    monkeypatch.setattr(checkpoint, "_load", lambda args: loaded.append(args) or len(loaded))
    flags = {"model_base": None, "device": None, "device_map": None, "dtype": "auto", "attn_implementation": "sdpa"}
    one, other = (argparse.Namespace(model_path=path, **flags) for path in ("a", "b"))
    with checkpoint.keep_loaded():
        assert checkpoint.load_checkpoint(one) == checkpoint.load_checkpoint(one) == 1
        assert [checkpoint.load_checkpoint(args) for args in (other, one)] == [2, 3], "only one is kept"
        pooled = argparse.Namespace(**vars(one), mm_spatial_pool_mode="max")
        assert [checkpoint.load_checkpoint(args) for args in (pooled, one)] == [4, 5], "a run changes its configuration"
    assert checkpoint.load_checkpoint(one) == 6
