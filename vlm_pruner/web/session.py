"""One model, many visitors: answers are written one after another, shown as they grow, and end when nobody watches.

Knows no web framework. A visitor's `run` is a generator of snapshots. The model works in its own thread, so a visitor
who leaves early (whose generator is closed, or never resumed) does not block the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image

from vlm_pruner.asking import Answer, Chat
from vlm_pruner.console import one_line
from vlm_pruner.methods import Pruner

MAX_QUESTION = 2000  # characters
PATIENCE = 15.0  # seconds that an unwatched answer continues
TICK = 0.05  # seconds between two snapshots, at least

State = Literal["waiting", "running", "done", "stopped", "failed"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """An answer to be made. method: None for the dense model."""

    title: str
    method: Pruner | None = None


@dataclass(frozen=True)
class Pane:
    """The state of one answer. `answer` is set once it is done or stopped, `error` once it failed."""

    job: Job
    state: State = "waiting"
    text: str = ""
    answer: Answer | None = None
    error: str = ""

    @property
    def finished(self) -> bool:
        return self.state in ("done", "stopped", "failed")


class Board:
    """The panes of one visitor's question. The model's thread writes them, the visitor's reads them."""

    def __init__(self, jobs: Sequence[Job], patience: float) -> None:
        self._panes = [Pane(job) for job in jobs]
        self._changed = threading.Condition()
        self._dirty = True
        self._patience = patience
        self._watched = time.monotonic()
        self._stop = False
        self.closed = False  # the model's thread has ended

    def snapshot(self, wait: float) -> tuple[Pane, ...]:
        """The panes, as soon as one changes or after `wait` seconds."""
        with self._changed:
            self._watched = time.monotonic()
            self._changed.wait_for(lambda: self._dirty, wait)
            self._dirty = False
            return tuple(self._panes)

    def stop(self) -> None:
        self._stop = True

    def given_up(self) -> bool:
        """Whether the answer should end: the visitor stopped it, or nobody has watched for a while."""
        return self._stop or time.monotonic() - self._watched > self._patience

    def update(self, index: int, pane: Pane) -> None:
        with self._changed:
            self._panes[index] = pane
            self._dirty = True
            self._changed.notify_all()

    def close(self) -> None:
        """Marks answers that were never begun as stopped."""
        with self._changed:
            self._panes = [pane if pane.finished else replace(pane, state="stopped") for pane in self._panes]
            self.closed = self._dirty = True
            self._changed.notify_all()


class Session:
    """Serves one `Chat`, behind a lock: the model answers one question at a time."""

    def __init__(self, chat: Chat, *, max_new_tokens: int, patience: float = PATIENCE) -> None:
        self.chat = chat
        self.max_new_tokens = max_new_tokens
        self._patience = patience
        self._lock = threading.Lock()
        self._boards: dict[str, Board] = {}  # by visitor

    def warm_up(self) -> None:
        """One discarded answer: the first of a process is slower than the rest."""
        with self._lock:
            self.chat.ask(Image.new("RGB", (336, 336), "grey"), "?", max_new_tokens=2)

    def run(self, visitor: str, picture: Image.Image, question: str, jobs: Sequence[Job]) -> Iterator[tuple[Pane, ...]]:
        """Snapshots of the answers to `jobs`, one after another, until all are finished.

        Raises ValueError for an empty or overlong question. Later errors appear in the panes.
        """
        check_question(question)
        self.stop(visitor)
        board = self._boards[visitor] = Board(jobs, self._patience)
        work = threading.Thread(target=self._work, args=(board, picture, question.strip(), jobs), daemon=True)
        work.start()
        try:
            while not board.closed:
                yield board.snapshot(wait=1.0)
                time.sleep(TICK)
            yield board.snapshot(wait=0)
        finally:
            board.stop()
            if self._boards.get(visitor) is board:
                del self._boards[visitor]

    def stop(self, visitor: str) -> None:
        """End the visitor's answers, if any, after the current token."""
        board = self._boards.get(visitor)
        if board is not None:
            board.stop()

    def _work(self, board: Board, picture: Image.Image, question: str, jobs: Sequence[Job]) -> None:
        try:
            while not self._lock.acquire(timeout=0.2):
                if board.given_up():
                    return
            try:
                for index, job in enumerate(jobs):
                    if board.given_up():
                        return
                    self._answer(board, index, job, picture, question)
            finally:
                self._lock.release()
        finally:
            board.close()

    def _answer(self, board: Board, index: int, job: Job, picture: Image.Image, question: str) -> None:
        pane = Pane(job, "running")
        board.update(index, pane)
        try:
            answer = self.chat.ask(
                picture,
                question,
                job.method,
                max_new_tokens=self.max_new_tokens,
                on_text=lambda text: board.update(index, replace(pane, text=text)),
                stop=board.given_up,
            )
        except Exception as error:
            board.update(index, replace(pane, state="failed", error=explain(error)))
        else:
            state: State = "stopped" if answer.stopped else "done"
            board.update(index, replace(pane, state=state, text=answer.text, answer=answer))


def check_question(question: str) -> None:
    """Raises ValueError for a question that is empty or longer than MAX_QUESTION characters."""
    if not question.strip():
        raise ValueError("there is no question yet: type one, or pick an example")
    if len(question) > MAX_QUESTION:
        raise ValueError(f"the question has {len(question):,} characters; {MAX_QUESTION:,} are allowed: shorten it")


def explain(error: Exception) -> str:
    """The visitor's sentence for an error. Errors that they cannot fix go to the server's log."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the model ran out of memory on this picture: try a smaller one"
    if isinstance(error, ValueError):
        return one_line(error)
    _log.error("an answer failed", exc_info=error)
    return f"something went wrong in the model ({type(error).__name__}); the terminal has the details"
