"""What a trained model can do on held-out scenes, and how it does it:

    python -m playground.mini.checks playground/mini/runs/nouns --out checks.json    # or a checkpoint's folder

All with 576 visual tokens and exact match, on scenes of the world that the run's recipe.json names (else the default
one), with surfaces that training never saw. First accuracy by kind, part, size of the thing asked about, and number
(counting is the mean over 0 to 6, each answer as often as any other). Then six checks of how fair the model is to
methods of pruning:

1. what is left when questions see the picture in the layers before K only, K = 0 (blind rates) to 8;
2. the K at which half of what the picture gives is there, by kind;
3. what is lost without layers 0 and 1, without any one layer, and with one layer alone;
4. the largest head's attention on the thing asked about, by layer, at the noun and at the answer token;
5. the same of layer 1 beside the thing's share of the picture: what FastV at layer 2 has to go by;
6. the class token's attention in the tower's last layer on things and signs, and on distractors, beside their shares of
   the picture: what methods have to go by that choose by the class token.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from playground.mini.course import (
    ALL_24,
    BLIND,
    KIND_NUMBERS,
    NOUN_BLIND,
    Lesson,
    Teaching,
    assemble,
    questions_of,
)
from playground.mini.helps import masses
from playground.mini.model import MiniModel, Sight, Watch, to_pixels
from playground.mini.questions import MAX_COUNT, Question, _countable
from playground.mini.textures import Gallery
from playground.mini.train import LAYERS, answers, load
from playground.mini.world import GRID, STYLES, Scene, counting_scene, gallery, make_scene, patches_inside

GALLERY, SEED = 3, 31337
MIX = {"existence": 2, "attribute": 6, "relation": 3, "two_way": 2, "reading": 2, "choice": 4}
MIX |= {"verify": 2, "glyph": 2, "seen": 2, "near": 2, "beside": 2}
BATCH = 8  # scenes
QUICK = (56, 12, 8)  # scenes for accuracy, questions per number, scenes for the checks
Rows = list[tuple[str, str, str, str, bool]]  # kind, part, size, answer, right
OPEN = Teaching({}, {})


def contents(rng: np.random.Generator) -> tuple[int, int, int]:
    """Things, signs and distractors of the default world."""
    low, high = ALL_24.things
    return int(rng.integers(low, high + 1)), ALL_24.signs, int(rng.integers(*np.add(ALL_24.distractors, (0, 1))))


def plain_scenes(rng: np.random.Generator, count: int, surfaces: Gallery) -> Iterator[Scene]:
    for _ in range(count):
        yield make_scene(rng, surfaces, GRID, GRID, contents(rng))


def counted(rng: np.random.Generator, number: int, surfaces: Gallery) -> tuple[Scene, Question]:
    """A scene and a question whose answer is `number`; large ones need scenes made for it."""
    while True:
        if number < 4:
            scene = make_scene(rng, surfaces, GRID, GRID, contents(rng))
        else:
            scene = counting_scene(rng, surfaces, GRID, GRID, contents(rng), number)
        names = [name for n, name in _countable(scene) if n == number]
        if names:
            text = f"How many {names[rng.integers(len(names))]} are there in the image?"
            return scene, Question("count", text, str(number))


def pictures(
    count: int, mix: dict[str, int] = MIX, seed: int = SEED, teaching: Teaching = OPEN, style: str = "default"
) -> Iterator[Lesson]:
    """Batches of held-out scenes with the questions of `mix`; the same ones for the same seed, whatever `teaching`."""
    for start in range(0, count, BATCH):
        rng = np.random.default_rng([seed, start])
        scenes = list(plain_scenes(rng, min(BATCH, count - start), gallery(GALLERY, style)))
        asked = [questions_of(rng, scene, mix) for scene in scenes]
        yield assemble(rng, [(scene, (0, 0)) for scene in scenes], asked, teaching)


def numbers(each: int, seed: int = SEED, style: str = "default") -> Iterator[Lesson]:
    """Batches that ask for each number from 0 to 6 `each` times, one question a scene."""
    wanted = [n for n in range(MAX_COUNT + 1) for _ in range(each)]
    for start in range(0, len(wanted), BATCH):
        rng = np.random.default_rng([seed, 7, start])
        pairs = [counted(rng, n, gallery(GALLERY, style)) for n in wanted[start : start + BATCH]]
        yield assemble(rng, [(scene, (0, 0)) for scene, _ in pairs], [[question] for _, question in pairs], OPEN)


@torch.no_grad()
def score(model: MiniModel, lessons: Iterator[Lesson] | list[Lesson], sight: Sight | None = None) -> Rows:
    """One row per question; `sight` in place of the lesson's own."""
    rows: Rows = []
    for lesson in lessons:
        with torch.autocast("cpu", torch.bfloat16):
            features = model.see(to_pixels(lesson.pixels), lesson.raster)
            hidden = model.read(features, lesson.raster, lesson.packs, sight=sight or lesson.sight)
            right = answers(model, hidden, lesson).right.numpy()
        columns = (lesson.kinds, lesson.parts, lesson.sizes, lesson.answers, right)
        rows += [(*map(str, row[:4]), bool(row[4])) for row in zip(*(c.flat for c in columns), strict=True)]
    return rows


