"""Question files: reading them line by line, and splitting them over processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llava.eval.errors import ItemError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One item to ask.

    ``index`` is the item's place in the whole question file, from 0: the identity of an answer, because question ids
    repeat in some benchmarks. ``asked`` is the user's turn without the image token, ``prompt`` what the answer line
    records. ``image`` is a path below the image folder, an encoded picture, or None. ``extra`` joins the answer line.
    """

    index: int
    question_id: Any
    asked: str
    prompt: str
    image: str | bytes | None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BrokenQuestion:
    """A line that is not a question; it is recorded in the answers with its error."""

    index: int
    error: str
    question_id: Any = None
    prompt: str = ""


Item = Question | BrokenQuestion


def read_lines(path: str | Path, parse: Callable[[int, dict[str, Any]], Question]) -> list[Item]:
    """Every non-empty line of a JSON-lines file through ``parse(index, record)``; unreadable lines are kept as such."""
    items: list[Item] = []
    for number, raw in enumerate(_read_bytes(path).split(b"\n"), start=1):
        if raw.strip():
            items.append(_read_line(raw, number, len(items), parse))
    if not items:
        raise UsageError(f"--question-file {path} has no question")
    return items


def text_question(index: int, record: dict[str, Any]) -> Question:
    """``{"question_id", "image", "text"}``: the file already holds the whole question."""
    text, image = require(record, "text", str), require(record, "image", str)
    return Question(index, require(record, "question_id", object), asked=text, prompt=text, image=image)


def require(record: dict[str, Any], name: str, kind: type) -> Any:
    """``record[name]`` of the right type, or an error for this line only."""
    value = record.get(name)
    if value is None or not isinstance(value, kind):
        found = "is missing" if value is None else f"is a {type(value).__name__}"
        raise ItemError(f"{name!r} {found}")
    return value


def chunk(items: Sequence[T], count: int, index: int) -> list[T]:
    """Part ``index`` of ``count`` consecutive parts of equal size (LLaVA's split: the last parts may be short)."""
    if count < 1 or not 0 <= index < count:
        raise UsageError(f"--chunk-idx {index} is not one of --num-chunks {count}: it runs from 0 to {count - 1}")
    size = math.ceil(len(items) / count)
    return list(items[index * size : (index + 1) * size])


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"--question-file {path} cannot be read: {error.strerror}") from None


def _read_line(raw: bytes, number: int, index: int, parse: Callable[[int, dict[str, Any]], Question]) -> Item:
    record: Any = None
    try:
        record = json.loads(raw.decode("utf-8"))
        if not isinstance(record, dict):
            raise ItemError(f"a {type(record).__name__}, not an object")
        return parse(index, record)
    except ValueError as error:  # bad UTF-8, bad JSON or a missing field
        question_id = record.get("question_id") if isinstance(record, dict) else None
        return BrokenQuestion(index, f"question line {number} cannot be read: {error}", question_id)
