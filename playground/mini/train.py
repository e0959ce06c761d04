"""Train the embedded model's decoder and projector on the tower that is there:

    python -m playground.mini.train --out playground/mini/runs/nouns --until 10:00     # UTC; or --minutes 180
    python -m playground.mini.train --out playground/mini/runs/gpu --device cuda --minutes 4.5 --workers 15 --batch 32 \
        --start playground/mini/checkpoint --ship
    python -m playground.mini.train --out playground/mini/judges/world --device cuda --minutes 4.5 --workers 15 \
        --batch 32 --whole --ship --seed 3 --world motley --tower-minutes 1.1

1. Windows of 12 x 12 patches, until 90 % of the relations are answered. Nouns are taught to look at what they name
   (helps.py); of most questions the tokens behind "?" are blind, so that the nouns have to.
2. Windows of 16 x 16 and full scenes. Of a third of the questions about one thing the tokens up to "?" are blind, so
   that the answer token has to look as well.
3. From 65 % of the time on the helps fade, and are gone at 80 %. The rate falls over the last half.

Questions see the picture in a random range of layers (0 to 3 the first, 4, 5 or 7 the last). Nothing is ever pruned.
State is saved every few minutes, whole or not at all; the same command continues where it was killed. On CPUs two
processes of one thread each share a step, which on a busy machine is several times faster than two threads of one.

With `--start` a decoder that has learned all this continues with what it has not: counting (every number from 0 to 6
asked for equally often), texts that differ in one character, what lies beside a thing, captions. On a GPU a step takes
about a hundred scenes, drawn ahead by worker processes (ahead.py).

`--whole` teaches all of this from scratch: part 1 (until 35 % of the time at the latest), full scenes for a tenth of
the time, then what `--start` teaches. `--world` changes the scenes, `--tower-minutes` trains a tower first (tower.py).
`recipe.json` keeps the settings beside the weights.

`log.jsonl` reports by kind of question accuracy, loss and chance (the most frequent answer's share) every 25 steps.
Every 100 it reports the RMS of the answer token's state behind each layer and the gradient there, and an alarm when a
kind's RMS is over 3 times the median kind's: such a path has been switched off and learns no more.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from playground.mini.ahead import Ahead, Draw
from playground.mini.course import LAST, NOUNS, REST, REST_LAST, SCENES, Lesson, Teaching, draw_lesson
from playground.mini.export import export_decoder, export_tower
from playground.mini.helps import POINT_LAYERS, Helps
from playground.mini.model import MiniModel, Watch, save_whole, to_pixels
from playground.mini.muon import Muon, step_all
from playground.mini.questions import MAX_COUNT
from playground.mini.team import ALONE, Team
from playground.mini.tokenizer import build
from playground.mini.tower import TowerTrainer, write_line
from playground.mini.world import STYLES, TRAIN_GALLERY, gallery

CLIP = Path(__file__).parent / "clip"
LAYERS = 8
WATCHED = 2  # the gradient is looked at behind this layer
SCENES_FOR = 0.1  # of the time of a run that teaches everything
TOWER_TIMES = 4  # times as many pictures a step as on CPUs, at most, for a tower on a GPU
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
    batch: int = 1  # times as many scenes a step as the course says
    more: bool = False  # for weights that have learned the course: what they had not learned
    whole: bool = False  # the course and, a tenth of the time after part 1, what it leaves out
    style: str = "default"  # the world


# -- the model --------------------------------------------------------------------------------------------------------


def load_tower(model: MiniModel, folder: Path = CLIP) -> None:
    """The trained tower's weights, which stay unchanged."""
    weights = {
        name.removeprefix("vision_model."): t.float() for name, t in load_file(folder / "model.safetensors").items()
    }
    own = getattr(model.tower, "vision_model", model.tower)
    own.load_state_dict(weights, strict=True)
    model.tower.requires_grad_(False)


@torch.no_grad()
def standards(model: MiniModel, style: str = "default") -> tuple[Tensor, Tensor]:
    """Mean and deviation [c] of tower features, from 24 full scenes of a world."""
    features = []
    for step in range(8):
        lesson = draw_lesson(1, step, 0, Teaching({24: 1.0}, SCENES.topics), style=style)
        features.append(model.see(to_pixels(lesson.pixels), lesson.raster))
    known = torch.cat(features)
    return known.mean((0, 1)), known.std((0, 1))


