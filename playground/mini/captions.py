"""Captions, an answer of some forty tokens, scored by the facts that they name:

    python -m playground.mini.captions --model DIR --methods dense,random,vlm-pruner --budget 192,64 --scenes 60

A caption lists every thing from left to right ("a small red star, a large blue ring"), then both texts ("number 472,
word oeh"). A fact is a thing with size, colour and shape all right, or a text. Precision is the share of the facts said
that are true, recall the share of the true ones that are said; each true fact counts once. The pruned cache is used at
every token, so that errors and costs of a whole response show; seconds and cache are a batch's, divided by its size.
Scenes are those of the mini benchmarks, with surfaces that training never saw. A decoder must have been taught
captions, as the embedded one and the judges were (`playground.mini.train --start`, `--whole`).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from playground.mini.benchmarks import scenes
from playground.mini.question_file import Asked, write_about_pictures
from playground.mini.questions import ask
from playground.mini.world import Scene
from vlm_pruner.experiments.arms import Arm, make_arms
from vlm_pruner.experiments.bootstrap import PictureBootstrap
from vlm_pruner.experiments.llava_answerer import LlavaAnswerer
from vlm_pruner.experiments.questions import Question, read_questions

NAME = "captions"  # what the scenes' seed is made of
LENGTH = 96  # tokens, more than any caption has
BATCH = 16


@dataclass(frozen=True)
class Score:
    """Of one caption: facts said, true, and both."""

    said: int
    true: int
    right: int

    @property
    def precision(self) -> float:
        """0 where nothing was said: silence is no virtue."""
        return self.right / self.said if self.said else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.true


def facts(caption: str) -> Counter[str]:
    """What a caption says, with how often it says it."""
    parts = (" ".join(part.split()) for part in caption.lower().split(","))
    return Counter(part for part in parts if part)


def score(said: str, true: str) -> Score:
    one, other = facts(said), facts(true)
    return Score(one.total(), other.total(), (one & other).total())


def write(out: Path, count: int) -> Path:
    """One caption to write for each of `count` scenes, in the main job's form; returns the file."""
    write_about_pictures(out, ((scene.image, _captions(rng, scene)) for rng, scene in scenes(NAME, count)))
    return out / "questions.jsonl"


def _captions(rng: np.random.Generator, scene: Scene) -> Asked:
    question = ask(rng, scene, "caption")
    assert question is not None
    return [("caption", question)]


def compare(answerer: LlavaAnswerer, questions: list[Question], arms: list[Arm], resamples: int) -> list[dict]:
    """One row per arm, with means over captions and the intervals of precision and recall, in %."""
    scores: dict[str, list[Score]] = defaultdict(list)
    costs: dict[str, list[tuple[float, int]]] = defaultdict(list)
    asked = [question for batch in answerer.batches(questions, BATCH) for question in batch]
    for turn, batch in enumerate(answerer.batches(questions, BATCH)):
        for arm in arms:
            replies = answerer.answer(batch, arm.method_for(turn))
            pairs = zip(replies, batch, strict=True)
            scores[arm.key] += [score(reply.text, question.answer) for reply, question in pairs]
            costs[arm.key] += [(reply.seconds, reply.kv_bytes) for reply in replies]
    bootstrap = PictureBootstrap([q.image for q in asked], ["caption"] * len(asked), resamples)
    rows = []
    for arm in arms:
        own = scores[arm.key]
        row: dict[str, object] = {"arm": arm.label, "tokens": arm.tokens, "captions": len(own)}
        for name in ("precision", "recall"):
            found = bootstrap.over_kinds([100 * getattr(s, name) for s in own])
            row[name] = [round(value, 1) for value in (found.mean, found.low, found.high)]
        row["facts"] = round(float(np.mean([s.said for s in own])), 1)
        row["ms"], row["cache KiB"] = np.mean(costs[arm.key], axis=0).round(4).tolist()
        row["ms"], row["cache KiB"] = round(1000 * row["ms"]), round(row["cache KiB"] / 1024)
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    lines = ["method            tokens  precision          recall             facts  ms   cache KiB"]
    for row in rows:
        shares = ("{:5.1f} [{:.1f}, {:.1f}]".format(*row[name]) for name in ("precision", "recall"))
        lines.append("{:16}  {:6}  {:17}  {:17}".format(row["arm"], row["tokens"], *shares))
        lines[-1] += f"  {row['facts']:5}  {row['ms']:3}  {row['cache KiB']:9}"
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="LLaVA checkpoint that was taught captions")
    parser.add_argument("--methods", default="dense,random,vlm-pruner", metavar="NAME,NAME", help="(%(default)s)")
    parser.add_argument("--budget", default="192,128,64", metavar="N,N", help="(%(default)s)")
    parser.add_argument("--scenes", type=int, default=60, metavar="N", help="(%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("playground/data/captions"), help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to write as well")
    args = parser.parse_args(argv)
    questions = read_questions(write(args.data, args.scenes))
    answerer = LlavaAnswerer.load(args.model, args.device, LENGTH)
    arms = make_arms(args.methods.split(","), args.budget.split(","), answerer.facts(questions))
    rows = compare(answerer, questions, arms, 10_000)
    if args.out:
        args.out.write_text(json.dumps({"model": str(args.model), "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
