"""Records what was kept of every document: checks it against what was asked for, adds it up, writes it line by line."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_pruner.linefile import Line, LineFile
from vlm_pruner.lmms.documents import Document
from vlm_pruner.methods import Pruner
from vlm_pruner.receipts import ImageReceipt

Key = tuple[Any, ...]  # task, split, document


class NotPruned(RuntimeError):
    """Pruning was requested and did not happen; the run's score would carry the wrong name."""


class Ledger:
    """The receipts of one process; context manager around each call that adds some.

    A document counts once: lmms-eval repeats some to fill up shares. With `path`, receipts of an earlier run of the
    same settings stay and count: lmms-eval's cache answers its documents without asking the model. A file of other
    settings is set aside (`set_aside`).
    """

    def __init__(
        self, method: Pruner | None, path: str | None, rank: int, world_size: int, run: Mapping[str, Any] | None = None
    ) -> None:
        self.method = method
        self.earlier: set[Key] = set()
        self.set_aside: Path | None = None
        self._receipts: dict[Key, Line] = {}
        self._file: LineFile | None = None
        if path is not None and method is not None:
            described = run or {"config": {"method": method.name, **method.config()}}
            self._file = LineFile(
                _of_process(Path(path).expanduser(), rank, world_size), described, beside=True, other_run="set aside",
                flag="receipts", is_line=lambda line: {"task", "split", "doc_id", "images"} <= line.keys(),
            )  # fmt: skip
            with self._file as file:  # fails for an unwritable path before any question is asked
                self._receipts = {_key(line): line for line in file.lines}
            self.earlier, self.set_aside = set(self._receipts), self._file.set_aside

    @property
    def writes(self) -> bool:
        return self._file is not None

    def __enter__(self) -> Ledger:
        if self._file is not None:
            self._file.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._file is not None:
            self._file.__exit__(*exception)

    def add(self, document: Document, visuals: int, kept: Sequence[ImageReceipt]) -> None:
        """`kept` is the document's part of the receipt; the document shows `visuals` images and videos.

        Raises NotPruned if the receipt has fewer: pruning did not see the rest.
        """
        if len(kept) < visuals:
            raise NotPruned(
                f"{document.name} shows {visuals} images or videos, but pruning met {len(kept)}; the model's adapter "
                "does not find all, so the result would not be what its name says"
            )
        images = json.loads(json.dumps([image.to_dict() for image in kept]))  # as the file gives them back
        line = {"task": document.task, "split": document.split, "doc_id": document.doc_id, "images": images}
        key = _key(line)
        if self._file is not None and self._receipts.get(key) != line:
            self._file.append([line])
        self._receipts[key] = line
        self.earlier.discard(key)

    def summary(self, tasks: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Averages per document, for lmms-eval's result file. Empty for the dense model. tasks: those of this run."""
        counts = self._counts(tasks)
        if not counts:
            return {}
        averages = {
            "visual_tokens": sum(before for before, _, _ in counts) / len(counts),
            "kept_tokens": sum(after for _, after, _ in counts) / len(counts),
            "unpruned_share": sum(before == after for before, after, _ in counts) / len(counts),
        }
        earlier = len(_of(tasks, self.earlier))
        return {**averages, "receipts_of_earlier_runs": float(earlier)} if earlier else averages

    def complaint(self, tasks: Mapping[str, Any] | None = None) -> str | None:
        """A warning for readers of the scores if pruning left documents untouched."""
        counts = self._counts(tasks)
        bare = sum(not pictures for _, _, pictures in counts)
        untouched = sum(bool(pictures) and before == after for before, after, pictures in counts)
        if self.method is None or not bare + untouched:
            return None
        return (
            f"{bare + untouched} of {len(counts)} documents were answered with all of their visual tokens: {untouched} "
            f"have no picture above the budget of {self.method.name}, {bare} have no picture at all"
        )

    def _counts(self, tasks: Mapping[str, Any] | None) -> list[tuple[int, int, int]]:
        """Visual tokens before and after, and pictures, of each document."""
        lines = [self._receipts[key]["images"] for key in _of(tasks, self._receipts)]
        return [
            (sum(i["n_before"] for i in images), sum(i["n_after"] for i in images), len(images)) for images in lines
        ]


def _of(tasks: Mapping[str, Any] | None, keys: Collection[Key]) -> list[Key]:
    return [key for key in keys if tasks is None or key[0] in tasks]


def _key(line: Line) -> Key:
    return line["task"], line["split"], line["doc_id"]


def _of_process(path: Path, rank: int, world_size: int) -> Path:
    """Every process writes a file of its own."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if world_size > 1 else path


def count_visuals(messages: Sequence[dict[str, Any]]) -> int:
    """Images and videos in messages of transformers' form."""
    return sum(part["type"] in ("image", "video") for message in messages for part in message["content"])
