"""The loop of all answer generators: prepare ahead, generate in batches, write in order, count failures."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import shortuuid
from tqdm import tqdm

from vlm_pruner.console import one_line
from vlm_pruner.linefile import Line
from vlm_pruner.llava.eval.answers import AnswerFile
from vlm_pruner.llava.eval.errors import ItemError
from vlm_pruner.llava.eval.questions import BrokenQuestion, Item, Question

P = TypeVar("P")

WORKERS = 2  # threads that prepare questions


@dataclass(frozen=True)
class Reply:
    """One answer's text, and what joins its ``metadata`` (method, budget, kept counts)."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol[P]):
    """A model as the runner sees it."""

    model_id: str

    def prepare(self, question: Question) -> P:
        """Read and preprocess, in a worker thread; :class:`ItemError` for an item that cannot be asked."""

    def generate(self, batch: Sequence[P]) -> list[Reply]:
        """One reply per prepared item. An exception here is a defect, not an answer: it ends the run."""


@dataclass(frozen=True)
class Attempt(Generic[P]):
    """An item with its tensors, or with the error that prevented them."""

    item: Item
    tensors: P | None
    error: str | None


@dataclass(frozen=True)
class Steps(Generic[P]):
    """Calls of a model that is divided among processes, which must all make them together.

    calls: of each process. size: questions in each call. spare: fills up a process's calls; its replies are dropped.
    """

    calls: int
    size: int
    spare: P

    def fill(self, batch: Sequence[P]) -> list[P]:
        return [*batch, *[self.spare] * (self.size - len(batch))]


def run(
    engine: Engine[P], items: Sequence[Item], answers: AnswerFile, batch_size: int = 1, reply_field: str = "text",
    title: str = "", quiet: bool = False, steps: Steps[P] | None = None,
) -> None:  # fmt: skip
    """Answers the items that ``answers`` lacks and writes each batch when it is done."""
    missing = [item for item in items if item.index not in answers.done]
    attempts = _prepare_ahead(engine, missing, 2 * batch_size + WORKERS)
    done = len(items) - len(missing)
    with tqdm(total=len(items), initial=done, desc=title, unit="q", dynamic_ncols=True, disable=quiet) as bar:
        while batch := list(islice(attempts, batch_size)):
            answers.append(_answer(engine, batch, reply_field, steps))
            bar.update(len(batch))
            if answers.errors:
                bar.set_postfix(failed=len(answers.errors), refresh=False)
    if steps is not None:
        for _ in range(steps.calls - -(-len(missing) // batch_size)):
            engine.generate(steps.fill([]))


def _answer(engine: Engine[P], batch: Sequence[Attempt[P]], reply_field: str, steps: Steps[P] | None) -> list[Line]:
    ready = [attempt.tensors for attempt in batch if attempt.tensors is not None]
    asked = ready if steps is None else steps.fill(ready)
    replies = iter(engine.generate(asked) if asked else [])
    return [
        _line(attempt, Reply("") if attempt.tensors is None else next(replies), engine.model_id, reply_field)
        for attempt in batch
    ]


def _line(attempt: Attempt[P], reply: Reply, model_id: str, reply_field: str) -> Line:
    """An answer line. A failure has an ``error``, so that no scorer mistakes its empty text for an answer."""
    item = attempt.item
    more = item.extra if isinstance(item, Question) else {}
    return {
        "question_id": item.question_id,
        "prompt": item.prompt,
        reply_field: reply.text,
        "answer_id": _answer_id(model_id, item, reply.text),
        "model_id": model_id,
        "metadata": {"index": item.index, **reply.metadata},
        **(more if attempt.tensors is not None else {"error": attempt.error or "unknown error"}),
    }


def _answer_id(model_id: str, item: Item, text: str) -> str:
    """An id of the field's form that follows from the answer alone, so that a resumed run writes the same file."""
    key = "\0".join([model_id, str(item.index), str(item.question_id), item.prompt, text])
    return shortuuid.uuid(name=key.encode("utf-8", "replace").decode())


def prepare(engine: Engine[P], item: Item) -> Attempt[P]:
    """The item with its tensors, or with the reason why it cannot be asked."""
    if isinstance(item, BrokenQuestion):
        return Attempt(item, None, item.error)
    try:
        return Attempt(item, engine.prepare(item), None)
    except ItemError as error:
        return Attempt(item, None, str(error))
    except Exception as error:  # nothing that an item holds may end the run
        return Attempt(item, None, f"{type(error).__name__}: {one_line(error)}")


def _prepare_ahead(engine: Engine[P], items: Sequence[Item], ahead: int) -> Iterator[Attempt[P]]:
    """Items in order; threads read and preprocess up to ``ahead`` of them while the model works."""
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="prepare")
    pending: deque[Future[Attempt[P]]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(prepare, engine, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
