"""What every command line shares: a parser and errors of one line each, and paths that are short to read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from vlm_pruner.provenance import ROOT

BAD_INPUT = 2  # exit code


def one_line(error: BaseException) -> str:
    """An exception's message on one line; its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line: what is wrong, and where the help is."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def words(text: str) -> list[str]:
    """The parts of a comma-separated list, for `type=` of an argument."""
    return [word.strip() for word in text.split(",") if word.strip()]


def shown(path: Path) -> str:
    """The path relative to the working folder or the clone, if it lies in one of them."""
    for base in (Path.cwd(), ROOT):
        if path.resolve().is_relative_to(base):
            return str(path.resolve().relative_to(base))
    return str(path)
