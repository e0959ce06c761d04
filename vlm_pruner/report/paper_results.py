"""Result files of `vlm-pruner score --json` as rows of the paper's tables: which model, budget and method made each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vlm_pruner import methods
from vlm_pruner.console import one_line
from vlm_pruner.report import paper_numbers
from vlm_pruner.report.paper_numbers import COLUMNS, DENSE
from vlm_pruner.scoring import ScoreError
from vlm_pruner.scoring.records import field, read_json


class TableError(ValueError):
    """A result that cannot be put into the table; the message names the file and the remedy."""


@dataclass(frozen=True)
class RowBudget:
    """The visual tokens kept of a picture: a share in percent with one decimal, or a count if the number of tokens
    before pruning is unknown."""

    kept: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Result:
    """One benchmark's score of one run."""

    path: Path
    model: str
    budget: RowBudget
    method: str
    settings: Mapping[str, Any]
    benchmark: str
    value: float
    stderr: float | None
    remarks: tuple[str, ...] = ()


@dataclass
class ResultRow:
    """The scores of one model, budget and method, by benchmark."""

    model: str
    budget: RowBudget
    method: str
    label: str
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    files: dict[str, Path] = dataclasses.field(default_factory=dict)


# Printed names of methods, and the paper's settings where they are not the defaults. A label without settings means the
# paper's.
LABELS = {
    "vlm-pruner": "VLM-Pruner",
    "fastv": "FastV",
    "sparsevlm": "SparseVLM",
    "pyramiddrop": "PyramidDrop",
    "mustdrop": "MustDrop",
    "dart": "DART",
    "divprune": "DivPrune",
}
PUBLISHED: dict[str, dict[str, Any]] = {"vlm-pruner": {"token_batch": 16}}
SHORT_SETTINGS = {"token_batch": "B", "threshold": "tau", "reduction_ratio": "r"}

# Visual tokens of a picture for models outside the paper: the embedded model has LLaVA-1.5's grid.
VISUAL_TOKENS = {"mini": 576}


def read_results(paths: Iterable[str | Path], model: str | None = None) -> list[Result]:
    """Every result file among `paths`; a folder means all result files below it.

    model: names all of them, for checkpoints whose own name says nothing.
    Raises TableError for a file that is not a result; other files in a folder are passed over.
    """
    results = []
    for path in map(Path, paths):
        whole = path.is_dir()
        files = sorted(path.rglob("*.json")) if whole else [path]
        results += [result for file in files if (result := _read(file, model, required=not whole)) is not None]
    return results


def rows_of(results: Sequence[Result]) -> list[ResultRow]:
    """Results grouped into rows, in order of first appearance.

    Raises TableError if two results would share a cell.
    """
    rows: dict[tuple[str, RowBudget, str], ResultRow] = {}
    for result, label in zip(results, _labels(results), strict=True):
        key = (result.model, result.budget, label)
        row = rows.setdefault(key, ResultRow(result.model, result.budget, result.method, label))
        if result.benchmark in row.scores:
            raise TableError(
                f"{row.files[result.benchmark]} and {result.path} are both {result.benchmark} of {result.model}, "
                f"{label}, with the same budget; give only one of them"
            )
        row.scores[result.benchmark] = result.value
        row.files[result.benchmark] = result.path
        if result.stderr is not None:
            row.errors[result.benchmark] = result.stderr
    return list(rows.values())


def paper_model(name: str) -> str | None:
    """The paper's model that a checkpoint's name means, as 'llava-v1.5-7b' means LLaVA-1.5-7B; None if none."""
    known = {_plain(model): model for model in paper_numbers.models()}
    plain = _plain(name)
    for old, new in (("v1.6vicuna", "next"), ("v1.6", "next"), ("v1.5", "1.5"), ("nextvicuna", "next")):
        plain = plain.replace(old, new)
    plain = plain.removesuffix("hf")
    return known.get(plain) or known.get(plain.replace("instruct", ""))


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def _read(path: Path, model: str | None, required: bool) -> Result | None:
    """One file's result. A file that is no result is an error if `required`, else None."""
    try:
        document = read_json(path)
    except ScoreError as error:
        raise TableError(str(error)) from None
    if not isinstance(document, dict) or "headline" not in document or str(document.get("benchmark")) not in COLUMNS:
        if required:
            raise TableError(f"{path} is not a result of 'vlm-pruner score BENCHMARK --json'; give such files")
        return None
    run = document.get("run")
    config = run.get("config") if isinstance(run, dict) else None
    if config is None:
        raise TableError(
            f"{path} does not say which run made its answers: their .meta.json was not beside them when they were "
            "scored; put it back and score again"
        )
    try:
        return _result(path, document, config, model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TableError(
            f"{path} is not a whole result of 'vlm-pruner score --json' ({type(error).__name__}: {one_line(error)});"
            " score again"
        ) from None


def _result(path: Path, document: Mapping[str, Any], config: Mapping[str, Any], model: str | None) -> Result:
    name = model or _model_name(field(config, "model_path", path, str))
    method = config.get("method") or {"name": DENSE}
    field(method, "name", path, str)
    settings = {key: value for key, value in method.items() if key not in ("name", "reduction_ratio", "keep_tokens")}
    headline = document["headline"]
    failed = document.get("failed", 0)
    return Result(
        path=path,
        model=paper_model(name) or name,
        budget=_budget(method, paper_model(name) or name),
        method=method["name"],
        settings=settings,
        benchmark=document["benchmark"],
        value=float(headline["value"]),
        stderr=None if headline.get("stderr") is None else float(headline["stderr"]),
        remarks=(f"{failed} of {document['n']} items failed and count as empty replies",) if failed else (),
    )


def _model_name(path: str) -> str:
    """The name of the checkpoint's folder, or of its parent if the folder is called checkpoint."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    named = [part for part in parts if part != "checkpoint"]
    return named[-1] if named else path


def _budget(method: Mapping[str, Any], model: str) -> RowBudget:
    if method["name"] == DENSE:
        return RowBudget(kept=100.0)
    if method.get("reduction_ratio") is not None:
        return RowBudget(kept=round(100 * (1 - method["reduction_ratio"]), 1))
    tokens = known_tokens(model)
    if tokens is None:
        return RowBudget(tokens=int(method["keep_tokens"]))
    return RowBudget(kept=round(100 * method["keep_tokens"] / tokens, 1))


def known_tokens(model: str) -> int | None:
    """The most visual tokens a picture has before pruning; None if unknown."""
    return VISUAL_TOKENS.get(model) or paper_numbers.visual_tokens(model)


def _labels(results: Sequence[Result]) -> list[str]:
    """Each result's method as printed, with the settings that differ from the usual ones."""
    usual: dict[str, Mapping[str, Any]] = {}
    labels = []
    for result in results:
        reference = usual.setdefault(result.method, {**result.settings, **_usual(result.method)})
        differing = [
            f"{SHORT_SETTINGS.get(name, name)}={value}"
            for name, value in result.settings.items()
            if reference.get(name) != value
        ]
        labels.append(" ".join([LABELS.get(result.method, result.method), *differing]))
    return labels


def _usual(method: str) -> dict[str, Any]:
    """The paper's settings of a method, else its defaults; empty for a method that this version lacks."""
    if method not in methods.names(every=True):
        return {}
    return {field.name: field.default for field in fields(methods.get(method))} | PUBLISHED.get(method, {})
