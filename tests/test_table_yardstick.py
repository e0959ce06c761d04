"""AngelSlim's table of Qwen2.5-VL-7B: as printed, beside results of lmms-eval; and the script that makes those."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from vlm_pruner.cli import main
from vlm_pruner.lmms.arguments import ChatArguments, build_method, read_arguments
from vlm_pruner.report import yardstick
from vlm_pruner.report.paper_numbers import average
from vlm_pruner.report.yardstick import TASKS, printed

SCRIPT = Path(__file__).resolve().parents[1] / "Qwen2-VL" / "eval_scripts" / "yardstick.sh"


def write(folder: Path, share: float, arguments: str, skip: str = "") -> None:
    """Results of lmms-eval that are `share` of the printed dense ones, one file per task as the script makes them."""
    dense = printed()[0]
    for name, task in TASKS.items():
        if name != skip:
            value = share * dense.scores[name] / task.scale
            more = {f"{task.metric}_stderr,none": "N/A", "alias": task.name, "submission,none": None}
            document = {
                "results": {task.name: {f"{task.metric},none": value, **more}},
                "config": {"model": "vlm_pruner_qwen2_5_vl", "model_args": f"pretrained=Qwen/x,{arguments}"},
            }
            path = folder / task.name / "Qwen__x" / "20261126_120000_results.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(document))


def table(capsys: Any, *arguments: object, code: int = 0) -> str:
    assert main(["table", "--layout", "qwen2.5-vl", *map(str, arguments)]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def records(text: str) -> dict[tuple[str, str, str], dict[str, str]]:
    return {(r["kept"], r["method"], r["row"]): r for r in csv.DictReader(io.StringIO(text))}


def test_their_averages_follow_from_their_scores() -> None:
    """This shows that we read the columns as they are meant; two decimals are printed."""
    dense = printed()[0]
    assert len(printed()) == 19 and dense.method == "dense" and dense.average == 100
    for row in printed():
        assert average(row.scores, dense.scores, TASKS) == pytest.approx(row.average, abs=0.03)
    assert {row.method for row in printed() if row.trained} == {"VisionSelector", "IDPruner"}


def test_theirs_ours_and_the_difference(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "dense", 1.0, "reduction_ratio=0.0")
    write(tmp_path / "div", 0.9, "method=divprune,reduction_ratio=0.75")
    write(tmp_path / "own", 0.8, "method=vlm-pruner,reduction_ratio=0.9,threshold=0.8,token_batch=16", skip="MMStar")
    found = records(table(capsys, tmp_path, "--format", "csv"))
    div = {row: found["0.25", "DivPrune", row] for row in ("ours", "theirs", "diff")}
    assert float(div["ours"]["avg"]) == pytest.approx(90) and div["theirs"]["avg"] == "89.26"
    assert float(div["diff"]["ChartQA"]) == pytest.approx(0.9 * 83.68 - 62.0)
    assert float(div["ours"]["MME"]) == pytest.approx(0.9 * 1702)
    assert found["0.1", "VLM-Pruner", "ours"]["MMStar"] == found["0.1", "VLM-Pruner", "ours"]["avg"] == ""
    assert ("0.1", "VLM-Pruner", "theirs") not in found and ("0.25", "FastV", "ours") not in found
    assert float(found["1.0", "dense", "diff"]["POPE"]) == pytest.approx(0)
    text = table(capsys, tmp_path)
    assert max(map(len, text.splitlines())) <= 100 and "DivPrune 25%" in text and "docvqa_val anls" in text
    rows = [line for line in table(capsys, tmp_path, "--format", "md").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_without_results_it_is_their_table(capsys: Any) -> None:
    text = table(capsys)
    assert text.count("theirs ") >= 19 and " ours " not in text.split("theirs:")[0]


@pytest.mark.parametrize("broken", ["twice", "no result", "keep_tokens", "submission", "empty", "gone"])
def test_what_is_no_cell_is_refused_by_name(broken: str, tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "a", 1.0, "keep_tokens=64" if broken == "keep_tokens" else "reduction_ratio=0.75")
    path = next((tmp_path / "a" / "pope").rglob("*.json"))
    given, said = tmp_path, str(path)
    if broken == "twice":
        (tmp_path / "b_results.json").write_text(path.read_text())
    elif broken == "no result":
        path.write_text("[]")
    elif broken == "submission":
        document = json.loads(path.read_text())
        document["results"]["pope"]["pope_accuracy,none"] = None
        path.write_text(json.dumps(document))
    elif broken in ("empty", "gone"):
        given, said = tmp_path / "other", "other"
        (tmp_path / "other").mkdir() if broken == "empty" else None
    if broken == "keep_tokens":
        said = "keep_tokens=64"
    assert said in table(capsys, given, code=2)


def script(*given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": "/usr/bin:/bin", "VENV_PYTHON": sys.executable, "DRY_RUN": "1", **environment}
    return subprocess.run(["bash", str(SCRIPT), *given], env=variables, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("kept", "ratio"), [(0.25, "0.75"), (0.1, "0.9")])
def test_the_script_runs_the_tables_tasks(kept: float, ratio: str) -> None:
    done = script("all", ratio, "0.8", "16")
    assert done.returncode == 0, done.stderr
    commands = done.stdout.replace("\\,", ",").splitlines()
    assert [re.search(r"--tasks (\S+)", line)[1] for line in commands] == [task.name for task in TASKS.values()]
    for line in commands:
        given = re.search(r"--model_args (\S+)", line)[1]
        settings = dict(pair.split("=") for pair in given.split(","))
        read = read_arguments(ChatArguments, settings)
        assert settings["pretrained"] == "Qwen/Qwen2.5-VL-7B-Instruct" and "--model vlm_pruner_qwen2_5_vl " in line
        assert (read.min_pixels, read.max_pixels) == (200704, 1605632)
        assert (
            yardstick._arguments(given)["reduction_ratio"] == ratio and build_method(read).reduction_ratio == 1 - kept
        )


def test_one_task_and_what_is_none() -> None:
    assert "--tasks docvqa_val " in script("docvqa", "0").stdout
    assert "mmbench_cn_dev" in script("mmbench_cn", "0.75", "0.8", "16", METHOD="divprune").stdout
    for given in ([], ["gqa", "0"], ["ai2d chartqa", "0"]):
        done = script(*given)
        assert done.returncode == 2 and "tasks: ai2d chartqa" in done.stderr


@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms_eval is not installed")
def test_lmms_eval_has_the_tasks_and_metrics() -> None:
    """As text, without imports: the task's file, or one that it includes, names the metric."""
    folder = Path(find_spec("lmms_eval").submodule_search_locations[0]) / "tasks"
    for task in TASKS.values():
        pattern = re.compile(rf"^task: *[\"']?{task.name}[\"']?\s*$", re.M)
        (path,) = [path for path in folder.rglob("*.yaml") if pattern.search(path.read_text())]
        text = path.read_text()
        for other in re.findall(r"^include: *(\S+)", text, re.M):
            text += (path.parent / other).read_text()
        assert re.search(rf"metric: *[\"']?{re.escape(task.metric)}[\"']?\s*$", text, re.M), task.name
