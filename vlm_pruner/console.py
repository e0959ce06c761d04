"""Shared by all command lines: a parser with one-line errors, one-line exception messages, and short paths."""

from __future__ import annotations

import argparse
import os
import textwrap
from pathlib import Path
from typing import Any, NoReturn

from vlm_pruner.provenance import ROOT

BAD_INPUT = 2  # exit code
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

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def home(text: str) -> str:
    """A path with `~` expanded; for an argument's `type=`."""
    return os.path.expanduser(text)


def words(text: str) -> list[str]:
    """Splits a comma-separated list; for an argument's `type=`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def wrapped(text: str) -> str:
    """The text in lines of at most COLUMNS characters; its own line breaks stay."""
    return "\n".join(textwrap.fill(line, COLUMNS, break_on_hyphens=False) for line in text.splitlines())


def shown(path: Path) -> str:
    """The path relative to the working folder or the repository, if it is inside one of them."""
    for base in (Path.cwd(), ROOT):
        if path.resolve().is_relative_to(base):
            return str(path.resolve().relative_to(base))
    return str(path)