def table(rows: Rows) -> dict[str, list[float]]:
    """[accuracy in %, questions] by kind, "kind part" and "kind size"; of counting the mean over numbers."""
    found: dict[str, list[bool]] = defaultdict(list)
    for kind, part, size, answer, right in rows:
        part = answer if kind == "count" else part
        for name in {kind, f"{kind} {part}" if part else kind, f"{kind} {size}" if size and part != "size" else kind}:
            found[name].append(right)
    out = {name: [round(100 * float(np.mean(v)), 1), len(v)] for name, v in sorted(found.items())}
    if "count" in out:
        parts = [value for name, (value, _) in out.items() if name.startswith("count ")]
        out["count"][0] = round(float(np.mean(parts)), 1)
    return out


def kinds(rows: Rows) -> dict[str, float]:
    return {name: value for name, (value, _) in table(rows).items() if " " not in name}


def by_depth(model: MiniModel, lessons: list[Lesson]) -> dict[str, dict[str, float]]:
    """Checks 1 to 3: accuracy by kind, by the layers in which questions see the picture."""
    everything = set(range(LAYERS))
    sights = {f"before {k}": set(range(k)) for k in range(LAYERS + 1)}
    sights |= {"without 0, 1": everything - {0, 1}}
    sights |= {f"without {layer}": everything - {layer} for layer in range(LAYERS)}
    sights |= {f"only {layer}": {layer} for layer in range(LAYERS)}
    return {name: kinds(score(model, lessons, Sight(frozenset(layers)))) for name, layers in sights.items()}


def half_depth(depths: dict[str, dict[str, float]]) -> dict[str, int]:
    """Check 2: by kind the smallest K with half of the gain over the blind rate."""
    first, last = depths["before 0"], depths[f"before {LAYERS}"]
    reached = {kind: [depths[f"before {k}"][kind] for k in range(LAYERS + 1)] for kind in first}
    return {
        kind: next(k for k, value in enumerate(values) if value >= (first[kind] + last[kind]) / 2)
        for kind, values in reached.items()
    }


