"""Question files: reading them item by item, and splitting them across runs."""

from __future__ import annotations

import json
import math
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlm_pruner.console import one_line
from vlm_pruner.llava.eval.errors import ItemError, UsageError
from vlm_pruner.llava.eval.prompts import SHORT_ANSWER
from vlm_pruner.scoring.records import describe

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

ID = (str, int, float)


@dataclass(frozen=True)
class Question:
    """One item to ask.

    ``index`` is the item's place in the whole question file, from 0: the identity of an answer, because question ids
    repeat in some benchmarks. ``asked`` is the user's turn without the image token, ``prompt`` what the answer line
    records. Each of ``images`` is a path below the image folder, an encoded picture, or a picture; each of ``videos``,
    which come after them, a file or a folder of frames: a name below the image folder, or a `Path`. ``extra`` joins the
    answer line.
    """

    index: int
    question_id: Any
    asked: str
    prompt: str
    images: tuple[str | bytes | Image, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    videos: tuple[str | Path, ...] = ()


@dataclass(frozen=True)
class BrokenQuestion:
    """A line that is not a question; the answers record it with its error."""

    index: int
    error: str
    question_id: Any = None
    prompt: str = ""


Item = Question | BrokenQuestion
Parse = Callable[[int, dict[str, Any]], Question]  # place in the file, record


def read_lines(path: str | Path, parse: Parse) -> list[Item]:
    """Every non-empty line of a JSON-lines file; unreadable ones become broken questions."""
    lines = [(f"line {n}", raw) for n, raw in enumerate(_read_bytes(path).split(b"\n"), start=1) if raw.strip()]
    return _some([_read(raw, place, index, parse) for index, (place, raw) in enumerate(lines)], path)


def read_list(path: str | Path, parse: Parse) -> list[Item]:
    """Every entry of a JSON list."""
    try:
        records = json.loads(_read_bytes(path).decode("utf-8"))
    except RecursionError:
        raise UsageError(f"--question-file {path} is nested too deeply to be read") from None
    except ValueError as error:
        raise UsageError(f"--question-file {path} is not valid JSON: {error}") from None
    if not isinstance(records, list):
        raise UsageError(f"--question-file {path} holds a {type(records).__name__}, not a list of questions")
    return read_records(records, path, parse)


def read_records(records: Iterable[Any], path: str | Path, parse: Parse) -> list[Item]:
    """Every record; those that ``parse`` refuses become broken questions."""
    return _some([_read(record, f"entry {i + 1}", i, parse) for i, record in enumerate(records)], path)


def text_question(index: int, record: dict[str, Any]) -> Question:
    """``{"question_id", "image", "text"}``: the file already holds the whole question."""
    text, image = require(record, "text", str), require(record, "image", str)
    return Question(index, require(record, "question_id", ID), asked=text, prompt=text, images=(image,))


def short_question(index: int, record: dict[str, Any], id_name: str, image_name: str) -> Question:
    """``{"question", ...}``: the answer is to be a single word or phrase, which is asked for but not recorded."""
    text, image = require(record, "question", str), require(record, image_name, str)
    return Question(index, require(record, id_name, ID), f"{text}\n{SHORT_ANSWER}", text, images=(image,))


def require(record: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """``record[name]`` of the right type, or an error for this line only."""
    value = record.get(name)
    if value is None or not isinstance(value, kind):
        found = "is missing" if value is None else f"is {describe(value)}"
        raise ItemError(f"{name!r} {found}")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ItemError(f"{name!r} holds half of a surrogate pair (\\ud83d, say): the file was cut within a character")
    return value


def chunk(items: Sequence[T], count: int, index: int) -> list[T]:
    """Part ``index`` of ``count`` consecutive parts of equal size (LLaVA's split: the last parts may be short)."""
    if count < 1 or not 0 <= index < count:
        raise UsageError(f"--chunk-idx {index} is not one of --num-chunks {count}: it runs from 0 to {count - 1}")
    size = math.ceil(len(items) / count)
    return list(items[index * size : (index + 1) * size])


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes().removeprefix(BOM_UTF8)
    except OSError as error:
        raise UsageError(f"--question-file {path} cannot be read: {error.strerror}") from None


def _some(items: list[Item], path: str | Path) -> list[Item]:
    if not items:
        raise UsageError(f"--question-file {path} has no question")
    return items


def _read(raw: Any, place: str, index: int, parse: Parse) -> Item:
    record = raw
    try:
        if isinstance(raw, bytes):
            record = json.loads(raw.decode("utf-8"))
        if not isinstance(record, dict):
            raise ItemError(f"a {type(record).__name__}, not an object")
        return parse(index, record)
    except Exception as error:  # nothing that a line holds may end the run
        foreseen = isinstance(error, ValueError)  # bad UTF-8, bad JSON or a missing field
        problem = str(error) if foreseen else f"{type(error).__name__}: {one_line(error)}"
        return BrokenQuestion(index, f"question {place} cannot be read: {problem}", _identity(record))


def _identity(record: Any) -> Any:
    """The id of a record that is no question, if it has one."""
    if not isinstance(record, dict):
        return None
    found = next((record[name] for name in ("question_id", "id", "index") if name in record), None)
    return found if isinstance(found, ID) else None
