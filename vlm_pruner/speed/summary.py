"""Turns single runs into figures: median and p95, paired ratios with intervals, and the cost model's prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from vlm_pruner.console import DENSE
from vlm_pruner.cost.flops import (
    DecoderShape,
    Machine,
    kv_bytes,
    lengths,
    prefill_seconds,
    selection_seconds,
    step_seconds,
)
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.speed.timing import Case

SECONDS = ("vision", "selection", "prefill", "first_token", "per_token", "end_to_end")
RESAMPLES = 2000
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Decoder:
    """Inputs of the cost model: the decoder's sizes, bytes per number, bytes of the whole model's weights."""

    shape: DecoderShape
    bytes_per_number: int
    weight_bytes: int


def summarise_case(
    case: Case, arms: Sequence[Arm], records: Iterable[Mapping[str, Any]], **know: Any
) -> dict[str, Any]:
    """Summarises one case, ready for JSON. know: `decoder` and `machine`."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {arm.key: [] for arm in arms}
    for record in records:
        if record["case"] == case.key and record["arm"] in by_arm:
            by_arm[record["arm"]].append(record)
    for runs in by_arm.values():
        runs.sort(key=lambda record: record["round"])
    dense = next(by_arm[arm.key] for arm in arms if arm.name == DENSE)
    described = [_summarise_arm(arm, case, by_arm[arm.key], dense, **know) for arm in arms]
    sizes = {"batch": case.batch, "visual": dense[0]["visual"], "text": dense[0]["text"]}
    return {**sizes, "new_tokens": case.new_tokens, "rounds": len(dense), "arms": described}


def _summarise_arm(
    arm: Arm, case: Case, runs: Records, dense: Records, *, decoder: Decoder, machine: Machine
) -> dict[str, Any]:
    expected = predict(case, runs[0], dense, decoder, machine)
    dense_expected = predict(case, dense[0], dense, decoder, machine)
    own, their = _values(runs), _values(dense)
    figures = {}
    for name, values in own.items():
        pairs = None if arm.name == DENSE or name not in their else (their[name], values)
        both = (dense_expected.get(name), expected.get(name))
        figures[name] = _figure(values, pairs, both)
    return {"key": arm.key, **arm.describe(), "steps": runs[0]["steps"], "figures": figures}


def _values(runs: Records) -> dict[str, list[float]]:
    found = {name: [run["seconds"][name] for run in runs] for name in SECONDS if name in runs[0]["seconds"]}
    return found | {name: [run[name] for run in runs] for name in ("peak_bytes", "kv_bytes") if runs[0][name]}


def _figure(
    values: Sequence[float],
    pairs: tuple[Sequence[float], Sequence[float]] | None,
    expected: tuple[float | None, float | None],
) -> dict[str, Any]:
    long, short = expected
    figure: dict[str, Any] = {"median": median(values), "p95": _p95(values), "n": len(values)}
    figure |= {"predicted": short, "ratio": None, "predicted_ratio": None, "reached": None}
    if pairs is not None:
        figure["ratio"] = ratio(*pairs)
        if long and short:
            figure["predicted_ratio"] = long / short
            figure["reached"] = figure["ratio"]["value"] * short / long
    return figure


def _p95(values: Sequence[float]) -> float:
    """The smallest value that at least 95 % of all do not exceed."""
    return float(np.percentile(values, 95, method="inverted_cdf"))


def predict(case: Case, run: Mapping[str, Any], dense: Records, decoder: Decoder, machine: Machine) -> dict[str, float]:
    """The cost model's prediction of each figure of a run: the least that the machine can need.

    The vision tower is not modelled: the dense model's measured time counts for both, so that ratios of sums hold.
    """
    shape = decoder.shape
    numbers: Any = {"bytes_per_number": decoder.bytes_per_number}
    visual, text = run["visual"], run["text"]
    tokens = lengths(shape, text, visual, run["steps"])
    cached = [n + case.new_tokens - 1 for n in tokens]
    halfway = [n + case.new_tokens // 2 for n in tokens]
    vision = median(record["seconds"]["vision"] for record in dense)
    prefill = prefill_seconds(shape, tokens, machine, batch=case.batch, **numbers)
    choose = 0.0
    if run["steps"]:
        kept = run["steps"][-1][1]
        choose = case.batch * selection_seconds(shape, visual, kept, machine, **numbers)
    step = step_seconds(shape, halfway, machine, batch=case.batch, **numbers)
    cache = kv_bytes(shape, cached, batch=case.batch, **numbers)
    expected = {
        "prefill": prefill,
        "first_token": vision + prefill,
        "per_token": step,
        "end_to_end": vision + prefill + (case.new_tokens - 1) * step,
        "kv_bytes": cache,
        "peak_bytes": decoder.weight_bytes + cache,
    }
    return expected | ({"selection": choose} if choose else {})


def ratio(long: Sequence[float], short: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Median over rounds of long / short, with the interval of `over_rounds`.

    Not the ratio of two medians: the two runs of a round are neighbours, and a machine that changes its pace between
    rounds changes it for both.
    """
    return over_rounds(_of_ratios, list(zip(long, short, strict=True)), seed)


def over_rounds(
    figure: Callable[[Sequence[tuple[float, float]]], float], rounds: Sequence[tuple[float, float]], seed: int = 0
) -> dict[str, float]:
    """A figure of paired rounds, with the 95 % interval of a bootstrap that draws whole rounds."""
    drawn = np.random.default_rng(seed).integers(len(rounds), size=(RESAMPLES, len(rounds)))
    low, high = np.quantile([figure([rounds[index] for index in draw]) for draw in drawn], [0.025, 0.975])
    return {"value": figure(rounds), "low": float(low), "high": float(high)}


def _of_ratios(rounds: Sequence[tuple[float, float]]) -> float:
    return median(one / other for one, other in rounds)


def break_even(name: str, share: float, batch: int, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Finds the number of visual tokens from which a method speeds up the prefill, given cases with two arms each.

    Interpolates the saved seconds linearly between the last size that is slower and the next one.
    """
    points = []
    for case in sorted(cases, key=lambda case: case["visual"]):
        dense, pruned = case["arms"]
        figure = pruned["figures"]["prefill"]
        saved = dense["figures"]["prefill"]["median"] - figure["median"]
        point = {"visual": case["visual"], "kept": pruned["tokens"], "saved_seconds": saved}
        points.append(point | {key: figure[key] for key in ("ratio", "predicted_ratio")})
    found = {"name": name, "share": share, "batch": batch, "points": points}
    return found | _where(points)


def _where(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    losing = [index for index, point in enumerate(points) if point["saved_seconds"] <= 0]
    if not losing:
        smallest = points[0]["visual"]
        return {"visual": smallest, "says": f"pays at every size tried, from {smallest} visual tokens on"}
    if losing[-1] == len(points) - 1:
        return {"visual": None, "says": f"does not pay at {points[-1]['visual']} visual tokens, the largest size tried"}
    below, above = points[losing[-1]], points[losing[-1] + 1]
    part = -below["saved_seconds"] / (above["saved_seconds"] - below["saved_seconds"])
    visual = round(below["visual"] + part * (above["visual"] - below["visual"]))
    says = f"pays from about {visual} visual tokens on (between {below['visual']} and {above['visual']})"
    return {"visual": visual, "says": says}
