"""Methods of 2025 and 2026 against slow, obvious versions, on odd sizes: loops over single tokens, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

import vlm_pruner as vp
from tests.test_methods_reference import SIZES, budgets, random, view
from tests.tiny_llava import LAYERS, N, inputs, prompt, tiny_llava
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.holov import run_bounds, run_scores
from vlm_pruner.methods.mmtok import mmtok_order
from vlm_pruner.methods.scope import scope_order
from vlm_pruner.selection.coverage import marginal_relevance, maximise_coverage
from vlm_pruner.selection.shares import allocate

HOLOV, V2DROP, MMR, MMTOK = (vp.methods.get(name) for name in ("holov", "v2drop", "mmr", "mmtok"))


def cosines(features):
    return cosine_similarity(features[:, None], features[None], dim=2)


# Coverage


def covered_best(rows, weight, count):
    """By the definition: the total that each candidate would leave covered, times its weight for the gain."""
    things, tokens = rows.shape

    def total(chosen):
        return sum(max([0.0, *(float(rows[i, j]) for j in chosen)]) for i in range(things))

    order: list[int] = []
    for _ in range(count):
        free = [j for j in range(tokens) if j not in order]
        order.append(max(free, key=lambda j: float(weight[j]) * (total([*order, j]) - total(order))))
    return order


@pytest.mark.parametrize(("tokens", "channels"), [(1, 3), (2, 5), (17, 6), (31, 9)])
def test_scope(tokens, channels):
    features, attention = random(tokens, channels), random(tokens, seed=1).abs()
    for alpha in (0.0, 1.0, 2.5):
        wanted = covered_best(cosines(features), attention**alpha, tokens)
        for budget in budgets(tokens):
            assert scope_order(features, attention, budget, alpha).tolist() == wanted[:budget]


def test_scope_weighs_by_attention_and_covers():
    """Two clusters: coverage alone takes one of each, and attention decides which."""
    features = torch.tensor([[1.0, 0], [1, 0.01], [0, 1], [0.01, 1]])
    attention = torch.tensor([0.1, 0.4, 0.3, 0.2])
    assert scope_order(features, attention, 2).tolist() == [1, 2]
    skewed = torch.tensor([0.5, 0.5, 1e-9, 1e-9])
    assert set(scope_order(features, skewed, 2).tolist()) == {0, 1}


def test_coverage_of_nothing_and_of_equal_things_repeats_no_token():
    for rows in (torch.zeros(3, 5), torch.ones(3, 5), -torch.ones(3, 5)):
        assert sorted(maximise_coverage(rows, 5).tolist()) == list(range(5))


# MMTok


@pytest.mark.parametrize(("words", "tokens", "alike"), [(1, 2, 0), (3, 17, 0), (7, 23, 0), (5, 19, 2)])
def test_mmtok(words, tokens, alike):
    """alike: makes words and tokens similar, so that words do not decide alone and the picture's weight shows."""
    text, image, features = random(words, 5) + alike, random(tokens, 5, seed=1) + alike, random(tokens, 7, seed=2)
    rows = []
    for rowed, columns, temperature, share in ((text, image, 0.02, 1.0), (features, features, 0.2, 0.5)):
        for row in rowed:
            scores = [float(cosine_similarity(row, column, dim=0)) / temperature for column in columns]
            top = max(scores)
            total = sum(math.exp(score - top) for score in scores)
            rows.append([share * math.exp(score - top) / total / len(rowed) for score in scores])
    wanted = covered_best(torch.tensor(rows, dtype=torch.float64), torch.ones(tokens), tokens)
    for budget in budgets(tokens):
        assert mmtok_order(text, image, features, budget).tolist() == wanted[:budget]


