"""Train the embedded model's decoder and projector on the tower that is there:

    python -m playground.mini.train --out playground/mini/runs/nouns --until 10:00     # UTC; or --minutes 180
    python -m playground.mini.train --out playground/mini/runs/nouns --device cuda --minutes 8 --workers 15

1. Windows of 12 x 12 patches, until 90 % of the relations are answered. Nouns are taught to look at what they name
   (helps.py); of most questions the tokens behind "?" are blind, so that the nouns have to.
2. Windows of 16 x 16 and full scenes. Of a third of the questions about one thing the tokens up to "?" are blind, so
   that the answer token has to look as well.
3. From 65 % of the time on the helps fade, and are gone at 80 %. The rate falls over the last half.

Questions see the picture in a random range of layers (0 to 3 the first, 4, 5 or 7 the last). Nothing is ever pruned.
State is saved every few minutes, whole or not at all; the same command goes on where it was killed. On CPUs two
processes of one thread each share a step, which on a busy machine is several times faster than two threads of one.

`log.jsonl` reports by kind of question accuracy, loss and chance (the most frequent answer's share) every 25 steps.
Every 100 it reports the RMS of the answer token's state behind each layer and the gradient there, and an alarm when a
kind's RMS is over 3 times the median kind's: such a path has been switched off and learns no more.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from playground.mini.course import IGNORE, LAST, NOUNS, SCENES, Lesson, Teaching, draw_lesson, lessons
from playground.mini.helps import POINT_LAYERS, Helps
from playground.mini.model import MiniModel, Watch, to_pixels
from playground.mini.muon import Muon
from playground.mini.tokenizer import build

CLIP = Path(__file__).parent / "clip"
LAYERS = 8
WATCHED = 2  # the gradient is looked at behind this layer
ALARM = 3.0


@dataclass(frozen=True)
class Recipe:
    """What decides the result, beside the course. Shares are of the whole time."""

    seed: int = 0
    rate: float = 0.01  # Muon, 2-D weights of decoder and projector
    adam_rate: float = 3e-3
    help_rate: float = 1e-2
    weight_decay: float = 0.02
    warm_up: int = 20  # steps
    crossed: float = 0.9  # accuracy of relations that ends part 1
    latest: float = 0.45  # or this share of the time
    decay: float = 0.5  # last share
    help_until: tuple[float, float] = (0.65, 0.8)  # weight 1 until here, 0 from there on
    last: float = 0.8  # mostly full scenes from here on


# -- the model --------------------------------------------------------------------------------------------------------


def load_tower(model: MiniModel, folder: Path = CLIP) -> None:
    """The trained tower's weights, which stay as they are."""
    weights = {
        name.removeprefix("vision_model."): t.float() for name, t in load_file(folder / "model.safetensors").items()
    }
    own = getattr(model.tower, "vision_model", model.tower)
    own.load_state_dict(weights, strict=True)
    model.tower.requires_grad_(False)


@torch.no_grad()
def standards(model: MiniModel) -> tuple[Tensor, Tensor]:
    """Mean and deviation [c] of tower features, from 24 full scenes."""
    features = []
    for step in range(8):
        lesson = draw_lesson(1, step, 0, Teaching({24: 1.0}, SCENES.topics))
        features.append(model.see(to_pixels(lesson.pixels), lesson.raster))
    known = torch.cat(features)
    return known.mean((0, 1)), known.std((0, 1))


def folded(model: MiniModel, mean: Tensor, scale: Tensor) -> MiniModel:
    """`model`, made to take features as the tower gives them instead of standardised ones. Changes it in place."""
    first = model.projector[0]
    with torch.no_grad():
        first.weight /= scale
        first.bias -= first.weight @ mean
    return model


def load(run: Path) -> MiniModel:
    """The plain model of a run's saved state."""
    state = torch.load(run / "state.pt", weights_only=True, map_location="cpu")
    model = MiniModel(len(build()), LAYERS)
    model.load_state_dict(state["model"])
    return folded(model, state["mean"], state["scale"])


# -- answers ----------------------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """loss: mean over answer tokens, the end token counting a tenth. losses, right: by question, [B, Q]."""

    loss: Tensor
    losses: Tensor
    right: Tensor


