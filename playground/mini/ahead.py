"""Lessons drawn ahead by worker processes, as fast as one GPU takes them.

A full scene with its questions costs a core some 15 ms. Workers are forked before anything touches the GPU, so that
they start at once, and hand their lessons over in files: pipes would copy them under the trainer's interpreter lock.
A thread reads the files and moves the lessons to the device. Where the workers are too slow, recent lessons come again,
with the picture seen in other layers; `again` counts them.
"""

from __future__ import annotations

import io
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from vlm_pruner.experiments.workers import end_with_parent

KEPT = 24  # lessons that may come again
REPEATS = 3  # times, each
D = TypeVar("D", bound="Drawn")


class Drawn(Protocol):
    """What workers draw: tensors among other things."""

    def map(self: D, change: Callable[[Tensor], Tensor]) -> D:
        """The same with `change` done to each tensor."""
        ...

    def anew(self: D, rng: np.random.Generator) -> D:
        """What comes instead where it comes again."""
        ...


Draw = Callable[[int], Drawn]  # of a step; to be pickled, so a function of a module or a partial of one


class _Pickler(pickle.Pickler):
    """Tensors as arrays, whose memory protocol 5 writes as it is."""

    def reducer_override(self, obj: object) -> object:
        return (torch.from_numpy, (obj.numpy(),)) if isinstance(obj, Tensor) else NotImplemented


def _write(path: Path, draw: Draw, step: int) -> Path:
    """What a worker does."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(draw(step))
    path.write_bytes(file.getbuffer())
    return path


def _read(path: Path, device: torch.device, stream: torch.cuda.Stream | None) -> Drawn:
    """The lesson of a file, on the device; copied in a stream of its own, beside what the trainer computes."""
    with path.open("rb") as file:
        lesson: Drawn = pickle.load(file)  # written by `_write` of this very run
    path.unlink()
    if stream is None:
        return lesson.map(lambda t: t.to(device))
    # Its memory is the stream's own; `kept` holds it until the trainer's stream is long done with it.
    with torch.cuda.stream(stream):
        moved = lesson.map(lambda t: (t.pin_memory() if t.numel() else t).to(device, non_blocking=True))
        stream.synchronize()
    return moved


def _start() -> None:
    end_with_parent()
    torch.set_num_threads(1)


class Ahead:
    """Iterates over what `now()` draws, step after step, on `device`; create it before the GPU is used."""

    def __init__(self, seed: int, step: int, workers: int) -> None:
        self.step, self.workers = step, workers
        self.pool = ProcessPoolExecutor(workers, get_context("fork"), _start)
        self.reader = ThreadPoolExecutor(1)
        self.folder = tempfile.TemporaryDirectory(prefix="lessons-", ignore_cleanup_errors=True)
        self.files = 0
        self.drawn: deque[Future[Path]] = deque()
        self.kept: deque[tuple[Drawn, int]] = deque(maxlen=KEPT)
        self.rng = np.random.default_rng([seed, 3])
        self.again = 0

    def order(self, draw: Draw) -> None:
        """Keep all workers busy."""
        while len(self.drawn) < 2 * self.workers:
            path = Path(self.folder.name) / f"{self.files}.lesson"
            self.drawn.append(self.pool.submit(_write, path, draw, self.step))
            self.step, self.files = self.step + 1, self.files + 1

    def restart(self, step: int) -> None:
        """Forget what was drawn; other lessons begin at `step`."""
        for future in self.drawn:
            future.cancel()
        self.drawn.clear(), self.kept.clear()
        self.step, self.again = step, 0

    def lessons(self, now: Callable[[], Draw], device: torch.device) -> Iterator[Drawn]:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        coming: Future[Drawn] | None = None
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

    def _old(self) -> Drawn | None:
        """A lesson that may come again, the one that was shown longest ago."""
        if not self.kept or self.kept[0][1] >= REPEATS:
            return None
        lesson, times = self.kept.popleft()
        self.kept.append((lesson, times + 1))
        return lesson.anew(self.rng)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.reader.shutdown(wait=False)
        self.folder.cleanup()
