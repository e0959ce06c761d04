"""Result files as the data of the report page, each picture once and small."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_pruner.console import one_line
from vlm_pruner.drawing.colours import PADDING, order_colour
from vlm_pruner.drawing.svg import data_url
from vlm_pruner.geometry.fit import Fit

SIDE = 224  # longer side of a thumbnail in pixels
QUALITY = 68
SCORE = {"headline", "metrics"}  # a result of `score` has one of them, and names no command
RAMP = 16  # colours of the order of selection that the page interpolates between


def read_results(paths: Sequence[Path]) -> dict[str, Any]:
    """The page's data. paths: result files, or folders that hold a results.json.

    Raises FileNotFoundError and ValueError that name the file and what is wrong with it.
    """
    runs, others = [], []
    for path in paths:
        path = path / "results.json" if path.is_dir() else path
        content = _read_json(path)
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; give a result file, or a folder with results.json") from None
    except (ValueError, RecursionError) as error:  # the last: nested a thousand deep
        raise ValueError(f"{path} is not JSON ({error}); give a result file of vlm-pruner") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; give a result file of vlm-pruner")
    return content


def _whole(
    read: Callable[[dict[str, Any], Path], dict[str, Any]], content: dict[str, Any], path: Path
) -> dict[str, Any]:
    """What `read` makes of a result. Raises ValueError for one that lacks a part or has a wrong one."""
    try:
        return read(content, path)
    except FileNotFoundError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        said = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({one_line(error)})"
        command = content.get("command", "vlm-pruner score")
        raise ValueError(f"{path} {said}: it is not a whole result of {command}; run it again") from None


def _run(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """One comparison: its tables unchanged, its answers by item, its pictures."""
    answers = _answers(path.parent / content.get("journal", "answers.jsonl"))
    arms = {arm["key"]: number for number, arm in enumerate(content["arms"])}
    album = _Album(_fit(content["model"]), path.parent)
    items = [
        {
            "b": item["benchmark"], "q": item["question_id"], "k": item["kind"], "t": item["text"],
            "g": item["answer"], "p": album.add(item["image"]),
            "a": _by_arm(answers.get((item["benchmark"], str(item["question_id"])), ()), arms),
        }
        for item in content["items"]
    ]  # fmt: skip
    shown = (
        "date",
        "benchmarks",
        "arms",
        "cells",
        "not_run",
        "statistics",
        "config",
        "environment",
        "model",
        "prune_or_resize",
    )
    return {
        "name": path.parent.name or str(path),
        **{name: content.get(name) for name in shown},
        "items": items,
        "pictures": album.pictures,
        "grid": album.grid,
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
    if array("H", [1]).tobytes() != b"\x01\x00":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _fit(model: Mapping[str, Any]) -> Fit | None:
    """How pictures lie on the grid: LLaVA's way where the file does not say; None if every picture has its own."""
    if model["grid"] is None:
        return None
    if model.get("fit"):
        return Fit.from_dict(model["fit"])
    rows, columns = model["grid"]
    return Fit("pad", rows, columns)


class _Album:
    """Pictures as the model saw them, each once. grid: [rows, columns], None if there are several grids."""

    def __init__(self, fit: Fit | None, folder: Path) -> None:
        self.pictures: list[str | None] = []
        self.grid = (
            [fit.rows, fit.columns] if fit and fit.kind in ("stretch", "pad", "crop") and fit.frames == 1 else None
        )
        self._fit = fit
        self._folder = folder
        self._numbers: dict[str, int] = {}

    def add(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self.pictures)
            self.pictures.append(self._thumbnail(Path(name)))
        return self._numbers[name]

    def _thumbnail(self, path: Path) -> str | None:
        """A data URL; None if there is no picture where the result says."""
        from vlm_pruner.images import ImageReadError, read_image

        try:
            picture = read_image(path if path.is_file() else self._folder / path)
        except ImageReadError:
            return None
        seen = self._covered(picture) if self.grid else picture
        seen.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return data_url(seen, "webp", quality=QUALITY, method=4)

    def _covered(self, picture: Image.Image) -> Image.Image:
        """The picture with the padding that the model saw."""
        assert self._fit is not None
        left, top, right, bottom = self._fit.views(picture.size)[0].region
        canvas = Image.new("RGB", (round(right - left), round(bottom - top)), PADDING)
        canvas.paste(picture, (round(-left), round(-top)))
        return canvas


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
