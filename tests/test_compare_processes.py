"""Several processes: the embedded model gives the same answers in two as in one."""

from __future__ import annotations

import json
from pathlib import Path

from vlm_pruner.cli import main


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    records = []
    for processes in ("1", "2"):
        out = tmp_path / processes
        usual = ["--methods", "dense,random,visionzip,vlm-pruner", "--budget", "32", "--questions", "6"]
        usual += ["--batch-size", "3", "--resamples", "50"]
        assert main(["compare", *usual, "--processes", processes, "--out", str(out)]) == 0
        header, *lines = map(json.loads, (out / "answers.jsonl").read_text().splitlines())
        assert len(lines) == 4 * 6 and len(header["arms"]) == 4
        records.append(sorted(map(str, lines)))
    assert records[0] == records[1]
