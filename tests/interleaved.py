"""Triton's interpreter with interleaved programs: a launch's programs take turns at every memory access.

By itself the interpreter runs one program after the other, and would wait at a barrier forever. Here each program is a
thread, one of which runs at a time; which one continues after a load, a store or an atomic is drawn at random. So what
a missing barrier allows on a GPU happens here too, except for writes that become visible late.
"""

from __future__ import annotations

import functools
import inspect
import math
import random
import threading
from contextlib import contextmanager

import triton.language as tl  # noqa: F401  # the interpreter replaces the functions of the module that it finds here
from triton.runtime import interpreter

ACCESSES = ("create_masked_load", "create_masked_store", "create_atomic_rmw")


class Turns:
    """The programs of one launch."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._waiting: list[tuple[tuple[int, ...], dict]] = []
        self._alive: list[int] = []
        self._go: list[threading.Semaphore] = []
        self._done = threading.Event()
        self._errors: list[BaseException] = []
        self._mine = threading.local()
        self.taken = 0  # turns

    def add(self, function, arguments) -> None:
        """One more program; when they are complete, all run to their end."""
        builder = interpreter.interpreter_builder
        self._waiting.append((builder.grid_idx, arguments))
        if len(self._waiting) == math.prod(builder.grid_dim):
            self._run(function)
            self._waiting = []

    def _run(self, function) -> None:
        self._alive = list(range(len(self._waiting)))
        self._go = [threading.Semaphore(0) for _ in self._alive]
        self._done.clear()
        threads = [threading.Thread(target=self._program, args=(n, function), daemon=True) for n in self._alive]
        for thread in threads:
            thread.start()
        self._hand_over()
        assert self._done.wait(60), "programs wait for each other for ever"
        if self._errors:
            raise self._errors[0]

    def _program(self, number: int, function) -> None:
        self._mine.number = number
        _, arguments = self._waiting[number]
        self._wait(number)
        try:
            function(**arguments)
        except BaseException as error:
            self._errors.append(error)
            self._done.set()
            return
        self._alive.remove(number)
        if self._alive:
            self._hand_over()
        else:
            self._done.set()

    def _hand_over(self) -> None:
        self._go[self._draw.choice(self._alive)].release()

    def _wait(self, number: int) -> None:
        self._go[number].acquire()
        interpreter.interpreter_builder.grid_idx = self._waiting[number][0]

    def turn(self) -> None:
        """Called by the running program: another one may continue."""
        number = getattr(self._mine, "number", None)
        if number is not None and len(self._alive) > 1:
            self.taken += 1
            self._hand_over()
            self._wait(number)


@contextmanager
def side_by_side(monkeypatch, seed: int):
    """While this is open, launches run so. Yields the Turns."""
    turns = Turns(random.Random(seed))
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor

    def in_turns(access):
        @functools.wraps(access)
        def accessed(*args, **kwargs):
            turns.turn()
            return access(*args, **kwargs)

        return accessed

    class Executor(executor):
        def __init__(self, fn, *args, **kwargs):
            super().__init__(fn, *args, **kwargs)

            @functools.wraps(fn)
            def add(**arguments):
                turns.add(fn, arguments)

            add.__signature__ = inspect.signature(fn)
            self.fn = add

    with monkeypatch.context() as patch:
        for name in ACCESSES:
            patch.setattr(builder, name, in_turns(getattr(builder, name)))
        patch.setattr(interpreter, "GridExecutor", Executor)
        yield turns
