"""The suites of `benchmarks/ideas.py`: for each name, how to build its method for a budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import vlm_pruner as vp
from benchmarks import candidates as c
from vlm_pruner.methods import Pruner

REFERENCE = "exact greedy"
Make = Callable[[int], Pruner]


def _make(method: type[Pruner], settings: dict[str, Any], budget: int) -> Pruner:
    if "pivots" in {f for f in method.__dataclass_fields__}:
        settings = {"pivots": min(4, budget), **settings}
    return method(keep_tokens=budget, **settings)


def made(method: type[Pruner], **settings: Any) -> Make:
    return partial(_make, method, settings)


ours = partial(made, vp.CentrifugalPruner)
BASE: dict[str, Make] = {REFERENCE: ours()}
BUDGETS: dict[str, Make] = {
    **BASE,
    "random": made(vp.RandomPruner),
    "divprune": made(vp.methods.get("divprune")),
    "divprune layer 2": made(vp.methods.get("divprune"), layer=2),
    "token batch 16": ours(token_batch=16),
    "token batch 4": ours(token_batch=4),
    "no spatial weight": ours(spatial_weight=0.0),
    "no SWA": ours(self_weight=1.0),
}
TUNE: dict[str, Make] = {
    **BASE,
    "batch 16": ours(token_batch=16),
    "divprune L2": made(vp.methods.get("divprune"), layer=2),
    "lambda 0": ours(spatial_weight=0.0),
    "lambda 1": ours(spatial_weight=1.0),
    "no SWA": ours(self_weight=1.0),
    "pivots 1": ours(pivots=1),
    "all channels": ours(channels=100000),
    "farthest": made(c.Farthest),
    "farthest l0": made(c.Farthest, spatial_weight=0.0),
    "farthest l.5>-.5": made(c.Farthest, last_weight=-0.5),
    "farthest l0>-1": made(c.Farthest, spatial_weight=0.0, last_weight=-1.0),
    "farthest l.5>-2": made(c.Farthest, spatial_weight=0.5, last_weight=-2.0),
    "farthest centred": made(c.Farthest, centred=True, spatial_weight=0.0),
    "farthest sal .3": made(c.Farthest, saliency=0.3),
    "farthest sal 1": made(c.Farthest, saliency=1.0),
    "packing": made(c.Packing),
    "packing l0": made(c.Packing, spatial_weight=0.0),
    "coverage": made(c.Coverage),
    "coverage p4": made(c.Coverage, power=4.0),
    "coverage centred": made(c.Coverage, centred=True),
    "residual": made(c.Residual),
    "residual .7": made(c.Residual, damp=0.7),
    "dpp": made(c.Determinant),
    "dpp sal": made(c.Determinant, power=1.0),
    "dpp centred sal": made(c.Determinant, power=1.0, centred=True),
    "swa p4": made(c.Aggregation, power=4.0),
    "swa cut .8": made(c.Aggregation, cutoff=0.8),
    "swa reach 3": made(c.Aggregation, reach=3.0),
    "swa adaptive": made(c.Aggregation, adaptive=True),
    "swa adaptive p4": made(c.Aggregation, adaptive=True, power=4.0),
}
LOOK: dict[str, Make] = {
    **BASE,
    "fastv": made(vp.methods.get("fastv")),
    "look all .5": made(c.Looked, attention=0.5),
    "look all 1": made(c.Looked, attention=1.0),
    "look last .5": made(c.Looked, attention=0.5, rows="last"),
    "look max .5": made(c.Looked, attention=0.5, rows="max"),
    "look all half": made(c.Looked, share=0.5),
    "look max half": made(c.Looked, share=0.5, rows="max"),
}
TUNE2: dict[str, Make] = {
    **BASE,
    "divprune L2": made(vp.methods.get("divprune"), layer=2),
    "packing": made(c.Packing),
    "packing l1": made(c.Packing, spatial_weight=1.0),
    "packing sal .3": made(c.Packing, saliency=0.3),
    "packing sal 1": made(c.Packing, saliency=1.0),
    "farthest sal 1": made(c.Farthest, saliency=1.0),
    "residual": made(c.Residual),
    "residual no SWA": made(c.Residual, self_weight=1.0),
    "residual .85": made(c.Residual, damp=0.85),
    "residual .5": made(c.Residual, damp=0.5),
    "residual flat .5": made(c.Residual, flatten=0.5),
    "residual seeded": made(c.Residual, seeded=True),
    "residual all ch": made(c.Residual, channels=100000),
    "dpp centred sal": made(c.Determinant, power=1.0, centred=True),
    "look all .5": made(c.Looked, attention=0.5),
    "look max half": made(c.Looked, share=0.5, rows="max"),
}
TUNE3: dict[str, Make] = {
    **BASE,
    "packing": made(c.Packing),
    "packing sal .3": made(c.Packing, saliency=0.3),
    "residual": made(c.Residual),
    "residual no SWA": made(c.Residual, self_weight=1.0),
    "residual b.7": made(c.Residual, self_weight=0.7),
    "look .5": made(c.Looked, attention=0.5),
    "look 1": made(c.Looked, attention=1.0),
    "look packing .5": made(c.LookedPacking, attention=0.5),
    "look residual .5": made(c.LookedResidual, attention=0.5),
    "look residual 1": made(c.LookedResidual, attention=1.0),
    "look residual .5 last": made(c.LookedResidual, attention=0.5, rows="last"),
}
TUNE4: dict[str, Make] = {
    **BASE,
    "exact greedy b.7": ours(self_weight=0.7),
    "packing b.7": made(c.Packing, self_weight=0.7),
    "residual b.7": made(c.Residual, self_weight=0.7),
    "residual b.7 flat .5": made(c.Residual, self_weight=0.7, flatten=0.5),
    "look residual .5 b.7": made(c.LookedResidual, attention=0.5, self_weight=0.7),
    "look residual .25 b.7": made(c.LookedResidual, attention=0.25, self_weight=0.7),
}
IDEAS: dict[str, Make] = {  # chosen on the tuning scenes, reported on the test scenes
    **BASE,
    "packing": made(c.Packing),
    "residual": made(vp.methods.get("residual")),
    "residual-question": made(vp.methods.get("residual-question")),
}
SUITES: dict[str, dict[str, Make]] = {
    "budgets": BUDGETS,
    "ideas": IDEAS,
    "look": LOOK,
    "tune": TUNE,
    "tune2": TUNE2,
    "tune3": TUNE3,
    "tune4": TUNE4,
}
