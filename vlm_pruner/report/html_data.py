"""Result files as the data of the report page, each picture once and small."""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_pruner.console import one_line
from vlm_pruner.drawing.colours import PADDING, order_colour
from vlm_pruner.drawing.svg import thumbnail
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.images import ImageReadError, read_image

SIDE = 224  # longer side of a thumbnail in pixels
QUALITY = 68
SCORE = {"headline", "metrics"}  # a result of `score` has one of them, and names no command
UNCHANGED = (
    "date", "benchmarks", "arms", "cells", "not_run", "statistics", "config", "environment", "model", "prune_or_resize",
)  # fmt: skip
RAMP = 16  # colours of the order of selection that the page interpolates between


def read_results(paths: Sequence[Path]) -> dict[str, Any]:
    """The page's data. paths: result files, or folders that hold a results.json.

    Raises FileNotFoundError and ValueError that name the file and what is wrong with it.
    """
    runs, others = [], []
    for path in paths:
        content, path = read_document(path)
        if content.get("command") == "vlm-pruner compare":
            runs.append(_whole(_run, content, path))
        elif str(content.get("command")).startswith("vlm-pruner ") or SCORE & content.keys():
            others.append(_whole(_other, content, path))
        else:
            raise ValueError(
                f"{path} is no result file of vlm-pruner: it names no command and has no score; give what compare, "
                "bench or ablate wrote into --out, or score into --json"
            )
    ramp = [order_colour(index, RAMP) for index in range(RAMP)]
    return {"runs": runs, "others": others, "ramp": ramp}


def read_document(path: Path) -> tuple[dict[str, Any], Path]:
    """A result and its file. path: that, or a folder that holds a results.json. Raises as `read_results`."""
    path = path / "results.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; give a result file, or a folder with results.json") from None
    except (ValueError, RecursionError) as error:  # the last: nested a thousand deep
        raise ValueError(f"{path} is not JSON ({error}); give a result file of vlm-pruner") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; give a result file of vlm-pruner")
    return content, path


def _whole(
    read: Callable[[dict[str, Any], Path], dict[str, Any]], content: dict[str, Any], path: Path
) -> dict[str, Any]:
    """Applies `read` to a result. Raises ValueError if a part is missing or malformed."""
    try:
        return read(content, path)
    except FileNotFoundError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        said = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({one_line(error)})"
        command = content.get("command", "vlm-pruner score")
        raise ValueError(f"{path} {said}: it is not a whole result of {command}; run it again") from None


def _run(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """One comparison: its tables unchanged, its answers by item, its pictures as the model saw them.

    grid: [rows, columns] of the tokens; None if there are several grids.
    """
    answers = _answers(path.parent / content.get("journal", "answers.jsonl"))
    arms = {arm["key"]: number for number, arm in enumerate(content["arms"])}
    fit = _fit(content["model"])
    grid = [fit.rows, fit.columns] if fit and fit.kind in ("stretch", "pad", "crop") and fit.frames == 1 else None
    pictures = list(dict.fromkeys(item["image"] for item in content["items"]))
    numbers = {name: number for number, name in enumerate(pictures)}
    items = [
        {
            "b": item["benchmark"], "q": item["question_id"], "k": item["kind"], "t": item["text"],
            "g": item["answer"], "p": numbers[item["image"]],
            "a": _by_arm(answers.get((item["benchmark"], str(item["question_id"])), ()), arms),
        }
        for item in content["items"]
    ]  # fmt: skip
    return {
        "name": path.parent.name or str(path),
        **{name: content.get(name) for name in UNCHANGED},
        "items": items,
        "pictures": [_thumbnail(Path(name), path.parent, fit if grid else None) for name in pictures],
        "grid": grid,
    }


def _answers(journal: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Answers by (benchmark, question). The first line of a journal is its header."""
    if not journal.is_file():
        raise FileNotFoundError(f"{journal} does not exist: a comparison is shown with the answers written beside it")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with journal.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if "arm" in record:
                found.setdefault((record["benchmark"], str(record["question_id"])), []).append(record)
    return found


def _by_arm(records: Iterable[Mapping[str, Any]], arms: Mapping[str, int]) -> dict[int, list[Any]]:
    """Arm number -> [answer, 1 if right, packed kept tokens in order of selection or None]."""
    return {
        arms[record["arm"]]: [record["text"], int(record["correct"]), pack(record.get("kept"))]
        for record in records
        if record["arm"] in arms
    }


def pack(kept: Sequence[int] | None) -> str | None:
    """Indices as 16-bit numbers in base64: half the size of JSON's digits. None stays None."""
    if kept is None:
        return None
    numbers = array("H", kept)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _fit(model: Mapping[str, Any]) -> Fit | None:
    """Maps pictures to the grid: LLaVA's way if the file does not say, None if every picture has its own grid."""
    if model["grid"] is None:
        return None
    if model.get("fit"):
        return Fit.from_dict(model["fit"])
    rows, columns = model["grid"]
    return Fit("pad", rows, columns)


def _thumbnail(path: Path, folder: Path, fit: Fit | None) -> str | None:
    """A data URL; None if the picture is missing. fit: adds the padding that the model saw."""
    try:
        picture = read_image(path if path.is_file() else folder / path)
    except ImageReadError:
        return None
    if fit is not None:
        left, top, right, bottom = fit.views(picture.size)[0].region
        canvas = Image.new("RGB", (round(right - left), round(bottom - top)), PADDING)
        canvas.paste(picture, (round(-left), round(-top)))
        picture = canvas
    return thumbnail(picture, SIDE, quality=QUALITY, method=4)


def _other(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Any other result file (scores, timings): its named numbers and its tables."""
    lists = {"cases", "break_even", "arms", "items", "records"}
    numbers = dict(_numbers({name: value for name, value in content.items() if name not in lists | {"environment"}}))
    return {"name": str(path), "command": content.get("command"), "numbers": numbers, "tables": _tables(content)}


def _numbers(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Scalars of nested objects as ("outer.inner", value)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        yield name, value


def _tables(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases of `vlm-pruner bench`: per case, one row per arm with the median of each figure."""
    tables = []
    for case in content.get("cases", ()):
        sizes = ", ".join(f"{name} {case[name]}" for name in ("batch", "visual", "text", "new_tokens") if name in case)
        figures = list(dict.fromkeys(name for arm in case["arms"] for name in arm["figures"]))
        rows = [
            [arm["label"], arm["tokens"], *((arm["figures"].get(name) or {}).get("median") for name in figures)]
            for arm in case["arms"]
        ]
        tables.append({"title": sizes, "head": ["method", "tokens", *figures], "rows": rows})
    return tables
