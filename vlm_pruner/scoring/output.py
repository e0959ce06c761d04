"""Outputs of a score: the table on the screen, and the files of `--json`, `--items` and `--upload`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from vlm_pruner.console import one_line
from vlm_pruner.linefile import sidecar_of
from vlm_pruner.scoring.base import Score, ScoreError, Unscored, Upload
from vlm_pruner.scoring.records import Record, read_json


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that every scoring command has."""
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write metrics, n, standard errors and the run's config here"
    )
    parser.add_argument(
        "--allow-errors", type=int, default=0, metavar="N",
        help="score although up to N items failed while generating; they count as empty replies",
    )  # fmt: skip
    parser.add_argument(
        "--items", type=Path, metavar="OUT", help="write what was read from each reply here, one object per line"
    )
    parser.add_argument(
        "--upload", type=Path, metavar="DIR", help="write the files that the benchmark's server takes here"
    )


def report(score: Callable[[], Score], answers: str | Path, output: argparse.Namespace) -> int:
    """Scores, prints the table, and writes the files that the flags request. Returns the exit code."""
    try:
        found = score()
    except Unscored as error:
        if not output.upload:
            raise
        print(one_line(error).partition(";")[0])
        _write_uploads(error.uploads, output.upload)
        return 0
    print(found.render().encode("utf-8", "replace").decode())
    if output.json:
        document = {**found.as_json(), "answers": str(answers), "run": run_description(answers)}
        _write(output.json, _dump(document, indent=1))
    if output.items:
        _write(output.items, b"".join(_dump(item) for item in found.items))
    if output.upload:
        if not found.uploads:
            raise ScoreError(f"{found.benchmark} has no upload file (none exists, or answers are missing)")
        _write_uploads(found.uploads, output.upload)
    return 0


def run_description(answers: str | Path) -> Record | None:
    """Config, versions and seed of the run that wrote the answers; None if no description is beside them."""
    sidecar = sidecar_of(Path(answers).expanduser())
    if not sidecar.is_file():
        return None
    described: Record = read_json(sidecar, dict)
    return described


def _write_uploads(uploads: Mapping[str, Upload], folder: Path) -> None:
    for name, content in uploads.items():
        _write(folder / name, content())
        print(f"upload file: {folder / name}")


def _dump(document: object, indent: int | None = None) -> bytes:
    return (json.dumps(document, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
