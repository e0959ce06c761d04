"""Lessons drawn ahead by worker processes, as fast as one GPU takes them.

A full scene with its questions costs a core some 15 ms. Workers are forked before anything touches the GPU, so that
they start at once, and hand their lessons over in files: pipes would copy them under the trainer's interpreter lock.
A thread reads the files and moves the lessons to the device. Where the workers are too slow, recent lessons come again,
with the picture seen in other layers; `again` counts them.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from playground.mini.course import Lesson, Teaching, draw_lesson, seen_in

KEPT = 24  # lessons that may come again
REPEATS = 3  # times, each


def _write(path: Path, seed: int, step: int, process: int, teaching: Teaching, times: int) -> Path:
    """What a worker does."""
    lesson = draw_lesson(seed, step, process, teaching, times)
    with path.open("wb") as file:
        pickle.dump(lesson.map(lambda t: t.numpy()), file, protocol=5)  # type: ignore[arg-type,return-value]
    return path


def _read(path: Path, device: torch.device, stream: torch.cuda.Stream | None) -> Lesson:
    """The lesson of a file, on the device; copied in a stream of its own, beside what the trainer computes."""
    with path.open("rb") as file:
        lesson = pickle.load(file)  # written by `_write` of this very run
    path.unlink()
    lesson = _map_arrays(lesson)
    if stream is None:
        return lesson.to(device)
    # Its memory is the stream's own; `kept` holds it until the trainer's stream is long done with it.
    with torch.cuda.stream(stream):
        moved = lesson.map(lambda t: t.pin_memory() if t.numel() else t).to(device)
        stream.synchronize()
    return moved


def _map_arrays(lesson: Lesson) -> Lesson:
    """Tensors again in place of arrays; labels of kinds, answers, parts and sizes stay arrays."""
    named = {"kinds", "answers", "parts", "sizes"}
    for name, value in vars(lesson).items():
        if isinstance(value, np.ndarray) and name not in named:
            setattr(lesson, name, torch.from_numpy(value))
    for pack in lesson.packs:
        for name in ("ids", "labels"):
            object.__setattr__(pack, name, torch.from_numpy(getattr(pack, name)))
    lesson.blind = [torch.from_numpy(b) for b in lesson.blind]
    lesson.some = {name: torch.from_numpy(t) for name, t in lesson.some.items()}
    return lesson


class Ahead:
    """Iterates over lessons on `device`; create it before the GPU is used. `now()` says what is taught."""

    def __init__(self, seed: int, step: int, process: int, workers: int, times: int = 1) -> None:
        self.seed, self.step, self.process, self.workers, self.times = seed, step, process, workers, times
        self.pool = ProcessPoolExecutor(workers, get_context("fork"), torch.set_num_threads, (1,))
        self.reader = ThreadPoolExecutor(1)
        self.folder = tempfile.TemporaryDirectory(prefix="lessons-", ignore_cleanup_errors=True)
        self.drawn: deque[Future[Path]] = deque()
        self.kept: deque[tuple[Lesson, int]] = deque(maxlen=KEPT)
        self.rng = np.random.default_rng([seed, 3])
        self.again = 0

    def order(self, teaching: Teaching) -> None:
        """Keep all workers busy."""
        while len(self.drawn) < 2 * self.workers:
            path = Path(self.folder.name) / f"{self.step}.lesson"
            self.drawn.append(self.pool.submit(_write, path, self.seed, self.step, self.process, teaching, self.times))
            self.step += 1

    def lessons(self, now: Callable[[], Teaching], device: torch.device) -> Iterator[Lesson]:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        coming: Future[Lesson] | None = None
        while True:
            self.order(now())
            if coming is None and (self.drawn[0].done() or not self.kept):
                coming = self.reader.submit(_read, self.drawn.popleft().result(), device, stream)
            if coming is not None and (coming.done() or not self.kept):
                lesson = coming.result()
                self.kept.append((lesson, 0))
                # Before the step, not after it: else every second lesson would be an old one.
                coming = None
                if self.drawn[0].done():
                    coming = self.reader.submit(_read, self.drawn.popleft().result(), device, stream)
                yield lesson
            elif (old := self._old()) is not None:
                self.again += 1
                yield old
            else:
                wait([coming or self.drawn[0]])

    def _old(self) -> Lesson | None:
        """A lesson that may come again, the one that was shown longest ago."""
        if not self.kept or self.kept[0][1] >= REPEATS:
            return None
        lesson, times = self.kept.popleft()
        self.kept.append((lesson, times + 1))
        return seen_in(self.rng, lesson)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.reader.shutdown(wait=False)
        self.folder.cleanup()
