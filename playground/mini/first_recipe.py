"""How the embedded model was first trained, tower and all; `playground.mini.train` makes its decoder anew.

    python -m playground.mini.first_recipe --out playground/mini/runs/first
    python -m playground.mini.first_recipe --out playground/mini/runs/refined --refine playground/mini/runs/first

1. The tower learns patch labels (what shape, colour, size, character is here) on small scenes, then on full ones.
2. Tower, projector and decoder learn to answer, from small scenes to full ones; the patch labels stay as a side loss
   until the tower is frozen for the last 900 steps.
3. `--refine`: two decoder layers are added that do nothing at first, the tower stays as it is, and questions of two
   steps of thought (multiple choice, where things are) are asked more often, again from small scenes to full ones.

Most lessons let questions see the picture from the pruned layer on only ("late fusion": 7 of 8 in the first 2,300 steps
of part 2, and in part 3); without that this small decoder reads all but the printed texts in its first two layers, and
pruning behind them shows nothing. `--late-fusion 0` trains without it, for a fair look at methods that score by
attention in those layers. Nothing is ever pruned while training. State is saved every few minutes; the same command
continues where it was killed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from playground.mini.lessons import ALL_KINDS, FIRST_MIX, HARD_MIX, HEADS, IGNORE, LAST_MIX, Lesson, Mix, make_lesson
from playground.mini.model import PRUNED_LAYER, MiniModel, Sight, save_whole
from playground.mini.muon import Muon
from playground.mini.tokenizer import build
from playground.mini.world import TRAIN_GALLERY, gallery

VALIDATION_GALLERY, VALIDATION_SEED = 3, 31337
LATE = Sight(range(PRUNED_LAYER, 99))


@dataclass(frozen=True)
class Recipe:
    """What decides the result, beside the code and the curriculum."""

    seed: int = 0
    tower_steps: int = 2000
    steps: int = 3200
    decay: int = 1900  # last steps: the rate falls linearly to zero
    tower_frozen_for: int = 900  # last steps
    late_fusion: int = 2300  # until this step, in 7 of 8 lessons
    rate: float = 0.02  # Muon, 2-D weights of decoder and projector
    adam_rate: float = 3e-3
    joint_tower_scale: float = 0.1  # of both rates, for the tower in part 2
    side_loss: float = 0.3


REFINEMENT = Recipe(
    seed=7,
    tower_steps=0,
    steps=850,
    decay=370,
    tower_frozen_for=850,
    late_fusion=850,
    rate=0.008,
    adam_rate=1.2e-3,
)


@dataclass(frozen=True)
class Curriculum:
    """What is taught when. Keys of `plan`, `mixes` and `rates` are steps from which on the entry holds.

    plan: share of lessons by grid size; "position" marks lessons on how two or three things lie. mixes: what is asked.
    rates: share of the peak rates, before the final decay. batch: scenes per lesson, and share: questions per scene,
    by grid size.
    """

    plan: dict[int, dict[str, float]]
    mixes: dict[int, Mix]
    batch: dict[int, int]
    share: dict[int, float]
    rates: dict[int, float] = field(default_factory=lambda: {0: 1.0})


FIRST = Curriculum(
    plan={
        0: {"6": 0.3, "8": 0.5, "8 position": 0.2},
        400: {"8": 0.25, "12": 0.4, "8 position": 0.15, "12 position": 0.2},
        900: {"12": 0.4, "12 position": 0.2, "16": 0.4},
        1050: {"8": 0.3, "12": 0.5, "12 position": 0.2},
        1300: {"12": 0.45, "12 position": 0.1, "16": 0.45},
        1800: {"12": 0.15, "16": 0.4, "24": 0.45},
        2300: {"16": 0.2, "24": 0.8},
    },
    mixes={0: FIRST_MIX},
    batch={6: 24, 8: 20, 12: 14, 16: 9, 24: 6},
    share={6: 0.3, 8: 0.45, 12: 0.7, 16: 0.9, 24: 1.0},
    # The run that made the embedded weights stood still from step 300 on and learned as soon as the rate was lowered:
    # a better recipe would start low.
    rates={0: 1.0, 1050: 0.4},
)
REFINING = Curriculum(
    plan={
        0: {"8": 0.4, "12 position": 0.6},
        250: {"12": 0.35, "12 position": 0.35, "16": 0.3},
        300: {"12": 0.25, "12 position": 0.6, "16": 0.15},
        500: {"12": 0.2, "16": 0.4, "24": 0.4},
        650: {"16": 0.25, "24": 0.75},
    },
    mixes={0: HARD_MIX, 500: LAST_MIX},
    batch={8: 24, 12: 16, 16: 10, 24: 6},
    share={8: 0.6, 12: 0.8, 16: 1.0, 24: 1.1},
)
DOUBLED = (3, 5)  # decoder layers that refining puts a new one behind
TOWER_PLAN = {0.0: {"8": 1.0}, 0.6: {"12": 1.0}, 0.85: {"24": 1.0}}  # as `plan`, by the share of tower_steps done
TOWER_BATCH = {8: 48, 12: 28, 24: 8}


def at_step(table: dict, step: float):
    """The entry that holds from the last key up to `step` on."""
    return [entry for start, entry in table.items() if step >= start][-1]


def pick_topic(rng: np.random.Generator, shares: dict[str, float]) -> tuple[int, bool]:
    """Grid size, and whether the lesson is one on position."""
    weights = np.array(list(shares.values()))
    grid, _, topic = str(rng.choice(list(shares), p=weights / weights.sum())).partition(" ")
    return int(grid), topic == "position"


def side_losses(logits: Tensor, lesson: Lesson) -> Tensor:
    """Patch-label loss of head outputs [B, N, sum classes + 2]."""
    parts = logits.split([*HEADS.values(), 2], -1)
    total = logits.new_zeros(())
    for index, (name, classes) in enumerate(HEADS.items()):
        weight = logits.new_ones(classes)
        weight[0] = 0.1 if name == "center" else 0.15  # most patches are background
        total = total + F.cross_entropy(
            parts[index].flatten(0, 1), lesson.patch_labels[:, index].flatten(), weight=weight, ignore_index=IGNORE
        )
    known = ~lesson.centers.isnan()
    return total + 20 * F.mse_loss(parts[-1][known], lesson.centers[known])


def answer_loss(model: MiniModel, hidden: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Mean loss over answer tokens (the end token counts a tenth), and exact-match per question [B, sum Q]."""
    labels = torch.cat([pack.labels.flatten(1) for pack in lesson.packs], 1)
    asked = labels != IGNORE
    logits, wanted = model.answer(hidden[asked]).float(), labels[asked]
    weight = torch.where(wanted == model.decoder.config.eos_token_id, 0.1, 1.0)
    loss = (F.cross_entropy(logits, wanted, reduction="none") * weight).sum() / weight.sum()
    right = torch.ones_like(labels, dtype=torch.bool)
    right[asked] = (logits.argmax(-1) == wanted) | (wanted == model.decoder.config.eos_token_id)
    return loss, _per_question(right, lesson)