def answers(model: MiniModel, hidden: Tensor, lesson: Lesson) -> Answers:
    labels, end = lesson.labels, model.decoder.config.eos_token_id
    asked = labels != IGNORE
    logits, wanted = model.answer(hidden[asked]).float(), labels[asked]
    weight = torch.where(wanted == end, 0.1, 1.0)
    each = F.cross_entropy(logits, wanted, reduction="none") * weight
    lost, right = torch.zeros(labels.shape, device=labels.device), torch.ones_like(asked)
    lost[asked] = each.detach()
    right[asked] = (logits.argmax(-1) == wanted) | (wanted == end)
    losses, rights, at = [], [], 0
    for pack in lesson.packs:
        batch, count, steps = pack.ids.shape
        part = slice(at, at + count * steps)
        losses.append(lost[:, part].view(batch, count, steps).sum(-1))
        rights.append(right[:, part].view(batch, count, steps).all(-1))
        at += count * steps
    return Answers(each.sum() / weight.sum(), torch.cat(losses, 1), torch.cat(rights, 1))


# -- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Team:
    """The processes that share a step. One alone needs no group."""

    rank: int = 0
    size: int = 1

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        if self.size == 1:
            return tensors
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([t.numel() for t in tensors])
        return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]

    def send(self, tensors: list[Tensor], rank: int) -> None:
        """Overwrite `tensors` everywhere with those of `rank`."""
        if self.size == 1:
            return
        flat = torch.cat([t.detach().flatten() for t in tensors])
        dist.broadcast(flat, rank)
        for tensor, new in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.data.copy_(new.view_as(tensor))

    def everyones(self, thing: object) -> list:
        if self.size == 1:
            return [thing]
        out: list = [None] * self.size
        dist.all_gather_object(out, thing)
        return out


# -- the run ----------------------------------------------------------------------------------------------------------


