"""Train a tower anew: what each patch shows, and at the class token what the picture holds.

`playground.mini.train --tower-minutes` does this before it trains a decoder on the tower. Patches learn the labels of
`lessons.patch_labels` (shape, colour, size, centre, character). The class token learns which shapes, colours, coloured
shapes and characters there are (`PRESENT`), so that its attention goes to what questions are about; methods that choose
tokens by it have something to go by. The readers of both exist in training only.

Windows grow from 8 x 8 patches to full scenes. In a world whose distractors wear the things' own colours, patches also
learn that a distractor is nothing; in the default world they are never told.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from playground.mini.first_recipe import TOWER_BATCH, side_losses
from playground.mini.lessons import HEADS, IGNORE, patch_labels
from playground.mini.model import MiniModel, to_pixels
from playground.mini.muon import Muon, step_all
from playground.mini.team import Team
from playground.mini.world import (
    COLOR_NAMES,
    GLYPHS,
    GRID,
    SHAPES,
    STYLES,
    TRAIN_GALLERY,
    Scene,
    gallery,
    make_scene,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from playground.mini.ahead import Ahead, Draw

PAIRS = [f"{color} {shape}" for color in COLOR_NAMES for shape in SHAPES]
PRESENT = (*SHAPES, *COLOR_NAMES, *PAIRS, *GLYPHS)
PRESENCE = 3.0  # weight of the class token's loss
WINDOWS = {0.0: 8, 0.4: 12, 0.7: 24}  # by the share of the time that is gone
RATE, ADAM_RATE, WARM_UP = 0.02, 3e-3, 40


@dataclass(frozen=True)
class Pictures:
    """B pictures of N patches and their labels.

    pixels: uint8 [B, h, w, 3]. raster: long [B, N]. patch_labels: long [B, heads, N]. centers: [B, N, 2].
    present: [B, PRESENT], 1 for what is there.
    """

    pixels: Tensor
    raster: Tensor
    patch_labels: Tensor
    centers: Tensor
    present: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Pictures:
        return Pictures(*(change(getattr(self, f.name)) for f in fields(self)))

    def anew(self, rng: np.random.Generator) -> Pictures:
        """The same: there is nothing to draw."""
        return self


def present(scene: Scene) -> np.ndarray:
    """Float32 [PRESENT]: what a scene holds."""
    held = {name for t in scene.things for name in (t.shape, t.color, f"{t.color} {t.shape}")}
    held |= {c for sign in scene.signs for c in sign.text}
    return np.array([name in held for name in PRESENT], np.float32)


def labels_of(scene: Scene, told: bool) -> tuple[np.ndarray, np.ndarray]:
    """As `patch_labels`; `told`: a distractor's patches are nothing, instead of unknown."""
    labels, centers = patch_labels(scene)
    return np.where(labels == IGNORE, 0, labels) if told else labels, centers


def draw_pictures(seed: int, step: int, process: int, grid: int, times: int, style: str) -> Pictures:
    """The pictures of a step, on windows of `grid` x `grid` patches, in the training surfaces of a world."""
    rng = np.random.default_rng([seed, 4, step, process])
    surfaces, told = gallery(TRAIN_GALLERY, style), bool(STYLES[style].inks)
    scenes = [make_scene(rng, surfaces, grid, grid) for _ in range(TOWER_BATCH[grid] * times)]
    offsets = rng.integers(0, GRID - grid + 1, (len(scenes), 2))
    window = np.arange(grid)[:, None] * GRID + np.arange(grid)[None]
    labelled = [labels_of(scene, told) for scene in scenes]
    centers = np.stack([(c + o) / GRID for (_, c), o in zip(labelled, offsets, strict=True)])
    return Pictures(
        torch.from_numpy(np.stack([np.asarray(s.image) for s in scenes])),
        torch.from_numpy(np.stack([(window + y * GRID + x).reshape(-1) for x, y in offsets])),
        torch.from_numpy(np.stack([labels for labels, _ in labelled])),
        torch.from_numpy(centers.astype(np.float32)),
        torch.from_numpy(np.stack([present(s) for s in scenes])),
    )


def write_line(out: Path, line: dict[str, object]) -> None:
    """Into the run's log and to the console."""
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