@torch.no_grad()
def attention(model: MiniModel, count: int, style: str = "default") -> dict[str, list[float]]:
    """Checks 4 and 5: largest head's attention on the thing, by layer; and the thing's share of the patches."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    looked = Teaching({}, {}, noun_blind=1e-12)  # marks the answer token too, blinds nothing
    for name, mix in (("attribute", {"attribute": 8}), ("relation", {"relation": 8})):
        for lesson in pictures(count, mix, SEED + 1, looked, style):
            watch = Watch(range(LAYERS))
            with torch.autocast("cpu", torch.bfloat16):
                features = model.see(to_pixels(lesson.pixels), lesson.raster)
                model.read(features, lesson.raster, lesson.packs, sight=Sight(), watch=watch)
            on = (lesson.target > 0)[:, None]
            layers = [torch.where(on, masses(lesson, watch.weights[i]), 0.0).sum(-1) for i in range(LAYERS)]
            best = torch.stack([mass.max(1).values for mass in layers], 1)  # [E, layers]
            area = ((lesson.target[:, :, None] > 0) * lesson.rows[lesson.mark_at[:, 0]]).sum((1, 2)) / (GRID * GRID)
            for who in ("thing", "look"):
                own = lesson.mark_kind == KIND_NUMBERS[who]
                if own.any():
                    found[f"{name}, {'noun' if who == 'thing' else 'answer token'}"].append(best[own].numpy())
                    found[f"{name}, area"].append(area[own].numpy()[:, None])
    return {name: np.concatenate(v).mean(0).round(3).tolist() for name, v in found.items()}


def class_attention(model: MiniModel, pixels: Tensor, raster: Tensor) -> Tensor:
    """Of the class token in the tower's last layer, mean over heads, on itself and each patch: [B, 1 + N]."""
    tower = getattr(model.tower, "vision_model", model.tower)
    states: list[Tensor] = []
    *_, last = tower.encoder.layers
    handle = last.layer_norm1.register_forward_hook(lambda module, given, out: states.append(out))
    model.look(pixels, raster)
    handle.remove()
    heads = last.self_attn.num_heads
    (h,) = states
    q = last.self_attn.q_proj(h[:, :1]).unflatten(-1, (heads, -1)).transpose(1, 2)
    k = last.self_attn.k_proj(h).unflatten(-1, (heads, -1)).transpose(1, 2)
    return (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(-1)[:, :, 0].mean(1)


@torch.no_grad()
def class_token(model: MiniModel, count: int, style: str = "default") -> dict[str, dict[str, float]]:
    """Check 6: shares of the class token's attention to patches, and of the patches themselves, in `count` scenes."""
    rng, mass, area = np.random.default_rng([SEED, 9]), defaultdict(list), defaultdict(list)
    raster = torch.arange(GRID * GRID)[None]
    for scene in plain_scenes(rng, count, gallery(GALLERY, style)):
        weights = class_attention(model, to_pixels(torch.from_numpy(np.asarray(scene.image).copy())[None]), raster)
        to_patches = (weights[0, 1:] / weights[0, 1:].sum()).numpy()
        boxes = {"things": [t.box for t in scene.things], "signs": [s.box for s in scene.signs]}
        for name, own in (boxes | {"distractors": scene.distractors}).items():
            inside = np.any([patches_inside(box, GRID, GRID, margin=2) for box in own], axis=0).reshape(-1)
            mass[name].append(float(to_patches[inside].sum()))
            area[name].append(float(inside.mean()))
    return {
        name: {"mass": round(float(np.mean(mass[name])), 3), "area": round(float(np.mean(area[name])), 3)}
        for name in mass
    }


def report(
    model: MiniModel, scenes: int = 208, each: int = 60, some: int = 32, style: str = "default"
) -> dict[str, object]:
    """Everything; `some` scenes for the checks."""
    asked = score(model, pictures(scenes, style=style)) + score(model, numbers(each, style=style))
    out: dict[str, object] = {"held out": table(asked)}
    mix = {kind: n for kind, n in MIX.items() if kind != "beside"} | {"count": 4}
    few = list(pictures(some, mix, style=style))
    out["by depth"] = depths = by_depth(model, few)
    out["half of the gain before layer"] = half_depth(depths)
    for name, teaching in (
        ('blind behind "?"', Teaching({}, {}, blind=1.0, choice_blind=1.0)),
        ('blind up to "?"', Teaching({}, {}, noun_blind=1.0)),
    ):
        role = BLIND if teaching.blind else NOUN_BLIND
        lessons = list(pictures(some, mix, teaching=teaching, style=style))
        flat = [r for lesson in lessons for r in lesson.roles.flatten().tolist()]
        rows = [row for row, r in zip(score(model, lessons), flat, strict=True) if r == role]
        out[name] = table(rows)
    out["attention"] = attention(model, some, style)
    out["class token"] = class_token(model, some, style)
    return out


def style_of(run: Path) -> str:
    """The world that a run or its checkpoint was trained on, by the recipe.json beside it."""
    for folder in (run, run.parent):
        if (folder / "recipe.json").exists():
            return str(json.loads((folder / "recipe.json").read_text())["style"])
    return "default"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that playground.mini.train wrote, or a checkpoint's")
    parser.add_argument("--scenes", type=int, default=208, help="for accuracy (%(default)s)")
    parser.add_argument("--each", type=int, default=60, help="questions per number (%(default)s)")
    parser.add_argument("--some", type=int, default=32, help="scenes for the checks (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer of all of these, in some two minutes of one core")
    parser.add_argument("--world", choices=list(STYLES), help="of the scenes (default: the one of recipe.json)")
    parser.add_argument("--out", type=Path, help="JSON file to write as well")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    style = args.world or style_of(args.run)
    sizes = QUICK if args.quick else (args.scenes, args.each, args.some)
    found = report(load(args.run), *sizes, style)
    text = json.dumps({"run": str(args.run), "world": style, "seed": SEED, **found}, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