def test_mmtok_begins_with_the_token_that_a_word_names():
    """And with the picture's features alone where the model has no tower; words in the suffix do not count."""
    image, features = random(29, 8).float(), random(29, 6, seed=1).float()
    text = torch.stack([image[11] + 0.01, image[4] - 0.01])
    seen = {"embeddings": image, "patch_features": features, "text_embeddings": text}
    assert {11, 4} == set(MMTOK(keep_tokens=2).choose(view(image, 2, **seen)).order.tolist())
    assert int(MMTOK(keep_tokens=2, suffix=1).choose(view(image, 2, **seen)).order[0]) == 11
    without = {name: value for name, value in seen.items() if name != "patch_features"}
    chosen = MMTOK(keep_tokens=9, features="embeddings").choose(view(image, 9, **without))
    assert chosen.order.tolist() == mmtok_order(text, image, image, 9).tolist()
    with pytest.raises(PruningError, match=r"2 tokens of text follow the image and suffix=2 leaves none"):
        MMTOK(keep_tokens=2, suffix=2).choose(view(image, 2, **seen))


# MMR


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("tokens", "channels"), [size for size in SIZES if size[1] > 1 and size[0] < 60])
def test_marginal_relevance(tokens, channels, balance):
    features, importance = random(tokens, channels), random(tokens, seed=1).abs()
    cosine = cosines(features)
    order = [int(importance.argmax())]
    while len(order) < tokens:
        free = [j for j in range(tokens) if j not in order]
        repeats = {j: max(float(cosine[j, i]) for i in order) for j in free}
        order.append(max(free, key=lambda j: balance * float(importance[j]) - (1 - balance) * repeats[j]))
    for budget in budgets(tokens):
        assert marginal_relevance(features, importance, budget, balance).tolist() == order[:budget]


def test_mmrs_importance_is_the_last_tokens_attention_from_0_to_1():
    rows, hidden = random(3, 1, 29).abs(), random(29, 6, seed=1)
    mean = sum(rows[head, 0] for head in range(3)) / 3
    importance = (mean - mean.min()) / (mean.max() - mean.min())
    chosen = MMR(keep_tokens=7, balance=0.4).choose(view(hidden, 7, attend=lambda queries: rows))
    assert chosen.order.tolist() == marginal_relevance(hidden, importance, 7, 0.4).tolist()
    alone = MMR(keep_tokens=7, balance=1).choose(view(hidden, 7, attend=lambda queries: rows))
    assert alone.order.tolist() == mean.argsort(descending=True)[:7].tolist()
    even = MMR(keep_tokens=5).choose(view(hidden, 5, attend=lambda queries: torch.ones(2, 1, 29)))
    assert len(set(even.order.tolist())) == 5


# HoloV


