"""No method ignores one of its settings, one of the things that it asks for, or a head of the attention that it reads.

On random views in which every field differs from every other, so that a method that reads the wrong one shows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

import vlm_pruner as vp
from tests.every_method import of_pictures, of_videos
from tests.test_methods_reference import random
from tests.test_methods_reference_2026 import cosines, covered_best
from vlm_pruner.errors import PruningError
from vlm_pruner.methods import Pruner
from vlm_pruner.methods.d2pruner import Prior
from vlm_pruner.methods.evs import changes
from vlm_pruner.methods.mmtok import mmtok_order
from vlm_pruner.methods.view import View

NAMES = [*of_pictures(), *of_videos(), "d2pruner"]
HEADS, TEXT, WIDTH = 3, 7, 12
NUMBERS: dict[type, tuple[Any, ...]] = {
    bool: (False, True),
    int: (0, 1, 2, 3, 5, 8, 16, 32),
    float: (0.0, 0.01, 0.2, 0.5, 0.9, 1.0, 1.5, 3.0, 10.0),
}
# What one cut of one random picture does not show: schedules, quirks of released code, growth over many rounds.
ELSEWHERE = {
    ("d2pruner", "prior"), ("random", "seed"), ("pyramiddrop", "stages"), ("pyramiddrop", "ratios"),
    ("sparsevlm", "compat"), ("vlm-pruner", "compat"), ("vlm-pruner", "threshold_step"),
}  # fmt: skip
ITS_LENGTH = {("residual-question", "text_hidden")}  # a method that reads how many there are


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prior") / "prior.json"
    even = Prior(tuple(float(value) for value in random(48, seed=99).abs() + 0.1), 6, 8, layer=2, pictures=3)
    path.write_text(json.dumps({"prior": asdict(even)}))
    return str(path)


def make(name: str, prior: str, **settings: Any) -> Pruner:
    given = {"prior": prior, "threshold": 0.2} if name == "d2pruner" else {}  # few random states are joined at 0.8
    return vp.methods.get(name)(**{"keep_tokens": 20, **given, **settings})


def content(seed: int, videos: bool) -> dict[str, Any]:
    """Tensors for every field of a View."""
    layout = vp.TokenLayout.video(3, 4, 4) if videos else vp.TokenLayout.grid(6, 8)
    count = len(layout)

    def made(*shape: int, number: int) -> Tensor:
        return random(*shape, seed=100 * seed + number).float()

    return {
        "layout": layout,
        "hidden": made(count, WIDTH, number=1),
        "keys": made(count, WIDTH, number=2),
        "hidden_before": made(count, WIDTH, number=3),
        "text_hidden": made(TEXT, WIDTH, number=4),
        "text_keys": made(TEXT, WIDTH, number=5),
        "embeddings": made(count, WIDTH, number=6),
        "text_embeddings": made(TEXT, WIDTH, number=7),
        "attend": made(HEADS, TEXT, count, number=8).softmax(dim=-1),
        "attend_next": made(HEADS, TEXT, count, number=9).softmax(dim=-1),
        "cls_attention": made(HEADS, count, number=10).mul(3).softmax(dim=-1),  # so uneven that a run can overflow
        "patch_features": made(count, 10, number=11),
        "patch_keys": made(count, 6, number=12),
        "last_layer": (made(8, number=13), made(1 + count, 8, number=14)),
        "final_norm": made(WIDTH, number=15),
        "project": made(10, WIDTH, number=16),
    }


def view(own: dict[str, Any], budget: int = 20) -> View:
    more = dict(own)
    layout, hidden, keys = more.pop("layout"), more.pop("hidden"), more.pop("keys")
    for name in ("attend", "attend_next"):
        more[name] = lambda queries, table=more[name]: table[:, queries]
    more["final_norm"] = lambda states, scale=more["final_norm"]: states * scale
    more["project"] = lambda features, matrix=more["project"]: features @ matrix
    return View(hidden, keys, layout, budget, **more)


def outcome(method: Pruner, own: dict[str, Any]) -> tuple[Any, ...]:
    """Everything that follows from a method and what it is shown: stages, the tokens in order, and their states."""
    selection = method.choose(view(own))
    states = method.merge(own["hidden"], selection)
    return (
        method.layers(32),
        method.budgets(576, 32),
        tuple(selection.order.tolist()),
        tuple(states.flatten().tolist()),
    )


def candidates(kind: Any) -> tuple[Any, ...]:
    """Values to try for a setting of this type."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    parts = get_args(kind)
    return tuple(v for part in parts for v in candidates(part)) if parts else NUMBERS.get(kind, (None,))