class TowerTrainer:
    """Owns the tower's optimisers, the two readers and progress."""

    def __init__(self, model: MiniModel, team: Team, device: torch.device, seed: int, times: int, style: str) -> None:
        self.model, self.team, self.device = model, team, device
        self.seed, self.times, self.style = seed, times, style
        width = model.tower.config.hidden_size
        self.patches = nn.Linear(width, sum(HEADS.values()) + 2).to(device)
        self.whole = nn.Linear(width, len(PRESENT)).to(device)
        model.tower.to(device).requires_grad_(True)
        named = list(model.tower.named_parameters())
        matrices = [w for name, w in named if w.ndim == 2 and "layers." in name]
        others = [w for name, w in named if not (w.ndim == 2 and "layers." in name)]
        others += [*self.patches.parameters(), *self.whole.parameters()]
        self.learned = [*matrices, *others]
        adam = torch.optim.AdamW(others, ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self.optimisers = [(Muon(matrices, RATE, weight_decay=0.02), RATE), (adam, ADAM_RATE)]
        self.step, self.seconds, self.budget = 0, 0.0, 1.0
        self.shown: dict[str, list[Tensor]] = defaultdict(list)

    def done(self) -> float:
        """Share of the time that is gone."""
        return min(1.0, self.seconds / self.budget)

    def rate(self) -> float:
        """Share of the peak rates."""
        return min(1.0, (self.step + 1) / WARM_UP) * min(1.0, (1.02 - self.done()) / 0.5)

    def drawing(self) -> Draw:
        """What draws the pictures of a step."""
        grid = [window for start, window in WINDOWS.items() if self.done() >= start][-1]
        return partial(draw_pictures, self.seed, process=self.team.rank, grid=grid, times=self.times, style=self.style)

    def losses(self, pictures: Pictures) -> Tensor:
        """The weighted sum, under autocast."""
        states = self.model.look(to_pixels(pictures.pixels), pictures.raster)
        patches, whole = self.patches(states[:, 1:]).float(), self.whole(states[:, 0]).float()
        side = side_losses(patches, pictures)
        presence = F.binary_cross_entropy_with_logits(whole, pictures.present)
        self._show(patches.detach(), whole.detach(), side.detach(), presence.detach(), pictures)
        return side + PRESENCE * presence

    def _show(self, patches: Tensor, whole: Tensor, side: Tensor, presence: Tensor, pictures: Pictures) -> None:
        """Accuracy where there is something, by label; of what is present, the share that is found, and of what is
        found, the share that is present."""
        self.shown["side"].append(side)
        self.shown["presence"].append(presence)
        for index, (name, part) in enumerate(zip(HEADS, patches.split([*HEADS.values(), 2], -1), strict=False)):
            labels = pictures.patch_labels[:, index]
            there = labels > 0
            self.shown[name].append(((part.argmax(-1) == labels) & there).sum() / there.sum())
        found, held = whole > 0, pictures.present > 0
        self.shown["found"].append((found & held).sum() / held.sum())
        self.shown["right"].append((found & held).sum() / found.sum())

    def advance(self, pictures: Pictures) -> None:
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.losses(pictures)
        loss.backward()
        learned = [w for w in self.learned if w.grad is not None]
        for weight, grad in zip(learned, self.team.mean([w.grad for w in learned]), strict=True):
            weight.grad = grad.nan_to_num_(0.0, 0.0, 0.0)
        step_all(self.optimisers, self.rate())
        for optimiser, _ in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        self.step += 1

    def run(self, seconds: float, out: Path, ahead: Ahead | None, report_every: int = 100) -> None:
        """Train for `seconds`."""
        self.budget, mark = seconds, time.monotonic()
        for pictures in self._drawn() if ahead is None else ahead.lessons(self.drawing, self.device):
            self.advance(pictures)
            now = time.monotonic()
            self.seconds, mark = self.team.everyones(self.seconds + now - mark)[0], now
            if self.step % report_every == 0 or self.done() >= 1:
                self.report(out, ahead.again if ahead else 0)
            if self.done() >= 1:
                return

    def _drawn(self) -> Iterator[Pictures]:
        while True:
            yield self.drawing()(self.step).map(lambda t: t.to(self.device))

    def report(self, out: Path, again: int) -> None:
        means = {name: round(float(torch.stack(values).nanmean()), 3) for name, values in self.shown.items()}
        self.shown.clear()
        line = {"tower": self.step, "seconds": round(self.seconds, 1), "done": round(self.done(), 3), "again": again}
        if not self.team.rank:
            write_line(out, line | means)