class Trainer:
    """Owns model, optimisers and progress; `run` goes from wherever the saved state stands to the end of the time."""

    def __init__(self, recipe: Recipe, out: Path, team: Team = Team(), device: str = "cpu") -> None:
        self.recipe, self.out, self.team, self.device = recipe, out, team, torch.device(device)
        torch.manual_seed(recipe.seed)
        self.model = MiniModel(len(build()), LAYERS)
        load_tower(self.model)
        self.mean, self.scale = standards(self.model)
        self.helps = Helps(self.model.decoder.config.hidden_size)
        self.model.to(self.device), self.helps.to(self.device)
        self.step, self.seconds, self.questions, self.budget = 0, 0.0, 0, 1.0
        self.crossed_at: float | None = None
        self.relation: list[float] = []  # accuracy of the last reports
        self.optimisers = self._optimisers()
        self.tally: dict[str, list[float]] = defaultdict(list)
        self.said: dict[str, Counter[str]] = defaultdict(Counter)

    def _optimisers(self) -> list[tuple[torch.optim.Optimizer, float]]:
        """Pairs of (optimiser, peak rate). Each process makes the updates of its share of the matrices."""
        r, matrices, others = self.recipe, [], []
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                hidden = weight.ndim == 2 and ("layers." in name or name.startswith("projector."))
                (matrices if hidden else others).append(weight)
        matrices.sort(key=lambda w: -w.numel())
        self.shares = [matrices[rank :: self.team.size] for rank in range(self.team.size)]
        self.learned = [*matrices, *others, *self.helps.parameters()]
        adam = {"betas": (0.9, 0.98), "weight_decay": 0.0}
        return [
            (Muon(self.shares[self.team.rank], r.rate, weight_decay=r.weight_decay), r.rate),
            (torch.optim.AdamW(others, r.adam_rate, **adam), r.adam_rate),
            (torch.optim.AdamW(self.helps.parameters(), r.help_rate, **adam), r.help_rate),
        ]

    # -- what is taught when ----------------------------------------------------------------------------------------

    def done(self) -> float:
        """Share of the time that is gone."""
        return min(1.0, self.seconds / self.budget)

    def teaching(self) -> Teaching:
        if self.crossed_at is None:
            return NOUNS
        return SCENES if self.done() < self.recipe.last else LAST

    def rate(self) -> float:
        """Share of the peak rates."""
        return min(1.0, (self.step + 1) / self.recipe.warm_up) * min(1.0, (1 - self.done()) / self.recipe.decay)

    def help_share(self) -> float:
        full, none = self.recipe.help_until
        return float(np.clip((none - self.done()) / (none - full), 0.0, 1.0))

    # -- one step ---------------------------------------------------------------------------------------------------

    def read(self, lesson: Lesson, watch: Watch | None = None) -> Tensor:
        """Final states of a lesson's questions, under the sight that it gives them."""
        with torch.no_grad():
            features = self.model.see(to_pixels(lesson.pixels), lesson.raster)
        standard = (features - self.mean.to(features)) / self.scale.to(features)
        return self.model.read(standard, lesson.raster, lesson.packs, sight=lesson.sight, watch=watch)

    def advance(self, lesson: Lesson) -> None:
        lesson, watch = lesson.to(self.device), Watch(POINT_LAYERS)
        looking = self.step % 100 == 0
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.read(lesson, watch)
            if looking:
                watch.whole[WATCHED].retain_grad()
            told = answers(self.model, hidden, lesson)
        loss, share = told.loss, self.help_share()
        if share:
            helped, shown = self.helps(lesson, watch)
            loss = loss + share * helped
            for name, value in shown.items():
                self.tally[f"help.{name}"].append(value)
        loss.backward()
        self._count(lesson, told)
        if looking:
            self._look(lesson, watch)
        self._update()
        self.step += 1

    def _count(self, lesson: Lesson, told: Answers) -> None:
        self.questions += lesson.kinds.size * self.team.size
        rows = zip(
            lesson.kinds.flat,
            lesson.answers.flat,
            lesson.roles.flatten().tolist(),
            told.losses.flatten().tolist(),
            told.right.flatten().tolist(),
            strict=True,
        )
        for kind, answer, role, loss, right in rows:
            kind = str(kind) + ("", ".blind", ".noun_blind")[role]
            self.tally[kind].append(right)
            self.tally[f"{kind}.loss"].append(loss)
            self.said[kind][str(answer)] += 1

    def _look(self, lesson: Lesson, watch: Watch) -> None:
        """By kind: RMS of the answer token's state behind each layer, gradient norm there behind `WATCHED`."""
        picture = torch.arange(len(lesson.last), device=self.device)[:, None].expand_as(lesson.last)
        gradient = watch.gradient(WATCHED)[picture, lesson.last].float().norm(dim=-1) * lesson.kinds.size
        states = [watch.states(layer).detach()[picture, lesson.last].float() for layer in range(LAYERS)]
        rms = torch.stack([s.pow(2).mean(-1).sqrt() for s in states])
        report = {}
        for kind in np.unique(lesson.kinds):
            own = torch.from_numpy(lesson.kinds == kind).to(self.device)
            sizes = [round(value, 1) for value in rms[:, own].mean(1).tolist()]
            report[str(kind)] = [*sizes, float(f"{gradient[own].mean():.2g}")]
        self.say({"watch": "rms behind layers 1 to 8, gradient", **report})
        peaks = {kind: max(values[:-1]) for kind, values in report.items()}
        middle = float(np.median(list(peaks.values())))
        loud = {kind: peak for kind, peak in peaks.items() if peak > ALARM * middle}
        if loud:
            self.say({"alarm": "states of these kinds outgrow the others", "median": middle, **loud})

    def _update(self) -> None:
        share = self.rate()
        grads = self.team.mean([torch.zeros_like(w) if w.grad is None else w.grad for w in self.learned])
        for weight, grad in zip(self.learned, grads, strict=True):
            weight.grad = grad
        for optimiser, peak in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * share
                if isinstance(optimiser, torch.optim.AdamW):
                    nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimiser.step()
        for rank, matrices in enumerate(self.shares):
            self.team.send(matrices, rank)
        self.model.zero_grad(set_to_none=True)
        self.helps.zero_grad(set_to_none=True)

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(self, seconds: float, workers: int = 0, report_every: int = 25, save_every: float = 180.0) -> None:
        """Train for `seconds` more; everything that depends on the time follows the whole of it."""
        self.budget, saved, mark = self.seconds + seconds, time.monotonic(), time.monotonic()
        for lesson in lessons(self.recipe.seed, self.step, self.team.rank, self.teaching, workers):
            self.advance(lesson)
            now = time.monotonic()
            # Processes must agree on the time, or they would teach different things.
            self.seconds, mark = self.team.everyones(self.seconds + now - mark)[0], now
            if self.step % report_every == 0:
                self.report()
            if self.done() >= 1 or self.team.everyones(now - saved)[0] > save_every:
                self.save()
                saved = time.monotonic()
            if self.done() >= 1:
                return

    def report(self) -> None:
        """One line of means over all processes since the last report; moves on when relations are learned."""
        tally, said = defaultdict(list), defaultdict(Counter)
        for other, words in self.team.everyones((dict(self.tally), dict(self.said))):
            for name, values in other.items():
                tally[name] += values
            for kind, counts in words.items():
                said[kind] += counts
        means = {name: round(float(np.nanmean(v)), 3) for name, v in sorted(tally.items()) if v}
        for kind, counts in said.items():
            means[f"{kind}.chance"] = round(max(counts.values()) / sum(counts.values()), 2)
        self.tally.clear(), self.said.clear()
        shares = {"done": self.done(), "rate": self.rate(), "help": self.help_share()}
        self.say({"report": self.part(), **{k: round(v, 3) for k, v in shares.items()}, **dict(sorted(means.items()))})
        self._move_on([right for kind in ("relation", "relation.blind") for right in tally[kind]])

    def part(self) -> str:
        return {id(NOUNS): "nouns", id(SCENES): "scenes", id(LAST): "last"}[id(self.teaching())]

    def _move_on(self, right: list[float]) -> None:
        if self.crossed_at is not None:
            return
        if (right and float(np.mean(right)) > self.recipe.crossed) or self.done() > self.recipe.latest:
            self.crossed_at = self.done()
            self.say({"crossed": round(self.crossed_at, 3)})

    def say(self, line: dict[str, object]) -> None:
        if self.team.rank:
            return
        line = {"step": self.step, "seconds": round(self.seconds), "questions": self.questions, **line}
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    # -- state ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        own = self.team.everyones(self.optimisers[0][0].state_dict())
        if self.team.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "helps": self.helps.state_dict(),
            "mean": self.mean,
            "scale": self.scale,
            "muon": own,
            "adam": [optimiser.state_dict() for optimiser, _ in self.optimisers[1:]],
            "progress": {n: getattr(self, n) for n in ("step", "seconds", "questions", "crossed_at")},
            "recipe": asdict(self.recipe),
        }
        part = self.out / "state.pt.part"
        torch.save(state, part)
        os.replace(part, self.out / "state.pt")  # a kill leaves the old state or the new one, never half of one

    def resume(self) -> None:
        """Go on from the saved state, if there is one. Raises ValueError when other processes wrote it."""
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        if len(state["muon"]) != self.team.size:
            raise ValueError(f"{path} was written by {len(state['muon'])} processes, not {self.team.size}")
        self.model.load_state_dict(state["model"])
        self.helps.load_state_dict(state["helps"])
        self.mean, self.scale = state["mean"].cpu(), state["scale"].cpu()
        saved = [state["muon"][self.team.rank], *state["adam"]]
        for (optimiser, _), values in zip(self.optimisers, saved, strict=True):
            optimiser.load_state_dict(values)
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self.say({"resumed": self.step})


