"""The last mile of messages: what a stranger mistypes is answered in one line, with the nearest name and the remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests import checkpoints, llava_tiny
from vlm_pruner import cli
from vlm_pruner.console import fitted

ROOT = Path(__file__).resolve().parents[1]


def said(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line on standard error of a command that fails with exit code 2."""
    capsys.readouterr()
    try:
        code = cli.main(command)
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["ask", "a.png", "--question", "x", "--kep", "3"], ["--kep", "did you mean --keep?", "vlm-pruner ask --help"]),
        (["compare", "--modle", "x"], ["did you mean --model?", "vlm-pruner compare --help"]),
        (["bench", "--zzz"], ["unrecognized arguments: --zzz (see vlm-pruner bench --help)"]),
        (["shwo", "a.png"], ["'shwo'", "did you mean show?", "vlm-pruner --help"]),
        (["score", "pop", "--data", "x", "--answers", "x"], ["'pop'", "did you mean pope?", "vlm-pruner score --help"]),
    ],
)
def test_the_nearest_name_and_the_right_help(
    command: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(capsys, *command)
    assert all(part in line for part in expected), line


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("ablate", "--kinds"),
        ("budget", "--methods"),
        ("compare", "--methods"),
        ("show", "--keep"),
        ("show", "--method"),
    ],
)
def test_a_list_that_names_nothing(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, command, *(["a.png"] if command == "show" else []), flag, ",")
    assert flag in line and ("one or more" in line), line


def test_a_method_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, "ask", "a.png", "--question", "x", "--method", "fastvv", "--model", str(tmp_path))
    assert "'fastvv'" in line and "did you mean 'fastv'?" in line


@pytest.mark.parametrize("command", ["ask", "count"])
def test_a_model_that_reads_no_pictures(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    ).save_pretrained(tmp_path / "llama")
    photo = tmp_path / "photo.png"
    llava_tiny.picture(3).save(photo)
    question = ["--question", "x"] if command == "ask" else []
    capsys.readouterr()
    assert cli.main([command, str(photo), *question, "--model", str(tmp_path / "llama")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert len(line) < 350 and "a llama model, which answers no questions about pictures" in line


def test_a_missing_checkpoint_ends_the_papers_table_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlm_pruner.commands.reproduce", "checkpoints/of-nobody"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("reproduce: there is no checkpoint checkpoints/of-nobody: MODEL=DIR chooses another")
    assert len(lines) <= 6 and "not done" not in done.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a": 1}, "is no result file of vlm-pruner"),
        ({"command": "vlm-pruner compare", "arms": 3, "items": [], "model": {"grid": [2, 2]}}, "is damaged"),
        ({"command": "vlm-pruner bench", "cases": [{"arms": 3}]}, "is not a whole result of vlm-pruner bench"),
    ],
)
def test_a_report_on_another_kind_of_file(
    content: object, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "any.json").write_text(json.dumps(content))
    (tmp_path / "answers.jsonl").write_text("")
    line = said(capsys, "report", str(tmp_path / "any.json"), "-o", str(tmp_path / "page.html"))
    assert expected in line and "any.json" in line and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_fits_the_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_long_examples_go_on_in_the_next_line() -> None:
    command = "  vlm-pruner x --first " + "a" * 50 + " --second " + "b" * 20
    first, second = fitted(f"examples:\n{command}").splitlines()[1:]
    assert first.endswith(" \\") and second.startswith("      --second")
    assert first.removesuffix("\\").split() + second.split() == command.split()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("model"), "qwen2_5_vl")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    llava_tiny.picture(3).resize((140, 100)).save(path)
    return str(path)


@pytest.mark.parametrize("keep", ["5", "ratio:0.5", "avg:20", "flops:0.8"])
def test_every_command_about_a_picture_takes_every_budget(
    keep: str, checkpoint: Path, photo: str, tmp_path: Path
) -> None:
    """`ask`, `show` and `count` mean the same by the same words."""
    common = ["--model", str(checkpoint), "--keep", keep, "--layer", "1"]
    answers, counts = tmp_path / "answers.json", tmp_path / "counts.json"
    question = ["--question", "What is there", "--max-new-tokens", "1", "--no-cells", "--no-warm-up"]
    assert cli.main(["ask", photo, *question, *common, "--json", str(answers), "--out", str(tmp_path)]) == 0
    assert cli.main(["count", photo, *common, "--json", str(counts)]) == 0
    assert cli.main(["show", photo, *common, "--out", str(tmp_path / "kept.svg")]) == 0
    (asked,) = json.loads(answers.read_text())["answers"]["pruned"]["images"]
    (steps,) = json.loads(counts.read_text())["pictures"][0]["kept"].values()
    assert asked["n_before"] > asked["n_after"]
    if not keep.startswith("flops"):  # counts assume a prompt of 64 text tokens
        assert steps == [[1, asked["n_after"]]]


def test_a_budget_of_one_picture_is_refused_for_two(
    checkpoint: Path, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--question", "What", "--model", str(checkpoint), "--keep", "avg:12"]
    assert cli.main(["ask", photo, photo, *common]) == 2
    assert "says what one picture may cost, and there are 2" in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["6tokens", "ratio:1.5", "flops:2", "avg:0", "0", "-3"])
def test_what_is_no_budget_is_refused_before_anything_loads(keep: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["ask", "a.png", "--question", "x"], ["show", "a.png"], ["count", "a.png"]):
        assert "budget" in said(capsys, *command, "--model", "nowhere", f"--keep={keep}")
