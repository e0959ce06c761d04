"""``vlm-pruner score`` and what the field's own scoring commands share with it: print the table, write the JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vlm_pruner import scoring
from vlm_pruner.scoring.base import Score, ScoreError

EXAMPLES = """examples:
  vlm-pruner score pope --data playground/data/eval/pope --answers answers/llava-v1.5-7b.jsonl --json pope.json
  vlm-pruner score mme --data playground/data/eval/MME --answers answers/llava-v1.5-7b.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "benchmark", choices=list(scoring.MODULES), metavar="BENCHMARK", help=", ".join(scoring.MODULES)
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="the benchmark's folder, in LLaVA's layout")
    parser.add_argument("--answers", required=True, metavar="FILE", help="answer file, one JSON object per line")
    add_output_arguments(parser)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every scoring command has."""
    parser.add_argument("--json", metavar="OUT", help="write metrics, n, standard errors and the run's config here")
    parser.add_argument(
        "--allow-errors", type=int, default=0, metavar="N",
        help="score although up to N items failed while generating; they count as empty replies",
    )  # fmt: skip
    parser.add_argument("--upload", metavar="DIR", help="write the files that the benchmark's server takes here")


def run(args: argparse.Namespace) -> int:
    score = scoring.get(args.benchmark)(args.data, args.answers, allow_errors=args.allow_errors)
    return report(score, args.answers, args.json, args.upload)


def report(score: Score, answers: str, out: str | None, upload: str | None = None) -> int:
    """Print the table, write the JSON and the upload files; the exit code."""
    print(score.render())
    if out:
        document = {**score.as_json(), "answers": str(answers), "run": run_description(answers)}
        _write(Path(out), (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
    if upload:
        if not score.uploads:
            raise ScoreError(f"{score.benchmark} has no server to upload to; leave --upload out")
        for name, content in score.uploads.items():
            _write(Path(upload) / name, content)
            print(f"upload file: {Path(upload) / name}")
    return 0


def run_description(answers: str | Path) -> dict | None:
    """Config, versions and seed of the run that wrote the answers; None if it left none beside them."""
    sidecar = Path(f"{answers}.meta.json")
    if not sidecar.is_file():
        return None
    return dict(json.loads(sidecar.read_text(encoding="utf-8")))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