def own_settings() -> list[tuple[str, str]]:
    shared = {field.name for field in fields(Pruner)}
    named = [(name, f.name) for name in NAMES for f in fields(vp.methods.get(name)) if f.name not in shared]
    return [pair for pair in named if pair not in ELSEWHERE]


@pytest.mark.parametrize(("name", "setting"), own_settings())
def test_every_setting_changes_something(name: str, setting: str, prior: str) -> None:
    kind = vp.methods.get(name)
    found, tried = set(), []
    for value in candidates(get_type_hints(kind)[setting]):
        for seed in range(3):
            try:
                found.add((seed, outcome(make(name, prior, **{setting: value}), content(seed, kind.videos_only))))
            except PruningError:
                continue  # not a value for this setting
            tried.append(value)
    assert len(found) > len({seed for seed, _ in found}), f"{setting} in {sorted(set(map(str, tried)))} changes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_a_method_needs_changes_something(name: str, prior: str) -> None:
    method = make(name, prior)
    for need in (need for need in method.needs if (name, need) not in ITS_LENGTH):
        assert any(
            outcome(method, own := content(seed, method.videos_only))
            != outcome(method, {**own, need: content(seed + 50, method.videos_only)[need]})
            for seed in range(3)
        ), f"{name} asks for {need} and does not use it"


@pytest.mark.parametrize("name", NAMES)
def test_every_head_of_attention_counts(name: str, prior: str) -> None:
    method = make(name, prior)
    for need in method.needs & {"attend", "attend_next", "cls_attention"}:
        for head in range(HEADS):
            changed = []
            for seed in range(4):
                own, other = content(seed, False), content(seed + 50, False)
                table = own[need].clone()
                table[head] = other[need][head]
                changed.append(outcome(method, own) != outcome(method, {**own, need: table}))
            assert any(changed), f"head {head} of {need} does not count"


@pytest.mark.parametrize("name", ["fastv", "mmr", "d2pruner", "pyramiddrop"])
def test_the_last_token_of_the_prompt_is_the_one_that_asks(name: str, prior: str) -> None:
    method = make(name, prior)
    (need,) = method.needs & {"attend", "attend_next"}
    own, other = content(0, False), content(50, False)
    table = other[need].clone()
    table[:, -1] = own[need][:, -1]
    assert outcome(method, own) == outcome(method, {**own, need: table})


# What single methods read, by the definition


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_scope_reads_the_patches_and_the_sum_over_heads(alpha: float) -> None:
    own = content(3, False)
    attention = sum(own["cls_attention"][head] for head in range(HEADS)).double()
    wanted = covered_best(cosines(own["patch_features"].double()), attention**alpha, 9)
    chosen = vp.methods.get("scope")(keep_tokens=9, alpha=alpha).choose(view(own, 9))
    assert chosen.order.tolist() == wanted


def test_mmtok_reads_words_embeddings_and_patches() -> None:
    own = content(3, False)
    words = own["text_embeddings"]
    for suffix in (0, 2):
        wanted = mmtok_order(words[: TEXT - suffix], own["embeddings"], own["patch_features"], 9)
        chosen = vp.methods.get("mmtok")(keep_tokens=9, suffix=suffix).choose(view(own, 9))
        assert chosen.order.tolist() == wanted.tolist()


