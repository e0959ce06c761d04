"""Shared by all command lines: a parser with one-line errors, one-line exception messages, and short paths."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from vlm_pruner.provenance import ROOT

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
DENSE = "dense"  # the model without pruning, in commands, records and tables
COLUMNS = 80  # of the terminal that our output fits


def one_line(error: BaseException) -> str:
    """An exception's message on one line, or its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line: the problem, and how to get help.

    In an argument of `type=Path` or `type=home`, `~` is the home folder: shells do not expand it in --flag=~/file.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, lambda text: Path(home(text)))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but the subcommand reports an unknown flag, and suggests the nearest one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._subparser(parsed)
            flags = [flag for action in parser._actions for flag in action.option_strings]
            words = [word for word in unknown if word.startswith("--")] or unknown
            hint = nearest(words[0].split("=")[0], flags)
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def _subparser(self, parsed: argparse.Namespace) -> argparse.ArgumentParser:
        """The parser of the subcommand that was called, or this parser if it has no subcommands."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices.get(getattr(parsed, action.dest), self)
        return self

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            message += nearest(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        self.exit(BAD_INPUT, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean NAME?" if a known name is like the word, else ""."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def home(text: str) -> str:
    """A path with `~` expanded; for an argument's `type=`."""
    return os.path.expanduser(text)


def at_least(least: int, **flags: int | None) -> None:
    """Raises a ValueError that names the flag of a value below `least`; a flag that is None was not given."""
    for name, value in flags.items():
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")


def words(text: str) -> list[str]:
    """Splits a comma-separated list; for an argument's `type=`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def wrapped(text: str, indent: str = "", first: str = "") -> str:
    """The text in lines of at most COLUMNS characters; its own line breaks stay. first: the first line's indent."""
    fill = textwrap.TextWrapper(COLUMNS, first, indent, break_on_hyphens=False).fill
    return "\n".join(map(fill, text.splitlines()))


def fitted(examples: str) -> str:
    """The examples and notes under a command's help, in COLUMNS: long commands go on in the next line, as shells do."""
    parts = re.split(r"\n{2,}", examples.strip("\n"))
    return "\n\n".join(_fitted_part(part.splitlines()) for part in parts) + "\n"


def _fitted_part(lines: list[str]) -> str:
    if any(line.startswith(" ") for line in lines):
        return "\n".join(_fitted_command(line) for line in lines)
    return textwrap.fill(" ".join(lines), COLUMNS, break_on_hyphens=False)


def _fitted_command(line: str) -> str:
    made = []
    while len(line) > COLUMNS and (cut := line.rfind(" -", 8, COLUMNS - 1)) > 0:
        made.append(f"{line[:cut]} \\")
        line = f"      {line[cut + 1 :]}"
    return "\n".join([*made, line])


def typed(path: str | Path) -> str:
    """The path as the user can type it: relative to the working folder if it is inside."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def shown(path: Path) -> str:
    """The path relative to the working folder or the repository, if it is inside one of them."""
    for base in (Path.cwd(), ROOT):
        if path.resolve().is_relative_to(base):
            return str(path.resolve().relative_to(base))
    return str(path)
