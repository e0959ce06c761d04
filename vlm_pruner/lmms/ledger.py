"""What was kept of every document: checked against what was asked for, added up, written line by line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from vlm_pruner.lmms.documents import Document
from vlm_pruner.methods import Pruner
from vlm_pruner.receipts import ImageReceipt


class NotPruned(RuntimeError):
    """Pruning was asked for and did not happen. A score of such a run would carry the wrong name."""


class Ledger:
    """One run of one process. A document that is asked again counts once: lmms-eval repeats some to fill up shares.

    documents: all. without_picture: those that show nothing. untouched: those of whose pictures everything was kept.
    before, after: visual tokens of all.
    """

    def __init__(self, method: Pruner | None, path: str | None, rank: int, world_size: int) -> None:
        self.method = method
        self.documents = self.without_picture = self.untouched = 0
        self.before = self.after = 0
        self._seen: set[tuple[Any, ...]] = set()
        self._file: IO[str] | None = None
        if path is not None and method is not None:
            self._file = _open(Path(path), rank, world_size)

    def add(self, document: Document, visuals: int, kept: Sequence[ImageReceipt]) -> None:
        """`kept` is the receipt's part about the document, which shows `visuals` images and videos.

        Raises NotPruned if the receipt tells of fewer: some were not seen, and so not pruned.
        """
        if len(kept) < visuals:
            raise NotPruned(
                f"{document.name} shows {visuals} images or videos, but pruning met {len(kept)}; the model's adapter "
                "does not find all, so the result would not be what its name says"
            )
        key = (document.task, document.split, document.doc_id)
        if key in self._seen:
            return
        self._seen.add(key)
        before, after = sum(image.n_before for image in kept), sum(image.n_after for image in kept)
        self.documents += 1
        self.without_picture += not kept
        self.untouched += bool(kept) and before == after
        self.before += before
        self.after += after
        if self._file is not None:
            line = {"task": document.task, "split": document.split, "doc_id": document.doc_id}
            self._file.write(json.dumps({**line, "images": [image.to_dict() for image in kept]}) + "\n")
            self._file.flush()

    def summary(self) -> dict[str, float]:
        """Averages per document, for lmms-eval's result file. Empty for the dense model."""
        if self.method is None or not self.documents:
            return {}
        return {
            "visual_tokens": self.before / self.documents,
            "kept_tokens": self.after / self.documents,
            "unpruned_share": (self.without_picture + self.untouched) / self.documents,
        }

    def complaint(self) -> str | None:
        """What a reader of the scores must know, if pruning left documents as they were."""
        whole = self.without_picture + self.untouched
        if self.method is None or not whole:
            return None
        return (
            f"{whole} of {self.documents} documents were answered with all of their visual tokens: {self.untouched} "
            f"have no picture above the budget of {self.method.name}, {self.without_picture} have no picture at all"
        )


def _open(path: Path, rank: int, world_size: int) -> IO[str]:
    """Every process writes a file of its own."""
    if world_size > 1:
        path = path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8")


def count_visuals(messages: Sequence[dict[str, Any]]) -> int:
    """Images and videos in messages of transformers' form."""
    return sum(part["type"] in ("image", "video") for message in messages for part in message["content"])
