"""Scores of the nine benchmarks: answer files in, numbers out; no model, no torch.

Each benchmark is one module with one function ``score(data, answers, ...) -> Score``. The table below is the only
place that knows them all; modules are imported when asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from vlm_pruner.scoring.base import Headline, Score, ScoreError, Table

MODULES = {
    name: f"vlm_pruner.scoring.{name}"
    for name in ("gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "ocrbench", "seed", "okvqa")
}


def get(benchmark: str) -> Callable[..., Score]:
    """The scorer of one benchmark: ``scorer(data_dir, answers_file, allow_errors=0) -> Score``."""
    if benchmark not in MODULES:
        raise ScoreError(f"no benchmark is called {benchmark!r}; there are: {', '.join(MODULES)}")
    return import_module(MODULES[benchmark]).score


__all__ = ["MODULES", "Headline", "Score", "ScoreError", "Table", "get"]
