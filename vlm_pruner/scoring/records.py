"""Reading benchmark files and answer files, with errors that name file and line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import ScoreError

Record = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """The lines of an answer file, and how many of them record a failure in place of a reply."""

    lines: list[Record]
    failed: int

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.failed:
            return ()
        return (f"{self.failed} of {len(self.lines)} items failed while generating and count as empty replies",)


def read_json(path: str | Path) -> Any:
    """One JSON document."""
    text = _read(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ScoreError(f"{path} is not valid JSON: {error}") from None


def read_jsonl(path: str | Path) -> list[Record]:
    """One JSON object per line; empty lines are skipped."""
    records = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            records.append(_parse(line, path, number))
    return records


def read_answers(path: str | Path, allow_errors: int = 0) -> Answers:
    """An answer file. Recorded failures beyond ``allow_errors`` refuse the whole file.

    A failed item has an empty text, which some official scorers read as an answer ("yes" in POPE): it is never scored
    unless the caller says how many such items are acceptable.
    """
    lines = read_jsonl(path)
    if not lines:
        raise ScoreError(f"{path} holds no answers: generate them first")
    failed = [line for line in lines if line.get("error")]
    if len(failed) > allow_errors:
        first = failed[0]
        raise ScoreError(
            f"{path}: {len(failed)} of {len(lines)} items failed while generating, first question"
            f" {first.get('question_id')!r}: {first['error']}; run the generation again with --retry-errors, or pass"
            f" --allow-errors {len(failed)} to count them as empty replies"
        )
    return Answers(lines, len(failed))


def field(record: Record, name: str, path: str | Path) -> Any:
    """``record[name]``, with an error that says which file lacks it."""
    if name not in record:
        raise ScoreError(f"{path}: question {record.get('question_id')!r} has no {name!r}")
    return record[name]


def find_file(folder: str | Path, names: Sequence[str], what: str) -> Path:
    """The first of ``names`` (paths or glob patterns below ``folder``) that exists; a pattern must match once.

    ``folder`` may also be the file itself, as the field's own commands name it.
    """
    root = Path(folder)
    if root.is_file():
        return root
    if not root.is_dir():
        raise ScoreError(f"{root} is not a folder; --data takes the benchmark's own folder")
    for name in names:
        found = sorted(root.glob(name))
        if len(found) > 1:
            listed = ", ".join(path.name for path in found)
            raise ScoreError(f"{root} has several {what} files ({listed}); leave one that matches {name}")
        if found:
            return found[0]
    raise ScoreError(f"{root} has no {what}: expected {' or '.join(names)}")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ScoreError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScoreError(f"{path} cannot be read: {error}") from None


def _parse(line: str, path: str | Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ScoreError(f"{path}, line {number} is not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise ScoreError(f"{path}, line {number} is a {type(record).__name__}, not an object")
    return record
