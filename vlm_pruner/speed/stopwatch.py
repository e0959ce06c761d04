"""Splits the time of `generate` into the vision tower, token selection, the prefill, and each later token.

Hooks read a clock at each boundary, dense and pruned alike: device events on a GPU, synchronised only at the end, and
the monotonic clock on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.methods import Pruner
from vlm_pruner.methods.base import Selection, overriding
from vlm_pruner.methods.view import View

_TOWERS = ("vision_tower", "visual", "multi_modal_projector", "mm_projector")


class Clock:
    """Takes timestamps on one device and measures the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device

    def now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Waits for the device to finish all queued work."""
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds from `start` to `end`. Call `wait` first."""
        return start.elapsed_time(end) / 1000 if self._cuda else end - start


@dataclass
class Stopwatch:
    """Timestamps of one `generate`. Spans are (start, end) pairs of them."""

    clock: Clock
    forwards: list[tuple[Any, Any]] = field(default_factory=list)  # each call of the model, the prefill first
    vision: list[tuple[Any, Any]] = field(default_factory=list)
    selection: list[tuple[Any, Any]] = field(default_factory=list)
    inside_prefill: int = 0  # vision spans inside a forward call of the model
    _open: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def around(self, spans: list[tuple[Any, Any]]) -> Iterator[None]:
        start = self.clock.now()
        yield
        spans.append((start, self.clock.now()))

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Hooks the model and its vision tower. Enter before `prune`, so that pruning's own hooks are timed too."""
        hooks = [
            model.register_forward_pre_hook(self._begin_forward),
            model.register_forward_hook(self._end_forward),
        ]
        for part in tower_parts(model):
            hooks += [part.register_forward_pre_hook(self._begin_vision), part.register_forward_hook(self._end_vision)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin_forward(self, *_: Any) -> None:
        self._open["forward"] = self.clock.now()

    def _end_forward(self, *_: Any) -> None:
        self.forwards.append((self._open.pop("forward"), self.clock.now()))

    def _begin_vision(self, *_: Any) -> None:
        self._open["vision"] = self.clock.now()

    def _end_vision(self, *_: Any) -> None:
        self.vision.append((self._open.pop("vision"), self.clock.now()))
        self.inside_prefill += "forward" in self._open

    def total(self, spans: list[tuple[Any, Any]]) -> float:
        return sum(self.clock.seconds(*span) for span in spans)

    def figures(self, start: Any, end: Any) -> dict[str, float]:
        """Seconds of each part of a `generate` that ran from `start` to `end`.

        prefill: the model's first call without the vision tower, including token selection. first_token: from the start
        of `generate` to the end of that call. per_token: mean over the later calls.
        """
        self.clock.wait()
        seconds, first = self.clock.seconds, self.forwards[0]
        inside = self.vision[len(self.vision) - self.inside_prefill :]
        later = len(self.forwards) - 1
        found = {
            "vision": self.total(self.vision),
            "prefill": seconds(*first) - self.total(inside),
            "first_token": seconds(start, first[1]),
            "end_to_end": seconds(start, end),
        }
        if later:
            found["per_token"] = seconds(first[1], self.forwards[-1][1]) / later
        if self.selection:
            found["selection"] = self.total(self.selection)
        return found


def tower_parts(model: nn.Module) -> list[nn.Module]:
    """The vision tower and the projector of its features, under the family's own names."""
    inner: Any = getattr(model, "model", model)
    return [getattr(inner, name) for name in _TOWERS if isinstance(getattr(inner, name, None), nn.Module)]


def timed(method: Pruner, around: Callable[[], Any]) -> Pruner:
    """The same method, which enters `around()` while it selects and merges."""

    def choose_all(self: Pruner, views: Sequence[View]) -> list[Selection]:
        with around():
            return method.choose_all(views)

    def merge(self: Pruner, hidden: Tensor, selection: Selection) -> Tensor:
        with around():
            return method.merge(hidden, selection)

    return overriding(method, choose_all=choose_all, merge=merge)
