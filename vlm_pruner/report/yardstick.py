"""AngelSlim's table of Qwen2.5-VL-7B beside our results of lmms-eval: theirs, ours and the difference.

Their documentation prints no splits and no metrics. TASKS has the ones that this table takes from lmms-eval.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vlm_pruner.console import DENSE
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.words import printed_name
from vlm_pruner.report import table
from vlm_pruner.report.paper_numbers import average, shipped
from vlm_pruner.report.paper_results import TableError
from vlm_pruner.report.table import number, render

MODEL = "Qwen2.5-VL-7B"
SOURCE = "AngelSlim's documentation (token compressor, April 2026), as printed"
AVERAGE = "avg"
OURS, THEIRS, DIFFERENCE = "ours", "theirs", "diff"


@dataclass(frozen=True)
class Task:
    """A column: lmms-eval's task and metric, and the factor to the printed scale. header: for narrow tables."""

    name: str
    metric: str
    scale: float
    header: str


TASKS = {
    "AI2D": Task("ai2d", "exact_match", 100, "AI2D"),
    "ChartQA": Task("chartqa", "relaxed_overall", 100, "Chart"),
    "DocVQA": Task("docvqa_val", "anls", 100, "Doc"),
    "MMB_CN": Task("mmbench_cn_dev", "gpt_eval_score", 1, "MB-CN"),
    "MMB": Task("mmbench_en_dev", "gpt_eval_score", 1, "MB-EN"),
    "MME": Task("mme", "mme_perception_score", 1, "MME"),
    "MMStar": Task("mmstar", "average", 100, "Star"),
    "OCRBench": Task("ocrbench", "ocrbench_accuracy", 100, "OCR"),
    "POPE": Task("pope", "pope_accuracy", 100, "POPE"),
    "SQA": Task("scienceqa_img", "exact_match", 100, "SQA"),
    "TextVQA": Task("textvqa_val", "exact_match", 100, "TextV"),
}


@dataclass
class Row:
    """One method at one share of kept visual tokens. scores: by column. average: mean share of dense, in %."""

    method: str
    kept: float
    scores: dict[str, float] = field(default_factory=dict)
    average: float | None = None
    trained: bool = False


@cache
def printed() -> tuple[Row, ...]:
    """Their rows, in their order."""
    return tuple(
        Row(record["method"], float(record["kept"]), {name: float(record[name]) for name in TASKS},
            float(record["avg"]), record["trained"] == "yes")
        for record in shipped("qwen25vl_yardstick.csv")
    )  # fmt: skip


def read(paths: Iterable[str | Path]) -> list[Row]:
    """Our rows, from lmms-eval's *_results.json among `paths` and in folders; dense first.

    Raises TableError for a file that is not one, for two results of one cell, and for no result at all.
    """
    rows: dict[tuple[str, float], Row] = {}
    taken: dict[tuple[str, float, str], Path] = {}
    for path in _files(paths):
        method, kept, scores = _result(path)
        row = rows.setdefault((method, kept), Row(method, kept))
        for name, score in scores.items():
            if (method, kept, name) in taken:
                raise TableError(
                    f"{taken[method, kept, name]} and {path} are both {TASKS[name].name} of {method} at "
                    f"{100 * kept:g} % kept; give only one of them"
                )
            taken[method, kept, name] = path
            row.scores[name] = score
    if not rows:
        raise TableError(f"no *_results.json of lmms-eval in {' '.join(map(str, paths))}; give its folder of results")
    dense = next((row.scores for row in rows.values() if row.method == DENSE), {})
    for row in rows.values():
        row.average = average(row.scores, dense, TASKS)
    return sorted(rows.values(), key=lambda row: -row.kept)


