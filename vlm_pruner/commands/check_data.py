"""``vlm-pruner check-data``: lists missing files of the nine benchmarks, down to the pictures of each question."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_pruner import scoring
from vlm_pruner.scoring import Needs, ScoreError
from vlm_pruner.scoring.mmbench import read_table
from vlm_pruner.scoring.needs import File
from vlm_pruner.scoring.records import field, read_json, read_jsonl

EXAMPLES = """examples:
  vlm-pruner check-data                # all nine below playground/data/eval
  vlm-pruner check-data pope gqa --data /mnt/benchmarks --all
"""

MISSING = 1  # exit code


BENCHMARKS = {name: scoring.needs(name) for name in scoring.MODULES}


@dataclass(frozen=True)
class Finding:
    """Missing files with their sources, missing pictures, how many pictures the questions name, and other releases."""

    files: dict[Path, str]
    pictures: list[Path]
    asked: int
    releases: list[str]

    @property
    def complete(self) -> bool:
        return not self.files and not self.pictures


def check(needs: Needs, data: Path) -> Finding:
    """Looks below ``data / needs.folder``; checks pictures only if the question file and their folder exist."""
    root = data / needs.folder
    missing = {root / name: source for name, source in needs.files.items() if not (root / name).exists()}
    counted = [file for file in (needs.questions, *needs.labels) if file.count and (root / file.path).is_file()]
    releases = [line for file in counted if (line := _other_release(root / file.path, file)) is not None]
    folder = needs.image_folder(root)
    questions = root / needs.questions.path
    if folder is None or questions in missing:
        return Finding(missing, [], 0, releases)
    names = sorted({name for name in _pictures(questions, needs) if name.startswith(needs.only)})
    return Finding(missing, [folder / name for name in names if not (folder / name).is_file()], len(names), releases)


def _other_release(path: Path, file: File) -> str | None:
    """Reports a file whose number of entries differs from the release behind the published scores."""
    count = len(_entries(path, file.key))
    if count == file.count:
        return None
    return f"{path} has {count} entries; the release of the published scores has {file.count}: {file.source}"


def _entries(path: Path, key: str = "") -> Collection[Any]:
    """The entries of a JSON-lines file, a table, or a JSON document (those below `key`)."""
    if path.suffix == ".tsv":
        return read_table(path)
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    try:
        found = read_json(path)
    except ScoreError:  # POPE's labels are lines in a file called .json
        return read_jsonl(path)
    found = field(found, key, path, list) if key else found
    return found if isinstance(found, list | dict) else []


def _pictures(questions: Path, needs: Needs) -> Iterator[str]:
    """Picture paths of a question file; some questions have none."""
    try:
        for record in _entries(questions):
            if record.get(needs.image_field):
                yield str(record[needs.image_field])
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{questions} is not a question file ({error}); download it again") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "benchmarks", nargs="*", metavar="BENCHMARK", help=f"which (default: all): {', '.join(BENCHMARKS)}"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("playground/data/eval"), metavar="DIR",
        help="folder of the benchmarks' folders (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="list every missing picture, not only the first three")


def run(args: argparse.Namespace) -> int:
    unknown = [name for name in args.benchmarks if name not in BENCHMARKS]
    if unknown:
        raise ValueError(f"no benchmark is called {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    complete = True
    for name in args.benchmarks or BENCHMARKS:
        finding = check(BENCHMARKS[name], args.data)
        complete &= finding.complete
        print(describe(name, finding, None if args.all else 3))
    return 0 if complete else MISSING


def describe(name: str, finding: Finding, most: int | None = 3) -> str:
    """One line per complete benchmark or missing file, and at most ``most`` missing pictures."""
    notes = [f"  note: {line}" for line in finding.releases]
    if finding.complete:
        pictures = f", {finding.asked} pictures" if finding.asked else ""
        known = "" if notes else ", as many questions as the release of the published scores"
        return "\n".join([f"{name}: complete{pictures}{known}", *notes])
    lines = [f"{name}: missing:", *(f"  {path}   from {source}" for path, source in finding.files.items())]
    if finding.pictures:
        shown = finding.pictures[:most]
        lines.append(
            f"  {len(finding.pictures)} of {finding.asked} pictures" + ("" if most is None else ", among them:")
        )
        lines += [f"    {path}" for path in shown]
    return "\n".join([*lines, *notes])