def _per_question(right: Tensor, lesson: Lesson) -> Tensor:
    out, at = [], 0
    for pack in lesson.packs:
        batch, count, length = pack.ids.shape
        out.append(right[:, at : at + count * length].view(batch, count, length).all(-1))
        at += count * length
    return torch.cat(out, 1)


class Trainer:
    """Owns model, optimisers and the random state; `run` goes from wherever the saved state stands to the end."""

    def __init__(self, recipe: Recipe, out: Path, start: MiniModel | None = None) -> None:
        self.recipe, self.out, self.curriculum = recipe, out, REFINING if start else FIRST
        torch.manual_seed(recipe.seed)
        self.rng = np.random.default_rng(recipe.seed + 1000)
        self.model = start or MiniModel(len(build()))
        self.head = nn.Linear(self.model.tower.config.hidden_size, sum(HEADS.values()) + 2)
        self.step, self.seconds, self.questions = -recipe.tower_steps, 0.0, 0
        self.optimisers = self._optimisers()
        self.tally: dict[str, list[float]] = defaultdict(list)

    def _optimisers(self) -> list[tuple[torch.optim.Optimizer, float, str]]:
        """(optimiser, its peak rate, part) for the parts "tower" and "rest"."""
        r, groups = self.recipe, defaultdict(lambda: ([], []))
        named = [*self.model.named_parameters(), *(("tower." + n, p) for n, p in self.head.named_parameters())]
        for name, weight in named:
            part = "tower" if name.startswith("tower.") else "rest"
            hidden = weight.ndim == 2 and ("layers." in name or name.startswith("projector."))
            groups[part][0 if hidden else 1].append(weight)
        made: list[tuple[torch.optim.Optimizer, float, str]] = []
        for part, (matrices, others) in groups.items():
            made.append((Muon(matrices, r.rate, weight_decay=0.02), r.rate, part))
            adam = torch.optim.AdamW(others, r.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
            made.append((adam, r.adam_rate, part))
        return made

    # -- one step ---------------------------------------------------------------------------------------------------

    def lesson(self) -> Lesson:
        r = self.recipe
        if self.step < 0:
            done = 1 + self.step / r.tower_steps
            grid, _ = pick_topic(self.rng, at_step(TOWER_PLAN, done))
            return make_lesson(self.rng, gallery(TRAIN_GALLERY), grid, TOWER_BATCH[grid], 0.05)
        c = self.curriculum
        grid, position = pick_topic(self.rng, at_step(c.plan, self.step))
        mix = at_step(c.mixes, self.step)
        return make_lesson(self.rng, gallery(TRAIN_GALLERY), grid, c.batch[grid], c.share[grid], position, mix)

    def rate(self) -> float:
        """Share of the peak rate at this step."""
        r = self.recipe
        if self.step < 0:
            done = 1 + self.step / r.tower_steps
            return min(1.0, (self.step + r.tower_steps + 1) / 40) * min(1.0, 0.02 + (1 - done) / 0.5)
        plateau = at_step(self.curriculum.rates, self.step)
        return plateau * min(1.0, (self.step + 1) / 60) * min(1.0, (r.steps - self.step) / r.decay)

    def tower_learns(self) -> bool:
        return self.step < max(0, self.recipe.steps - self.recipe.tower_frozen_for)

    def advance(self) -> None:
        lesson, r = self.lesson(), self.recipe
        grid = round(lesson.raster.shape[1] ** 0.5)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(self.tower_learns()):
                features = self.model.see(lesson.pixels, lesson.raster)
                side = (
                    side_losses(self.head(features).float(), lesson) if self.tower_learns() else features.new_zeros(())
                )
            loss = side
            if self.step >= 0:
                late = self.step < r.late_fusion and self.step % 8 != 7
                hidden = self.model.read(features, lesson.raster, lesson.packs, sight=LATE if late else Sight())
                answer, right = answer_loss(self.model, hidden, lesson)
                loss = answer + r.side_loss * side
                self._count(grid, answer, right, lesson)
        loss.backward()
        self.tally[f"{grid}.side"].append(side.item())
        self._update()
        self.step += 1

    def _count(self, grid: int, loss: Tensor, right: Tensor, lesson: Lesson) -> None:
        self.questions += right.numel()
        self.tally[f"{grid}.loss"].append(loss.item())
        for index, kind in enumerate(ALL_KINDS):
            self.tally[f"{grid}.{kind}"] += right[lesson.kinds == index].float().tolist()

    def _update(self) -> None:
        share = self.rate()
        for optimiser, peak, part in self.optimisers:
            scale = self.recipe.joint_tower_scale if part == "tower" and self.step >= 0 else 1.0
            for group in optimiser.param_groups:
                group["lr"] = peak * share * scale
                if isinstance(optimiser, torch.optim.AdamW):
                    nn.utils.clip_grad_norm_(group["params"], 1.0)
            if part == "tower" and not self.tower_learns():
                continue
            optimiser.step()
        self.model.zero_grad(set_to_none=True)
        self.head.zero_grad(set_to_none=True)

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(self, report_every: int = 100, save_every: int = 150) -> None:
        started = time.monotonic()
        while self.step < self.recipe.steps:
            self.advance()
            if self.step % report_every == 0:
                self.report(self.seconds + time.monotonic() - started)
            if self.step % save_every == 0 or self.step == self.recipe.steps:
                self.seconds, started = self.seconds + time.monotonic() - started, time.monotonic()
                self.save()

    def report(self, seconds: float) -> None:
        line = {"step": self.step, "seconds": round(seconds), "questions": self.questions}
        line |= {name: round(float(np.mean(values)), 3) for name, values in sorted(self.tally.items()) if values}
        if self.step > 0 and self.step % 300 == 0:
            line |= self.validate()
        self.tally.clear()
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    @torch.no_grad()
    def validate(self, pictures: int = 48) -> dict[str, float]:
        """Exact match by kind on full validation scenes: dense, and with 64 random or no visual tokens from layer 2."""
        rng, generator = np.random.default_rng(VALIDATION_SEED), torch.Generator().manual_seed(0)
        scores: dict[str, list[float]] = defaultdict(list)
        for _ in range(pictures // 8):
            lesson = make_lesson(rng, gallery(VALIDATION_GALLERY), 24, 8, 0.6)
            some = torch.randperm(576, generator=generator)[:64].sort().values
            with torch.autocast("cpu", torch.bfloat16):
                features = self.model.see(lesson.pixels, lesson.raster)
                for name, keep in (("dense", None), ("random64", some), ("none", some[:0])):
                    hidden = self.model.read(features, lesson.raster, lesson.packs, keep)
                    right = answer_loss(self.model, hidden, lesson)[1]
                    for index, kind in enumerate(ALL_KINDS):
                        scores[f"val.{name}.{kind}"] += right[lesson.kinds == index].float().tolist()
        return {name: round(float(np.mean(values)), 3) for name, values in scores.items()}

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser, _, _ in self.optimisers],
            "rng": self.rng.bit_generator.state,
            "progress": {"step": self.step, "seconds": self.seconds, "questions": self.questions},
            "recipe": asdict(self.recipe),
        }
        save_whole(state, self.out / "state.pt")

    def resume(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        for (optimiser, _, _), saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.rng.bit_generator.state = state["rng"]
        self.step, self.seconds = state["progress"]["step"], state["progress"]["seconds"]
        self.questions = state["progress"]["questions"]
        print(f"resumed at step {self.step}", flush=True)


def load(run: Path) -> MiniModel:
    """The model of a run's saved state, with as many decoder layers as it has there."""
    weights = torch.load(run / "state.pt", weights_only=True)["model"]
    layers = 1 + max(int(name.split(".")[3]) for name in weights if name.startswith("decoder.model.layers."))
    model = MiniModel(len(build()), layers)
    model.load_state_dict(weights)
    return model


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for log and state; resumes what it finds there")
    parser.add_argument("--refine", type=Path, metavar="RUN", help="part 3, from this run's folder (parts 1 and 2)")
    parser.add_argument("--threads", type=int, default=2)
    for name, value in asdict(Recipe()).items():
        refined = getattr(REFINEMENT, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), help=f"default {value}, refining {refined}"
        )
    args = vars(parser.parse_args(argv))
    out, run, threads = args.pop("out"), args.pop("refine"), args.pop("threads")
    recipe = replace(REFINEMENT if run else Recipe(), **{k: v for k, v in args.items() if v is not None})
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, out, load(run).grown(DOUBLED) if run else None)
    trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
