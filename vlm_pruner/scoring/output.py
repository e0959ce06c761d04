"""What becomes of a score: the table on the screen, and the files that `--json`, `--items` and `--upload` ask for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vlm_pruner.scoring.base import Score, ScoreError


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every scoring command has."""
    parser.add_argument("--json", metavar="OUT", help="write metrics, n, standard errors and the run's config here")
    parser.add_argument(
        "--allow-errors", type=int, default=0, metavar="N",
        help="score although up to N items failed while generating; they count as empty replies",
    )  # fmt: skip
    parser.add_argument("--items", metavar="OUT", help="write what was read from each reply here, one object per line")
    parser.add_argument("--upload", metavar="DIR", help="write the files that the benchmark's server takes here")


def report(score: Score, answers: str, output: argparse.Namespace) -> int:
    """Print the table and write what the flags of `add_output_arguments` ask for; the exit code."""
    print(score.render())
    if output.json:
        document = {**score.as_json(), "answers": str(answers), "run": run_description(answers)}
        _write(Path(output.json), _dump(document, indent=1))
    if output.items:
        _write(Path(output.items), b"".join(_dump(item) for item in score.items))
    if output.upload:
        if not score.uploads:
            raise ScoreError(f"{score.benchmark} has no upload file (none exists, or answers are missing)")
        for name, content in score.uploads.items():
            _write(Path(output.upload) / name, content)
            print(f"upload file: {Path(output.upload) / name}")
    return 0


def _dump(document: object, indent: int | None = None) -> bytes:
    return (json.dumps(document, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def run_description(answers: str | Path) -> dict | None:
    """Config, versions and seed of the run that wrote the answers; None if it left none beside them."""
    sidecar = Path(f"{answers}.meta.json")
    if not sidecar.is_file():
        return None
    return dict(json.loads(sidecar.read_text(encoding="utf-8")))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