def begin(model: MiniModel, folder: Path, mean: Tensor, scale: Tensor) -> None:
    """Projector and decoder of a checkpoint in the original layout, for standardised features. Changes `model`."""
    weights = {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
    projector = "model.mm_projector."
    own = {name.removeprefix(projector): weights.pop(name) for name in list(weights) if name.startswith(projector)}
    model.decoder.load_state_dict(weights, strict=True)
    model.projector.load_state_dict(own, strict=True)
    first = model.projector[0]
    with torch.no_grad():
        first.bias += first.weight @ mean
        first.weight *= scale


def folded(model: MiniModel, mean: Tensor, scale: Tensor) -> MiniModel:
    """`model`, made to take features as the tower gives them instead of standardised ones. Changes it in place."""
    first = model.projector[0]
    with torch.no_grad():
        first.weight /= scale
        first.bias -= first.weight @ mean
    return model


def load(run: Path) -> MiniModel:
    """The plain model of a run's saved state, or of the checkpoint that it shipped, or of any, with the tower it names.

    Raises FileNotFoundError when that tower is not there.
    """
    model = MiniModel(len(build()), LAYERS)
    if (run / "state.pt").exists():
        state = torch.load(run / "state.pt", weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        return folded(model, state["mean"], state["scale"])
    load_tower(model, tower_of(run))
    width = model.tower.config.hidden_size
    begin(model, checkpoint_of(run), torch.zeros(width), torch.ones(width))
    return model


def checkpoint_of(run: Path) -> Path:
    """The checkpoint that a run shipped, or the folder itself."""
    return run / "checkpoint" if (run / "checkpoint").is_dir() else run


def tower_of(run: Path) -> Path:
    """The tower that a run's checkpoint names. Raises FileNotFoundError when it is not there."""
    folder = checkpoint_of(run)
    clip = folder / json.loads((folder / "config.json").read_text())["mm_vision_tower"]
    if not clip.is_dir():
        raise FileNotFoundError(f"{folder}/config.json names the tower {clip}, which is not there; put it there")
    return clip


# -- answers ----------------------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """loss: mean over answer tokens, by `Lesson.weight`. losses, right: by question, [B, Q]."""

    loss: Tensor
    losses: Tensor
    right: Tensor


def answers(model: MiniModel, hidden: Tensor, lesson: Lesson) -> Answers:
    logits = model.answer(hidden.flatten(0, 1)[lesson.at]).float()
    each = F.cross_entropy(logits, lesson.wanted, reduction="none") * lesson.weight
    wrong = (logits.argmax(-1) != lesson.wanted) & (lesson.wanted != model.decoder.config.eos_token_id)
    shape = lesson.roles.shape
    nothing = torch.zeros(shape.numel(), device=hidden.device)
    losses = nothing.index_add(0, lesson.of, each.detach()).view(shape)
    right = nothing.index_add(0, lesson.of, wrong.float()).view(shape) == 0
    return Answers(each.sum() / lesson.weight.sum(), losses, right)


# -- the run ----------------------------------------------------------------------------------------------------------


class Trainer:
    """Owns model, optimisers and progress; `run` goes from wherever the saved state stands to the end of the time."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        team: Team = ALONE,
        device: str = "cpu",
        start: Path | None = None,
        clip: Path = CLIP,
    ) -> None:
        self.recipe, self.out, self.team, self.device, self.clip = recipe, out, team, torch.device(device), clip
        torch.manual_seed(recipe.seed)
        self.model = MiniModel(len(build()), LAYERS)
        load_tower(self.model, clip)
        self.mean, self.scale = standards(self.model, recipe.style)
        self.helps = Helps(self.model.decoder.config.hidden_size)
        if start is not None:
            begin(self.model, start, self.mean, self.scale)
        self.model.to(self.device), self.helps.to(self.device)
        self.mean, self.scale = self.mean.to(self.device), self.scale.to(self.device)
        self.ship = False
        self.step, self.seconds, self.questions, self.budget = 0, 0.0, 0, 1.0
        self.crossed_at: float | None = 0.0 if recipe.more else None
        self.relation: list[float] = []  # accuracy of the last reports
        self.optimisers = self._optimisers()
        self.shown: dict[str, list[Tensor]] = defaultdict(list)
        self.told: list[tuple[Lesson, Answers]] = []

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
        early = self.done() < self.recipe.last
        beyond = self.recipe.whole and self.done() >= self.crossed_at + SCENES_FOR
        if self.recipe.more or beyond:
            return REST if early else REST_LAST
        return SCENES if early else LAST

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
        standard = (features.float() - self.mean) / self.scale
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
                self.shown[f"help.{name}"].append(value)
        loss.backward()
        self.told.append((replace(lesson, pixels=lesson.pixels[:0]), told))
        self.questions += lesson.kinds.size * self.team.size
        if looking:
            self._look(lesson, watch)
        self._update()
        self.step += 1

    def _counted(self) -> tuple[dict[str, list[float]], dict[str, Counter[str]]]:
        """What `advance` left since the last report: values by name, and answers by kind. Waits for the device once."""
        tally = {name: torch.stack(values).tolist() for name, values in self.shown.items()}
        said: dict[str, Counter[str]] = defaultdict(Counter)
        for lesson, told in self.told:
            roles, losses, right = (t.cpu().numpy() for t in (lesson.roles, told.losses, told.right))
            names = np.char.add(lesson.kinds, np.array(["", ".blind", ".noun_blind"])[roles])
            for name in np.unique(names):
                own = names == name
                tally.setdefault(name, []).extend(right[own].tolist())
                tally.setdefault(f"{name}.loss", []).extend(losses[own].tolist())
                if not name.startswith("caption"):
                    said[name].update(lesson.answers[own].tolist())
            for number in range(MAX_COUNT + 1):
                own = (lesson.kinds == "count") & (lesson.answers == str(number))
                tally.setdefault(f"count {number}", []).extend(right[own].tolist())
        self.shown.clear(), self.told.clear()
        return tally, said

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
        grads = self.team.mean([torch.zeros_like(w) if w.grad is None else w.grad for w in self.learned])
        self.shown["lost"].append(1.0 - nn.utils.get_total_norm(grads).isfinite().float())
        for weight, grad in zip(self.learned, grads, strict=True):
            weight.grad = grad.nan_to_num_(0.0, 0.0, 0.0)  # one bad step must not end a run; `lost` tells
        step_all(self.optimisers, self.rate())
        for rank, matrices in enumerate(self.shares):
            self.team.send(matrices, rank)
        self.model.zero_grad(set_to_none=True)
        self.helps.zero_grad(set_to_none=True)

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(
        self, seconds: float, ahead: Ahead | None = None, report_every: int = 25, save_every: float = 180.0
    ) -> None:
        """Train for `seconds` more, a step at least; everything that depends on the time follows the whole of it."""
        self.budget = self.seconds + max(seconds, 1e-3)  # less would never end
        saved = mark = time.monotonic()
        for lesson in self._drawn() if ahead is None else ahead.lessons(self.drawing, self.device):
            self.advance(lesson)
            now = time.monotonic()
            # Processes must agree on the time, or they would teach different things.
            self.seconds, mark = self.team.everyones(self.seconds + now - mark)[0], now
            if self.step % report_every == 0 or self.done() >= 1:
                self.report({"again": ahead.again} if ahead else {})
            if self.done() >= 1 or self.team.everyones(now - saved)[0] > save_every:
                self.save()
                saved = time.monotonic()
            if self.done() >= 1:
                return

    def drawing(self) -> Draw:
        """What draws the lesson of a step."""
        return drawing(self.recipe, self.team.rank, self.teaching())

    def _drawn(self) -> Iterator[Lesson]:
        while True:
            yield self.drawing()(self.step)

    def report(self, more: dict[str, float] | None = None) -> None:
        """One line of means over all processes since the last report; moves on when relations are learned."""
        tally, said = defaultdict(list), defaultdict(Counter)
        for other, words in self.team.everyones(self._counted()):
            for name, values in other.items():
                tally[name] += values
            for kind, counts in words.items():
                said[kind] += counts
        means = {name: round(float(np.nanmean(v)), 3) for name, v in sorted(tally.items()) if v}
        for kind, counts in said.items():
            means[f"{kind}.chance"] = round(max(counts.values()) / sum(counts.values()), 2)
        shares = {"done": self.done(), "rate": self.rate(), "help": self.help_share()}
        shares |= more or {}
        self.say({"report": self.part(), **{k: round(v, 3) for k, v in shares.items()}, **dict(sorted(means.items()))})
        self._move_on([right for kind in ("relation", "relation.blind") for right in tally[kind]])

    def part(self) -> str:
        names = {id(NOUNS): "nouns", id(SCENES): "scenes", id(LAST): "last", id(REST): "rest", id(REST_LAST): "last"}
        return names[id(self.teaching())]

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
        write_line(self.out, line)

    # -- state ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """State to resume from or, of a run that ships, the checkpoint alone, now and before the rate falls."""
        if self.ship:
            names = ["checkpoint", "at_full_rate"] if self.done() <= 1 - self.recipe.decay else ["checkpoint"]
            for name in names if not self.team.rank else ():
                plain = folded(copy.deepcopy(self.model), self.mean, self.scale)
                tower = os.path.relpath(self.clip.resolve(), (self.out / name).resolve())
                export_decoder(plain, self.out / name, tower)
            return
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
        save_whole(state, self.out / "state.pt")

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
        self.mean, self.scale = state["mean"], state["scale"]
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


def work(rank: int, recipe: Recipe, out: Path, args: argparse.Namespace, meeting: str, began: float) -> None:
    """One process. `began`: when the command did, as `time.monotonic` tells it."""
    team, ahead = Team(rank, args.processes), None
    if args.device == "cpu" or args.workers:
        torch.set_num_threads(1)
    if args.workers:
        gallery(TRAIN_GALLERY, recipe.style), build()  # shared with the workers
        ahead = Ahead(recipe.seed, progress(out), args.workers)
        # Forks, before anything uses the GPU.
        ahead.order(int if args.tower_minutes else drawing(recipe, rank, REST if recipe.more else NOUNS))
    if team.size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=team.size)
    clip = CLIP
    if args.tower_minutes:
        clip = new_tower(recipe, out, team, args, ahead)
    trainer = Trainer(recipe, out, team, args.device, args.start, clip)
    trainer.ship = args.ship
    trainer.resume()
    if ahead is not None and args.tower_minutes:
        ahead.restart(trainer.step)
    seconds = 60 * args.minutes - trainer.seconds - (time.monotonic() - began)
    trainer.run(seconds_until(args.until) if args.until else seconds, ahead, save_every=args.save_every)
    if ahead is not None:
        ahead.close()
    if team.size > 1:
        dist.destroy_process_group()


def drawing(recipe: Recipe, process: int, teaching: Teaching) -> Draw:
    """What draws the lesson of a step."""
    return partial(draw_lesson, recipe.seed, process=process, teaching=teaching, times=recipe.batch, style=recipe.style)


def new_tower(recipe: Recipe, out: Path, team: Team, args: argparse.Namespace, ahead: Ahead | None) -> Path:
    """The folder of a tower trained for `--tower-minutes`, unless it is there already."""
    clip = out / "clip"
    if (clip / "model.safetensors").exists():
        return clip
    torch.manual_seed(recipe.seed)
    model, times = MiniModel(len(build()), LAYERS), min(TOWER_TIMES, recipe.batch)
    trainer = TowerTrainer(model, team, torch.device(args.device), recipe.seed, times, recipe.style)
    if ahead is not None:
        ahead.restart(0)
    trainer.run(60 * args.tower_minutes, out, ahead)
    if not team.rank:
        export_tower(model, out / "clip.part")
        (out / "clip.part").rename(clip)  # a killed run leaves no half of it
    team.everyones(None)  # the others read it next
    return clip


def progress(out: Path) -> int:
    """Steps of the saved state."""
    path = out / "state.pt"
    return int(torch.load(path, weights_only=True, mmap=True)["progress"]["step"]) if path.exists() else 0


def main(argv: list[str] | None = None) -> None:
    began = time.monotonic()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes already
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # shapes differ from step to step
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for log and state; resumes what it finds there")
    parser.add_argument("--minutes", type=float, default=180.0, help="of the command in all (%(default)s)")
    parser.add_argument("--until", metavar="HH:MM", help="UTC; instead of --minutes, the end of the training")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for one GPU")
    parser.add_argument("--processes", type=int, help="that share a step (2 on CPUs, 1 on a GPU)")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw lessons ahead, per process")
    parser.add_argument("--batch", type=int, default=1, help="times as many scenes a step (%(default)s; 32 on a GPU)")
    parser.add_argument("--start", type=Path, help="checkpoint to begin from; teaches what it has not learned")
    parser.add_argument("--ship", action="store_true", help="save checkpoints in place of a state to resume from")
    parser.add_argument("--save-every", type=float, default=180.0, metavar="S", help="seconds (%(default)s)")
    parser.add_argument("--rate", type=float, default=Recipe.rate, help="peak rate of Muon (%(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="(%(default)s)")
    parser.add_argument("--whole", action="store_true", help="from scratch, all that --start teaches too (for a GPU)")
    parser.add_argument("--world", choices=list(STYLES), default=Recipe.style, help="of the scenes (%(default)s)")
    parser.add_argument(
        "--tower-minutes", type=float, default=0.0, metavar="M", help="train a tower first, of --minutes (%(default)s)"
    )
    args = parser.parse_args(argv)
    if args.start and (args.whole or args.tower_minutes):
        parser.error("--start continues a decoder on its own tower; --whole and --tower-minutes begin from scratch")
    args.processes = args.processes or (2 if args.device == "cpu" else 1)
    args.out.mkdir(parents=True, exist_ok=True)
    meeting = str((args.out / f"meeting-{time.time_ns()}").resolve())
    recipe = Recipe(args.seed, args.rate, batch=args.batch, more=bool(args.start), whole=args.whole, style=args.world)
    recipe = replace(recipe, latest=0.35) if args.whole else recipe
    (args.out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    told = (recipe, args.out, args, meeting, began)
    if args.processes == 1:
        work(0, *told)
    else:
        mp.spawn(work, told, nprocs=args.processes)


if __name__ == "__main__":
    main()