@pytest.mark.parametrize(("tokens", "runs"), [(1, 1), (7, 3), (37, 16), (36, 4), (16, 16)])
def test_holovs_scores(tokens, runs):
    features, attention = random(tokens, 5), random(tokens, seed=1).abs()
    bounds = run_bounds(tokens, runs)
    assert bounds[0] == 0 and bounds[-1] == tokens and all(a < b for a, b in itertools.pairwise(bounds))
    cosine, vary = cosines(features), []
    for start, end in itertools.pairwise(bounds):
        for i in range(start, end):
            others = [float(cosine[i, j]) for j in range(start, end) if j != i]
            mean = sum(others) / max(1, len(others))
            vary.append(sum((value - mean) ** 2 for value in others) / max(1, len(others)))
    seen = [1000 * float(value) for value in attention]
    size = sum(vary) / tokens
    scores = [a + (0.09 * v * (sum(seen) / tokens) / size if size else 0) for a, v in zip(seen, vary, strict=True)]
    wanted = [sum(scores[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    torch.testing.assert_close(run_scores(features, attention, bounds), torch.tensor(wanted, dtype=torch.float64))


def test_holovs_shares():
    """In proportion, rounded down, the rest to the best; what a run cannot hold goes to the others."""
    scores = torch.tensor([1.0, 3.0, 2.0])
    assert allocate(scores, 6, [9, 9, 9]) == [1, 3, 2] and allocate(scores, 7, [9, 9, 9]) == [1, 4, 2]
    assert allocate(scores, 8, [9, 9, 9]) == [1, 5, 2]  # 1.33, 4, 2.67: the one that is left goes to the best
    assert allocate(scores, 8, [9, 2, 9], lossy=True) == [1, 2, 2]


@pytest.mark.parametrize("seed", range(20))
def test_holovs_shares_meet_every_budget(seed):
    sizes = (random(5, seed=seed).abs() * 4 + 1).int().tolist()
    for scores in (random(5, seed=seed + 1).abs(), torch.zeros(5)):
        for budget in range(1, sum(sizes) + 1):
            kept = allocate(scores, budget, sizes)
            assert sum(kept) == budget and all(0 <= n <= size for n, size in zip(kept, sizes, strict=True))
            assert sum(allocate(scores, budget, sizes, lossy=True)) <= budget


@pytest.mark.parametrize("budget", [1, 9, 20, 37])
def test_holov_keeps_the_most_attended_of_each_run(budget):
    features, attention = random(37, 5), random(3, 37, seed=1).abs()
    chosen = HOLOV(keep_tokens=budget, runs=4).choose(
        view(features, budget, cls_attention=attention, patch_features=features)
    )
    mean, bounds = attention.float().mean(dim=0), run_bounds(37, 4)
    shares = allocate(run_scores(features.float(), mean, bounds), budget, [9, 9, 9, 10])
    wanted = []
    for start, end, share in zip(bounds, bounds[1:], shares, strict=False):
        wanted += sorted(range(start, end), key=lambda i: -float(mean[i]))[:share]
    assert chosen.order.tolist() == sorted(wanted, key=lambda i: -float(mean[i])) and len(wanted) == budget


def test_holov_as_released_loses_what_a_run_cannot_hold():
    attention = torch.full((1, 16), 0.01)
    attention[0, :4] = 0.2
    seen = {"cls_attention": attention, "patch_features": random(16, 5)}
    lossy = HOLOV(keep_tokens=12, runs=4, compat="released").choose(view(seen["patch_features"], 12, **seen))
    exact = HOLOV(keep_tokens=12, runs=4).choose(view(seen["patch_features"], 12, **seen))
    assert len(lossy.indices) < 12 == len(exact.indices) and set(lossy.indices[:4].tolist()) == {0, 1, 2, 3}


# V2Drop


def test_v2drop_keeps_what_the_layer_before_changes_most():
    model, batch = tiny_llava(), inputs(prompt(), images=[0])
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    for layer in (1, 2, 3):
        with torch.no_grad(), vp.prune(model, V2DROP(keep_tokens=8, layer=layer)) as pruning:
            model(**batch)
        change = (states[layer] - states[layer - 1])[0, 5 : 5 + N].norm(dim=1)
        if len(V2DROP(keep_tokens=8, layer=layer).layers(LAYERS)) == 1:
            assert pruning.receipts[0].images[0].order == change.argsort(descending=True)[:8].tolist()


def test_v2drops_stages_are_the_published_ones():
    method = V2DROP(keep_tokens=164, layer=3)
    assert method.layers(32) == (3, 17, 22)
    first, second, third = method.budgets(576, 32)
    assert first == pytest.approx(288, rel=0.02) and second == pytest.approx(first / 2, abs=2) and third <= 4


def test_v2drop_needs_a_layer_before():
    with pytest.raises(PruningError, match=r"layer=0: V2DropPruner looks at the layer before"):
        V2DROP(keep_tokens=8, layer=0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mmr", {"balance": 1.5}, r"balance=1\.5"),
        ("scope", {"alpha": -1.0}, r"alpha=-1\.0"),
        ("mmtok", {"features": "words"}, "features='words'"),
        ("mmtok", {"suffix": -1}, "suffix=-1"),
        ("holov", {"runs": 0}, "runs=0"),
        ("holov", {"runs": 2.0}, r"runs=2\.0"),
        ("holov", {"compat": "paper"}, "compat='paper'"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(PruningError, match=message):
        vp.methods.get(name)(keep_tokens=9, **settings)
