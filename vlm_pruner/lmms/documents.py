"""lmms-eval's requests, one document each, grouped into batches with the same decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vlm_pruner.lmms.decoding import Decoding


@dataclass(frozen=True)
class Document:
    """position: in lmms-eval's list. look: returns the document's pictures ("simple") or messages ("chat").

    context: the prompt's text, complete for "simple" models. Pictures are read only when the document's turn comes,
    because a whole benchmark's would not fit into memory.
    """

    position: int
    task: str
    split: str
    doc_id: Any
    context: str
    decoding: Decoding
    look: Callable[[], Any]

    @property
    def name(self) -> str:
        return f"document {self.doc_id} of {self.task}"


def read_requests(
    requests: Sequence[Any], docs: dict[str, Any], is_simple: bool, default_length: int
) -> list[Document]:
    """Reads lmms-eval's Instances. The two kinds of model get the same six arguments, two of them in different order.

    docs: task -> split -> documents.
    """
    documents = []
    for position, request in enumerate(requests):
        context, second, third, doc_id, task, split = request.args
        settings, look = (second, third) if is_simple else (third, second)
        documents.append(
            Document(position, task, split, doc_id, context, Decoding.read(settings, default_length),
                     partial(_look, look, docs[task][split], doc_id))
        )  # fmt: skip
    return documents


def _look(read: Callable[[Any], Any], docs: Any, doc_id: Any) -> Any:
    return read(docs[doc_id])


def in_batches(documents: Sequence[Document], size: int) -> Iterator[list[Document]]:
    """Batches of at most `size`, in order, each of documents with the same decoding."""
    groups: dict[Decoding, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.decoding, []).append(document)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
