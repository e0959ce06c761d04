"""Builds a method from what a user typed. Every command line, answer generator and page goes through here.

A name is one that `methods.get` knows, a method in a file (`my_file.py:MyPruner`), or a shorthand. It may carry
settings (`vlm-pruner:spatial_weight=0:layer=1`), which are parsed by the type of the method's field, so that a mistyped
one fails here, in one line, and not in the middle of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vlm_pruner.errors import PruningError
from vlm_pruner.methods import files
from vlm_pruner.methods.base import Pruner, get

BUDGET = ("reduction_ratio", "keep_tokens")
SHORTHANDS = {"vlm-pruner-16": "vlm-pruner:token_batch=16"}  # the token batch of the paper's tables
SHORT_FORMS = {"token_batch=16": "B=16"}  # of what a shorthand implies, in tables

Make = Callable[..., Pruner]  # a method from keep_tokens=n, or from reduction_ratio=r
Settings = Mapping[str, Any] | Iterable[str]  # by field, or "field=value"


def from_words(
    name: str, budget: Mapping[str, Any], settings: Settings = (), *,
    spelled: Mapping[str, str] | None = None, seed: int | None = None, trusted: bool = True,
) -> Pruner:  # fmt: skip
    """Builds the method `name` with a budget, such as {"keep_tokens": "64"}, and settings; see `maker`."""
    return maker(name, settings, spelled=spelled, seed=seed, trusted=trusted)(**budget)


def maker(
    name: str, settings: Settings = (), *, spelled: Mapping[str, str] | None = None, seed: int | None = None,
    trusted: bool = True,
) -> Make:  # fmt: skip
    """A function that builds the method once its budget is known.

    settings: values may be words. spelled: for messages, how the user typed a field if not by its name.
    seed: for a method that draws, unless its settings have one. trusted: whether a name may make us run a file.
    Raises PruningError for an unknown method or setting, a value of the wrong type, and a setting given twice.
    """
    short, own = files.split(name)
    base, implied = files.split(SHORTHANDS.get(short, short))
    method, spelled = find(base, trusted=trusted), spelled or {}
    in_name, types = settings_of([*implied, *own]), _types(method)
    apart = dict(settings) if isinstance(settings, Mapping) else settings_of(settings)
    values = {field: _setting(method, field, value, field) for field, value in in_name.items()}
    for field, value in apart.items():
        _refuse_two(field, in_name.get(field, value), value)
        values[field] = _setting(method, field, value, spelled.get(field, field))
    if seed is not None and "seed" in types:
        values.setdefault("seed", seed)

    def make(**budget: Any) -> Pruner:
        return method(**values, **{f: read(spelled.get(f, f), value, types[f]) for f, value in budget.items()})

    return make


def find(name: str, *, trusted: bool = True) -> type[Pruner]:
    """The class of a method by its name, or by its file: `my_file.py:MyPruner`."""
    if not files.is_file(name):
        return get(name)
    if not trusted:
        raise PruningError(
            f"{name} names a file, and a page that runs files for its visitors would run anybody's code; install the "
            "method as an entry point of the group vlm_pruner.methods instead (docs/adding_a_method.md)"
        )
    return files.load(name)


def printed_name(name: str) -> str:
    """A method's label, or its file without folders, with the settings that `name` carries."""
    short, settings = files.split(name)
    base, implied = files.split(SHORTHANDS.get(short, short))
    label = short.rpartition("/")[2] if files.is_file(base) else get(base).label
    shown = " ".join([*(SHORT_FORMS.get(word, word) for word in implied), ":".join(settings)])
    return f"{label} {shown}".strip()


def settings_of(words: Iterable[str]) -> dict[str, Any]:
    """Splits words of the form FIELD=VALUE. Raises PruningError for any other form, and for a field given twice."""
    settings: dict[str, Any] = {}
    for word in words:
        field, equals, value = word.partition("=")
        if not equals or not field:
            raise PruningError(f"{word!r} is not a setting; write FIELD=VALUE, for example layer=2")
        _refuse_two(field, settings.setdefault(field, value), value)
    return settings


def _refuse_two(field: str, first: Any, second: Any) -> None:
    if str(first) != str(second):
        raise PruningError(f"{field}={first} and {field}={second} are both given; give one of them")


def _setting(method: type[Pruner], field: str, value: Any, spelled: str) -> Any:
    types = _types(method)
    known = [name for name in types if name not in BUDGET]
    if field in BUDGET:
        raise PruningError(f"{spelled}={value} is a budget, not a setting: pass it as the budget")
    if field not in known:
        raise PruningError(
            f"{spelled}={value}: {spelled} means nothing to method {method.name!r}; leave it out, "
            f"or give one of its settings: {', '.join(known)}"
        )
    return read(spelled, value, types[field], getattr(method, field, None))


def _types(method: type[Pruner]) -> dict[str, Any]:
    """Types of the fields that a user can type in, in the order of the dataclass."""
    hints = get_type_hints(method)
    return {entry.name: hints[entry.name] for entry in fields(method) if entry.compare}


def read(name: str, value: Any, kind: Any, example: Any = None) -> Any:
    """Parses `value`, a word or a number, as a `kind`. Raises PruningError with the value, the kind and an example."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if NoneType in kinds and (value is None or str(value).lower() in ("none", "null")):
        return None
    plain = [one for one in kinds if one is not NoneType]
    try:
        reader, described = _reader(*plain)
    except (KeyError, TypeError):
        raise PruningError(f"{name} has the type {kind}, which cannot be given as text; set it in Python") from None
    try:
        return reader(value)
    except (TypeError, ValueError, OverflowError):
        optional = " or None" if NoneType in kinds else ""
        shown = "" if example is None else f"; write for example {name}={example}"
        raise PruningError(f"{name}={value!r} is not {described}{optional}{shown}") from None


def _reader(kind: Any) -> tuple[Callable[[Any], Any], str]:
    """A parser of values of the `kind`, which raises ValueError, and the kind in words. KeyError for other kinds."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return lambda value: choices[choices.index(value)], " or ".join(map(repr, choices))
    if get_origin(kind) is tuple:
        part, described = _reader(get_args(kind)[0])
        return lambda value: tuple(map(part, _parts(value))), f"{described.removeprefix('a ')}s with commas between"
    return _READERS[kind]


def _truth(value: Any) -> bool:
    word = str(value).lower()
    return word == "true" if isinstance(value, bool | str) and word in ("true", "false") else _refuse()


def _whole(value: Any) -> int:
    if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
        return int(value)
    number = _number(value)
    return int(number) if number.is_integer() else _refuse()


def _number(value: Any) -> float:
    number = float(_refuse() if isinstance(value, bool) else value)
    return number if math.isfinite(number) else _refuse()


def _parts(value: Any) -> list[Any]:
    """The parts of "8,16", "(8, 16)" or [8, 16]."""
    if isinstance(value, str):
        return [part for part in value.strip().strip("()[]").split(",") if part.strip()]
    return list(value)


def _refuse() -> Any:
    raise ValueError


_READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (_truth, "True or False"), int: (_whole, "a whole number"), float: (_number, "a number"), str: (str, "a name")
}  # fmt: skip