@pytest.mark.parametrize("tokens", [48, 10])
def test_v2drop_reads_the_change_of_a_state(tokens: int) -> None:
    """At every stage, however few tokens are left."""
    own = content(3, False)
    hidden, before = own["hidden"][:tokens], own["hidden_before"][:tokens]
    change = [float(((a - b) ** 2).sum()) for a, b in zip(hidden, before, strict=True)]
    wanted = sorted(range(tokens), key=lambda token: -change[token])[:9]
    shown = View(hidden, hidden, own["layout"].part(torch.arange(tokens)), 9, hidden_before=before)
    assert vp.methods.get("v2drop")(keep_tokens=9).choose(shown).order.tolist() == wanted


def test_d2pruners_quotient_and_pivots(prior: str) -> None:
    """Threshold -2 joins all tokens, so pivots come first; then the rest by the same quotient: it decides alone."""
    own = content(3, False)
    last = own["attend"][:, -1].mean(dim=0)
    average = torch.tensor(Prior.read(prior).attention)
    quotient = last / (average + 1e-7)
    wanted = sorted(range(48), key=lambda token: -float(quotient[token]))[:9]
    assert make("d2pruner", prior, keep_tokens=9, threshold=-2.0).choose(view(own, 9)).order.tolist() == wanted
    # 0.7 of 5 tokens are 3.5 pivots, which rounds to 4. Of the others only the 31st repeats none of them.
    ranking = sorted(range(48), key=lambda token: -float(quotient[token]))
    own["hidden"] = torch.ones(48, WIDTH)
    own["hidden"][ranking[30]] = -1.0
    chosen = make("d2pruner", prior, keep_tokens=5).choose(view(own, 5)).order.tolist()
    assert chosen == [*ranking[:4], ranking[30]]


def test_evs_reads_the_projectors_output() -> None:
    own = content(3, True)
    change = changes(own["embeddings"].double(), own["layout"].coords)
    wanted = sorted(range(48), key=lambda token: -float(change[token]))[:20]
    assert vp.methods.get("evs")(keep_tokens=20).choose(view(own)).order.tolist() == wanted


def test_vidcom2_takes_frames_of_unequal_size_and_in_any_order() -> None:
    """A part of a video, whose tokens come frame by frame or mixed: the same tokens in the same order."""
    own = content(3, True)
    part = torch.tensor([*range(0, 16), *range(16, 20), *range(32, 44)])
    shown = {**own, "layout": own["layout"].part(part), "hidden": own["hidden"][part], "keys": own["keys"][part],
             "embeddings": own["embeddings"][part]}  # fmt: skip
    method = vp.methods.get("vidcom2")(keep_tokens=12, temperature=1e6)
    straight = method.choose(view(shown, 12))
    bounds = (0, 16, 20, 32)
    per_frame = [sum(low <= int(i) < high for i in straight.order) for low, high in pairwise(bounds)]
    assert per_frame == [7, 1, 4]  # 6, 1.5 and 4.5, and the one that is left over goes to the largest
    mixed = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    other = {**shown, "layout": shown["layout"].part(mixed), "hidden": shown["hidden"][mixed],
             "keys": shown["keys"][mixed], "embeddings": shown["embeddings"][mixed]}  # fmt: skip
    assert mixed[method.choose(view(other, 12)).order].tolist() == straight.order.tolist()


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("scope", {"layer": 0, "alpha": 1.0}),
        ("holov", {"layer": 0, "runs": 16, "compat": None}),
        ("mmtok", {"layer": 0, "features": "patches", "suffix": 0}),
        ("v2drop", {"layer": 2}),
        ("mmr", {"balance": 0.5}),
        ("d2pruner", {"layer": 2, "pivots": 0.7, "alpha": 1.0, "threshold": 0.8}),
        ("evs", {"layer": 0}),
        ("vidcom2", {"layer": 0, "temperature": 0.01}),
    ],
)
def test_defaults_are_the_published_ones(name: str, published: dict[str, Any]) -> None:
    defaults = {field.name: field.default for field in fields(vp.methods.get(name))}
    assert {setting: defaults[setting] for setting in published} == published
