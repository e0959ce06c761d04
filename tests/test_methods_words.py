"""One way from words to a method: every door reads the same values and refuses the same ones, in the same words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import vlm_pruner as vp
from llava.eval import evaluate, model_vqa_loader
from llava.eval import options as generator_options
from vlm_pruner.commands import options
from vlm_pruner.cost.budgets import Budget
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.arms import ModelFacts, make_arm
from vlm_pruner.lmms.arguments import Arguments, build_method, read_arguments
from vlm_pruner.methods import Pruner, words
from vlm_pruner.web import settings as page

KEEP = 32


def command(name: str, *settings: str) -> Pruner:
    return options.Wanted.read(name, str(KEEP), settings=settings).plain()


def comparison(name: str, *settings: str) -> Pruner | None:
    return make_arm(":".join([name, *settings]), Budget("tokens", KEEP), ModelFacts(576)).method


def generator(name: str, *settings: str) -> Pruner | None:
    flags = ["--sparse", "--method", ":".join([name, *settings]), "--keep_tokens", str(KEEP)]
    paths = ["--model-path", "m", "--question-file", "q", "--answers-file", "a"]
    return generator_options.build_method(evaluate.build_parser(model_vqa_loader.TASK).parse_args([*paths, *flags]))


def harness(name: str, *settings: str) -> Pruner | None:
    given = {"pretrained": "m", "method": ":".join([name, *settings]), "keep_tokens": KEEP}
    return build_method(read_arguments(Arguments, given))


def live_page(name: str, *settings: str) -> Pruner:
    """The page sets the layer by a slider of its own, and a slider gives a number with a point."""
    method, given = vp.methods.get(words.SHORTHANDS.get(name, name).split(":")[0]), words.settings_of(settings)
    layer = given.pop("layer", None) or method.layer
    named = ":".join([name, *(f"{field}={value}" for field, value in given.items())])
    return page.make(SimpleNamespace(model=None), named, float(KEEP), layer)  # type: ignore[arg-type]


DOORS: dict[str, Callable[..., Pruner | None]] = {
    "--set": command, "NAME:field=value": comparison, "flags": generator, "model_args": harness, "page": live_page,
}  # fmt: skip


@pytest.fixture(autouse=True)
def any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "prune", lambda model, method: None)


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Callable[..., Pruner | None]:
    return DOORS[request.param]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (["vlm-pruner", "layer=3", "spatial_weight=0"], vp.CentrifugalPruner(None, KEEP, 3, spatial_weight=0.0)),
        (["vlm-pruner", "pivots=6.0", "channels=1e3"], vp.CentrifugalPruner(keep_tokens=KEEP, pivots=6, channels=1000)),
        (["vlm-pruner", "compat=None", "token_batch=16"], vp.CentrifugalPruner(keep_tokens=KEEP, token_batch=16)),
        (["vlm-pruner", "compat=null", "renumber=true"], vp.CentrifugalPruner(keep_tokens=KEEP, renumber=True)),
        (["vlm-pruner", "compat=released"], vp.CentrifugalPruner(keep_tokens=KEEP, compat="released")),
        (["vlm-pruner-16"], vp.CentrifugalPruner(keep_tokens=KEEP, token_batch=16)),
        (["random", "seed=7"], vp.RandomPruner(keep_tokens=KEEP, seed=7)),
        (["prumerge", "plus=False"], vp.methods.get("prumerge")(keep_tokens=KEEP, plus=False)),  # type: ignore[call-arg]
    ],
)  # fmt: skip
def test_every_door_makes_the_same_method(door: Callable[..., Pruner | None], asked: list[str], meant: Pruner) -> None:
    assert door(*asked) == meant


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["vlm-pruner", "layer=two"], "layer='two' is not a whole number; write for example layer=2"),
        (["vlm-pruner", "pivots=x"], "pivots='x' is not a whole number; write for example pivots=4"),
        (["vlm-pruner", "pivots=4.5"], "pivots='4.5' is not a whole number"),
        (["vlm-pruner", "pivots=None"], "pivots='None' is not a whole number"),
        (["vlm-pruner", "threshold=high"], "threshold='high' is not a number; write for example threshold=0.8"),
        (["vlm-pruner", "threshold=nan"], "threshold='nan' is not a number"),
        (["vlm-pruner", "threshold=inf"], "threshold='inf' is not a number"),
        (["vlm-pruner", "token_batch=few"], "token_batch='few' is not a whole number or None"),
        (["vlm-pruner", "renumber=1"], "renumber='1' is not True or False; write for example renumber=False"),
        (["vlm-pruner", "compat=paper"], "compat='paper' is not 'released' or None"),
        (["vlm-pruner", "lambda=1"], "lambda=1: lambda means nothing to method 'vlm-pruner'; leave it out, or give"),
        (["fastv", "threshold=0.8"], "threshold means nothing to method 'fastv'; leave it out, or give one of its"),
        (["vlm-pruner", "keep_tokens=9"], "keep_tokens=9 is a budget, not a setting"),
        (["vlm-pruner", "pivots=4", "pivots=5"], "pivots=4 and pivots=5 are both given; give one of them"),
        (["vlm-pruner-16", "token_batch=4"], "token_batch=16 and token_batch=4 are both given"),
        (["pyramiddrop", "stages=4;8"], "stages='4;8' is not whole numbers with commas between"),
        (["cdpruner"], "pass question= and joint="),
        (["fastvv"], "unknown method 'fastvv'; known methods: dart, divprune"),
        (["vlm-pruner", "pivots=0"], "pivots=0"),
    ],
)
def test_every_door_refuses_the_same_in_one_line(
    door: Callable[..., Pruner | None], asked: list[str], told: str
) -> None:
    with pytest.raises(PruningError) as refused:
        door(*asked)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_several_numbers_are_read_in_any_brackets() -> None:
    for given in ("4,8", "(4, 8)", "[4,8]", (4, 8)):
        assert words.read("stages", given, tuple[int, ...] | None) == (4, 8)


def test_flags_are_named_as_they_were_typed() -> None:
    paths = ["--model-path", "m", "--question-file", "q", "--answers-file", "a", "--sparse", "--keep_tokens"]
    parser = evaluate.build_parser(model_vqa_loader.TASK)
    for flags, told in {
        ("64", "--pruned_layer", "two"): "--pruned_layer='two' is not a whole number",
        ("64", "--pivot_image_token", "x"): "--pivot_image_token='x' is not a whole number",
        ("many",): "--keep_tokens='many' is not a whole number",
        ("64", "--method", "fastv", "--token_batch", "4"): "--token_batch=4: --token_batch means nothing to method",
        ("64", "--method", "fastv:layer=3", "--pruned_layer", "4"): "layer=3 and layer=4 are both given",
    }.items():
        with pytest.raises(PruningError, match=told):
            generator_options.build_method(parser.parse_args([*paths, *flags]))


def test_a_seed_is_for_methods_that_draw_and_yields_to_the_settings() -> None:
    assert words.from_words("random", {"keep_tokens": 4}, seed=3) == vp.RandomPruner(keep_tokens=4, seed=3)
    assert words.from_words("random:seed=5", {"keep_tokens": 4}, seed=3) == vp.RandomPruner(keep_tokens=4, seed=5)
    assert words.from_words("divprune", {"reduction_ratio": "0.5"}, seed=3).reduction_ratio == 0.5


@pytest.mark.parametrize("name", vp.methods.names())
def test_every_setting_of_every_method_can_be_typed_in(name: str) -> None:
    """What a result file says of a method, typed in again, is that method."""
    method = words.from_words(name, {"keep_tokens": 64})
    typed: dict[str, Any] = {field: str(value) for field, value in method.config().items() if field not in words.BUDGET}
    assert words.from_words(name, {"keep_tokens": "64"}, typed) == method


@pytest.mark.parametrize("name", vp.methods.names(every=True))
def test_whole_numbers_are_checked_in_python_too(name: str) -> None:
    method = vp.methods.get(name)
    whole = [field for field, kind in words._types(method).items() if kind is int]
    assert "layer" in whole
    for field in whole:
        for value in (2.5, "two", None):
            with pytest.raises(PruningError, match=f"{field}={value!r} must be a whole number"):
                method(keep_tokens=KEEP, **{field: value})


@pytest.mark.parametrize("name", vp.methods.names(every=True))
def test_numbers_are_checked_in_python_too(name: str) -> None:
    method = vp.methods.get(name)
    for field in (field for field, kind in words._types(method).items() if kind is float):
        for value in ("0.5", None):
            with pytest.raises(PruningError, match=f"{field}={value!r} must be a number"):
                method(keep_tokens=KEEP, **{field: value})
    with pytest.raises(PruningError, match=r"reduction_ratio='0\.5' must be at least 0 and below 1"):
        method(reduction_ratio="0.5")


@pytest.mark.parametrize("name", vp.methods.names())
def test_whole_numbers_may_be_numpys(name: str) -> None:
    """They become Python's, so that a method's settings can be written as JSON."""
    method = vp.methods.get(name)
    plain = method(keep_tokens=KEEP)
    whole = {field: value for field, value in plain.config().items() if type(value) is int}
    given = method(**{field: np.int64(value) for field, value in whole.items()})
    assert given == plain and json.dumps(given.config()) == json.dumps(plain.config())
    assert type(method(reduction_ratio=np.float32(0.5)).reduction_ratio) is float


def test_a_number_field_may_have_a_whole_default() -> None:
    @dataclasses.dataclass(frozen=True)
    class Weighted(vp.RandomPruner):
        weight: float = 1

    assert Weighted(keep_tokens=KEEP, weight=0.5).weight == 0.5
    with pytest.raises(PruningError, match="weight='1' must be a number"):
        Weighted(keep_tokens=KEEP, weight="1")  # type: ignore[arg-type]
