"""Scores the nine benchmarks: answer files in, numbers out; no model, no torch.

Each benchmark is one module with a function ``score(data, answers, ...) -> Score`` and ``NEEDS``, the files that it
reads. Only the table below knows them all; it imports a module on first use.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from vlm_pruner.console import one_line
from vlm_pruner.scoring.base import Coverage, Headline, Score, ScoreError, Table, Unscored
from vlm_pruner.scoring.needs import Needs

MODULES = {
    name: f"vlm_pruner.scoring.{name}"
    for name in ("gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "ocrbench", "seed", "okvqa")
}


def score(benchmark: str, data: str | Path, answers: str | Path, allow_errors: int = 0, **more: Any) -> Score:
    """Scores an answer file. more: arguments of one benchmark alone, such as ScienceQA's split.

    Raises ScoreError, with the cause, even for malformed data that the scorer's own checks do not foresee.
    """
    try:
        found: Score = _module(benchmark).score(data, answers, allow_errors, **more)
        return found
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ScoreError(
            f"{data} or {answers} is not of {benchmark}'s form ({type(error).__name__}: {one_line(error)})"
        ) from error


def needs(benchmark: str) -> Needs:
    """The files of one benchmark."""
    found: Needs = _module(benchmark).NEEDS
    return found


def _module(benchmark: str) -> Any:
    if benchmark not in MODULES:
        raise ScoreError(f"no benchmark is called {benchmark!r}; there are: {', '.join(MODULES)}")
    return import_module(MODULES[benchmark])


__all__ = [
    "MODULES", "Coverage", "Headline", "Needs", "Score", "ScoreError", "Table", "Unscored", "needs", "score",
]  # fmt: skip
