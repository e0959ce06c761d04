"""Reads benchmark files and answer files, with errors that name file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlm_pruner.scoring.base import Coverage, ScoreError

Record = dict[str, Any]
K = TypeVar("K", bound=Hashable)

NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number", type(None): "null"}


@dataclass(frozen=True)
class Answer:
    """One line of an answer file. question_id: None only if the question itself could not be read.

    reply: "" if the generation failed.
    """

    line: int
    question_id: str | int | float | None
    prompt: str
    reply: str
    error: str | None = None


@dataclass(frozen=True)
class Answers:
    """The lines of an answer file. Failed ones have an empty reply; there are no more than the caller allows."""

    path: str | Path
    lines: list[Answer]

    @property
    def failed(self) -> int:
        return sum(line.error is not None for line in self.lines)

    @property
    def readable(self) -> list[Answer]:
        """Lines that identify their question."""
        return [line for line in self.lines if line.question_id is not None]

    def join(
        self, questions: Collection[K], key: Callable[[Answer], K], data: object
    ) -> tuple[dict[K, Answer], Coverage]:
        """Question -> its last reply, and the missing, repeated and left-over ones. key: the question of a reply.

        Raises ScoreError if no reply answers a question of `data`.
        """
        keys = [key(answer) for answer in self.readable]
        known = set(questions)
        found = {name: answer for name, answer in zip(keys, self.readable, strict=True) if name in known}
        if not found:
            raise ScoreError(f"{self.path} answers none of the questions of {data}")
        hits = sum(name in known for name in keys)
        return found, Coverage(
            questions=len(questions), missing=sum(name not in found for name in questions),
            repeated=hits - len(found), unknown=len(keys) - hits, failed=self.failed, replies=len(self.lines),
        )  # fmt: skip


def id_of(answer: Answer) -> str:
    """The question's id as text: some files contain numbers, others their digits."""
    return str(answer.question_id)


def read_json(path: str | Path, kind: type = object) -> Any:
    """Reads one JSON document of the given kind."""
    document = _parse(read_text(path), f"{path}")
    _check_kind(document, kind, f"{path} holds")
    return document


def read_jsonl(path: str | Path) -> list[Record]:
    """Reads one JSON object per line; skips empty lines."""
    return [record for _, record in _numbered(path)]


def read_answers(path: str | Path, allow_errors: int = 0, reply_fields: Sequence[str] = ("text",)) -> Answers:
    """Reads an answer file. More failures than ``allow_errors`` refuse the whole file.

    A failed item has an empty text, which some official scorers read as an answer ("yes" in POPE): it is never
    scored unless the caller states how many such items are acceptable. A reply that is not text counts as failed too.
    """
    lines = [_answer(record, path, number, reply_fields) for number, record in _numbered(path)]
    if not lines:
        raise ScoreError(f"{path} holds no answers: generate them first")
    check_failed([(line.line, line.question_id, line.error) for line in lines], path, allow_errors)
    return Answers(path, lines)


def check_failed(
    lines: Sequence[tuple[int, Any, str | None]], path: str | Path, allow_errors: int, place: str = "line"
) -> None:
    """Refuses more failures than allowed. lines: number, question id and error, if there is one."""
    failed = [line for line in lines if line[2] is not None]
    if len(failed) > allow_errors:
        number, question_id, error = failed[0]
        raise ScoreError(
            f"{path}: {len(failed)} of {len(lines)} items failed while generating, first {place} {number} (question"
            f" {question_id!r}): {error}; run the generation again with --retry-errors, or pass"
            f" --allow-errors {len(failed)} to count them as empty replies"
        )


def reply_error(record: Record, field: str) -> str | None:
    """Why an answer has no reply: the recorded failure, or a reply that is not text."""
    if record.get("error"):
        return str(record["error"])
    if field not in record:
        return f"it has no {field!r}"
    if not isinstance(record[field], str):
        return f"{field!r} is {describe(record[field])}, not text"
    return None


def field(record: Any, name: str, where: object, kind: type | tuple[type, ...] = object) -> Any:
    """Returns ``record[name]`` of the given kind, or raises an error that says where it is missing or different."""
    _check_kind(record, dict, f"{where} is")
    if name not in record:
        raise ScoreError(f"{where} has no {name!r}")
    _check_kind(record[name], kind, f"{where}: {name!r} is")
    return record[name]


def describe(value: object) -> str:
    """Describes a value's kind."""
    return NAMES.get(type(value), f"a {type(value).__name__}")


def read_text(path: str | Path) -> str:
    """Reads a text file without its byte order mark."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ScoreError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ScoreError(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at position {error.start}); convert it,"
            " for example with iconv -f latin1 -t utf-8"
        ) from None
    except OSError as error:
        raise ScoreError(f"{path} cannot be read: {error.strerror}") from None


def _numbered(path: str | Path) -> list[tuple[int, Record]]:
    records = []
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            record = _parse(text, f"{path}, line {number}")
            _check_kind(record, dict, f"{path}, line {number} is")
            records.append((number, record))
    return records


def _answer(record: Record, path: str | Path, number: int, reply_fields: Sequence[str]) -> Answer:
    reply = next((name for name in reply_fields if name in record), reply_fields[0])
    error = reply_error(record, reply)
    question_id, prompt = record.get("question_id"), record.get("prompt")
    if question_id is None and not record.get("error"):
        raise ScoreError(f"{path}, line {number} has no 'question_id'")
    if question_id is not None and not isinstance(question_id, str | int | float):
        raise ScoreError(f"{path}, line {number}: 'question_id' is {describe(question_id)}, not text or a number")
    if prompt is not None and not isinstance(prompt, str):
        raise ScoreError(f"{path}, line {number}: 'prompt' is {describe(prompt)}, not text")
    return Answer(number, question_id, prompt or "", "" if error else record[reply], error)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ScoreError(f"{where} is nested too deeply to be read") from None
    except ValueError as error:  # not JSON, or a number of more digits than Python reads
        raise ScoreError(f"{where} is not valid JSON: {error}") from None


def _check_kind(value: Any, kind: type | tuple[type, ...], found: str) -> None:
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ScoreError(f"{found} {describe(value)}, not {' or '.join(NAMES.get(k, k.__name__) for k in kinds)}")