def seconds_until(clock: str) -> float:
    """From now to HH:MM UTC, today or tomorrow."""
    now = datetime.datetime.now(datetime.timezone.utc)
    hour, minute = map(int, clock.split(":"))
    then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (then - now).total_seconds() % 86400


def work(rank: int, recipe: Recipe, out: Path, args: argparse.Namespace, meeting: str) -> None:
    """One process."""
    team = Team(rank, args.processes)
    if args.device == "cpu":
        torch.set_num_threads(1)
    if team.size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=team.size)
    trainer = Trainer(recipe, out, team, args.device)
    trainer.resume()
    trainer.run(seconds_until(args.until) if args.until else 60 * args.minutes - trainer.seconds, args.workers)
    if team.size > 1:
        dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for log and state; resumes what it finds there")
    parser.add_argument("--minutes", type=float, default=180.0, help="of training in all (%(default)s)")
    parser.add_argument("--until", metavar="HH:MM", help="UTC; instead of --minutes, the end of the training")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for one GPU")
    parser.add_argument("--processes", type=int, help="that share a step (2 on CPUs, 1 on a GPU)")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw lessons ahead, per process")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="(%(default)s)")
    args = parser.parse_args(argv)
    args.processes = args.processes or (2 if args.device == "cpu" else 1)
    args.out.mkdir(parents=True, exist_ok=True)
    meeting = (args.out / f"meeting-{time.time_ns()}").resolve()
    mp.spawn(work, (Recipe(seed=args.seed), args.out, args, str(meeting)), nprocs=args.processes)


if __name__ == "__main__":
    main()