def _files(paths: Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise TableError(f"{path} does not exist; give lmms-eval's *_results.json, or folders of them")
        found += sorted(path.rglob("*_results.json")) if path.is_dir() else [path]
    return found


def _result(path: Path) -> tuple[str, float, dict[str, float]]:
    """The method as printed, the share that it keeps, and the scores of a result file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        given, results = _arguments(document["config"]["model_args"]), document["results"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(f"{path} is no result of lmms-eval ({type(error).__name__}: {error})") from None
    scores = {}
    for name, task in TASKS.items():
        if task.name in results:
            values = [value for key, value in results[task.name].items() if key.partition(",")[0] == task.metric]
            if len(values) != 1 or not isinstance(values[0], int | float):
                raise TableError(f"{path} has no single number {task.metric} of {task.name}; run the task again")
            scores[name] = task.scale * float(values[0])
    method, ratio = given.get("method", "vlm-pruner"), float(given.get("reduction_ratio") or 0)
    if "keep_tokens" in given:
        raise TableError(
            f"{path} has keep_tokens={given['keep_tokens']}, and the table has shares; use reduction_ratio"
        )
    if method == DENSE or ratio == 0:
        return DENSE, 1.0, scores
    return _printed(method), round(1 - ratio, 4), scores


def _arguments(model_args: str | Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(model_args, str):
        return {key: str(value) for key, value in model_args.items()}
    return dict(pair.split("=", 1) for pair in model_args.split(",") if "=" in pair)


def _printed(method: str) -> str:
    try:
        return printed_name(method)
    except PruningError:  # of another version
        return method


# Lines: (method, kept, kind, values)

Line = tuple[str, float, str, Mapping[str, float]]


def lines(ours: Sequence[Row]) -> list[Line]:
    """Per share kept, from all down, each of their rows with ours and the difference, then our further methods."""
    found: list[Line] = []
    for kept in sorted({row.kept for row in printed()} | {row.kept for row in ours}, reverse=True):
        own = {row.method: row for row in ours if row.kept == kept}
        for row in (row for row in printed() if row.kept == kept):
            mine = own.pop(row.method, None)
            if mine is not None:
                found.append((row.method, kept, OURS, _values(mine)))
            found.append((row.method, kept, THEIRS, _values(row)))
            if mine is not None:
                theirs, values = _values(row), _values(mine)
                found.append((row.method, kept, DIFFERENCE, {n: values[n] - theirs[n] for n in values if n in theirs}))
        found += [(row.method, kept, OURS, _values(row)) for row in own.values()]
    return found


def _values(row: Row) -> dict[str, float]:
    return row.scores | ({} if row.average is None else {AVERAGE: row.average})


def notes() -> list[str]:
    trained = sorted({row.method for row in printed() if row.trained})
    tasks = ", ".join(f"{name} {task.name} {task.metric}" for name, task in TASKS.items())
    return [
        f"theirs: {SOURCE}; {' and '.join(trained)} need trained weights",
        "their splits and metrics are not printed; ours are lmms-eval's " + tasks,
        "avg: mean over the eleven of score / dense, in %, each against its own dense row",
    ]


def terminal(ours: Sequence[Row]) -> str:
    header = [f"{MODEL}, kept", "", *(task.header for task in TASKS.values()), "avg"]
    body, previous = [], None
    for method, kept, kind, values in lines(ours):
        name = "" if (method, kept) == previous else f"{method} {100 * kept:g}%"
        previous = (method, kept)
        body.append([name, *_cells(kind, values)])
    said = [textwrap.fill(note, 100, subsequent_indent="  ") for note in notes()]
    return "\n".join([render(header, body, left=2), "", *said])


def markdown(ours: Sequence[Row]) -> str:
    head = ["kept", "method", "", *TASKS, AVERAGE]
    rows = [[f"{100 * kept:g} %", method, *_cells(kind, values)] for method, kept, kind, values in lines(ours)]
    return "\n".join([f"### {MODEL}", "", table.markdown(head, rows, 3), "", *(f"- {note}" for note in notes())])


def as_csv(ours: Sequence[Row]) -> str:
    columns = (*TASKS, AVERAGE)
    rows = [
        [MODEL, kept, name, kind, *(v.get(column, "") for column in columns)] for name, kept, kind, v in lines(ours)
    ]
    return table.as_csv(["model", "kept", "method", "row", *columns], rows)


def _cells(kind: str, values: Mapping[str, float]) -> list[str]:
    sign = "+" if kind == DIFFERENCE else ""
    return [kind, *(number(values.get(name), 0 if name == "MME" else 1, sign) for name in (*TASKS, AVERAGE))]


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {"terminal": terminal, "md": markdown, "csv": as_csv}
