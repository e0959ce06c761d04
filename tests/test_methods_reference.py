"""The compared methods' mathematics against slow, obvious versions, on odd sizes: loops over single tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

import vlm_pruner as vp
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.cdpruner import relevance
from vlm_pruner.methods.prumerge import prumerge_order, prumerge_rows
from vlm_pruner.methods.sparsevlm import recycle, text_raters
from vlm_pruner.methods.view import View
from vlm_pruner.methods.visionzip import contextual_rows, zip_patches
from vlm_pruner.methods.vispruner import thin_out
from vlm_pruner.selection.clustering import density_peaks
from vlm_pruner.selection.diversity import maximise_determinant, sample_farthest
from vlm_pruner.selection.ranking import largest

SIZES = [(1, 3), (2, 5), (7, 1), (31, 6), (53, 17), (301, 9)]  # tokens, channels


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def budgets(tokens):
    return sorted({1, max(1, tokens // 3), max(1, tokens - 1), tokens})


def view(features, budget, **more):
    return View(features, features, vp.TokenLayout.grid(1, len(features)), budget, **more)


@pytest.mark.parametrize(("tokens", "channels"), [size for size in SIZES if size[1] > 1])
def test_farthest_point_sampling(tokens, channels):
    features = random(tokens, channels)
    distance = 1 - cosine_similarity(features[:, None], features[None], dim=2)
    others = [[float(distance[i, j]) for j in range(tokens) if j != i] for i in range(tokens)]
    order = [max(range(tokens), key=lambda i: min(others[i], default=0))]
    while len(order) < tokens:
        free = [i for i in range(tokens) if i not in order]
        order.append(max(free, key=lambda i: min(float(distance[i, j]) for j in order)))
    for budget in budgets(tokens):
        assert sample_farthest(features, budget).tolist() == order[:budget]


def test_farthest_point_sampling_of_equal_tokens_repeats_none():
    assert sorted(sample_farthest(torch.ones(5, 3), 5).tolist()) == list(range(5))


def test_greedy_determinant():
    features, weight = random(23, 31), random(23, seed=1).abs() + 0.1
    kernel = weight[:, None] * cosine_similarity(features[:, None], features[None], dim=2) * weight[None]
    order: list[int] = []
    for _ in range(15):
        free = [i for i in range(23) if i not in order]
        order.append(max(free, key=lambda i: float(torch.det(kernel[[*order, i]][:, [*order, i]]))))
    assert maximise_determinant(features, weight, 15).tolist() == order


def test_relevance_is_least_where_cosine_is_largest():
    image, question = random(13, 7), random(2, 7, seed=1)
    cosine = cosine_similarity(image[:, None], question[None], dim=2).mean(dim=1)
    score = relevance(image, question)
    assert score.argmin() == cosine.argmax() and score.argmax() == cosine.argmin()
    assert score.min() > 0 and score.max() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("tokens", "clusters"), [(1, 1), (5, 2), (17, 3), (41, 41)])
def test_density_peaks(tokens, clusters):
    features = random(tokens, 5)
    distance = [[math.dist(a.tolist(), b.tolist()) / math.sqrt(5) for b in features] for a in features]
    density = [math.exp(-sum(d * d for d in sorted(row)[:clusters]) / clusters) for row in distance]
    denser = [[j for j in range(tokens) if (density[j], -j) > (density[i], -i)] for i in range(tokens)]
    largest_distance = max(map(max, distance))
    apart = [min((distance[i][j] for j in denser[i]), default=largest_distance) for i in range(tokens)]
    wanted = sorted(range(tokens), key=lambda i: -density[i] * apart[i])[:clusters]
    centres, cluster = density_peaks(features, clusters)
    assert set(centres.tolist()) == set(wanted)
    for i in range(tokens):
        nearest = i if i in wanted else min(wanted, key=lambda j: distance[i][j])
        assert centres[cluster[i]] == nearest


@pytest.mark.parametrize(("visual", "text"), [(1, 1), (25, 4), (13, 31)])
def test_text_raters(visual, text):
    image, words = random(visual, 6), random(text, 6, seed=1)
    votes = torch.zeros(text, dtype=torch.float64)
    for token in image:
        scores = torch.tensor([float(token @ word) for word in words])
        votes += (scores.exp() / scores.exp().sum()) / visual
    wanted = [i for i in range(text) if votes[i] > votes.mean() + 1e-9]
    assert text_raters(image, words).tolist() == (wanted or list(range(text)))


@pytest.mark.parametrize(("tokens", "keep"), [(7, 7), (7, 6), (40, 3), (101, 20), (101, 0)])
def test_recycling(tokens, keep):
    hidden, scores = random(tokens, 4), random(tokens, seed=1)
    made = recycle(hidden, scores, keep)
    ranking = sorted(range(tokens), key=lambda i: -float(scores[i]))
    dropped = tokens - keep
    recycled = ranking[keep : keep + (int(dropped * 0.3) + 1 if dropped else 0)]
    assert made.kept.tolist() == sorted(ranking[:keep]) and made.recycled.tolist() == recycled
    assert len(made.centres) == (len(recycled) // 10 + 1 if recycled else 0)
    for number, centre in enumerate(made.centres.tolist()):
        members = [token for token, cluster in zip(recycled, made.cluster.tolist(), strict=True) if cluster == number]
        assert centre in members
        torch.testing.assert_close(made.merged[number], torch.stack([hidden[i] for i in members]).mean(dim=0))


@pytest.mark.parametrize("tokens", [12, 47, 200])
def test_sparsevlm_meets_every_budget(tokens):
    hidden, rows = random(tokens, 5), random(2, 3, tokens, seed=1).abs()
    method = vp.methods.get("sparsevlm")(keep_tokens=1)
    for budget in range(1, tokens):
        seen = view(
            hidden, budget, attend=lambda raters: rows[:, raters], embeddings=hidden, text_embeddings=hidden[:3]
        )
        chosen = method.choose(seen)
        assert len(chosen.indices) == len(set(chosen.order.tolist())) == budget
        assert len(chosen.merged) <= budget / 4
        assert method.merge(hidden, chosen).shape == (budget, 5)


@pytest.mark.parametrize("budget", [1, 3, 5, 12, 31, 36])
@pytest.mark.parametrize("words", [0, 2, 9])
def test_dart(budget, words):
    hidden, keys = random(37, 6), random(37, 8, seed=1)
    text_hidden, text_keys = random(words, 6, seed=2), random(words, 8, seed=3)
    norms = keys.abs().sum(dim=1)
    image = sorted(range(37), key=lambda i: -float(norms[i]))[: min(4, budget)]
    text = sorted(range(words), key=lambda i: -float(text_keys[i].abs().sum()))[:4]
    pivots = [hidden[i] for i in image] + [text_hidden[i] for i in text]
    kept = list(image)
    for turn, pivot in enumerate(pivots):
        share = (budget - len(image)) // len(pivots) + (turn < (budget - len(image)) % len(pivots))
        free = [i for i in range(37) if i not in kept]
        kept += sorted(free, key=lambda i: float(cosine_similarity(2 * hidden[i], 2 * pivot, dim=0)))[:share]
    seen = view(hidden, budget, text_hidden=text_hidden, text_keys=text_keys, final_norm=lambda x: 2 * x)
    seen = View(**{**vars(seen), "keys": keys})
    chosen = vp.methods.get("dart")(reduction_ratio=0.5).choose(seen)
    assert chosen.order.tolist() == kept and chosen.indices.tolist() == sorted(kept) and len(kept) == budget


def test_fastv_averages_heads():
    rows = random(3, 1, 29).abs()
    sums = [float(sum(rows[head, 0, i] for head in range(3))) for i in range(29)]
    chosen = vp.methods.get("fastv")(keep_tokens=7).choose(view(rows[0].T, 7, attend=lambda queries: rows))
    assert chosen.order.tolist() == sorted(range(29), key=lambda i: -sums[i])[:7]


def test_equal_scores_go_to_the_lower_index():
    assert largest(torch.tensor([1.0, 2.0, 2.0, 1.0, 3.0]), 4).tolist() == [4, 1, 2, 0]


@pytest.mark.parametrize(("tokens", "dominant", "contextual"), [(9, 3, 2), (37, 5, 6), (37, 36, 1), (37, 0, 37)])
def test_visionzip(tokens, dominant, contextual):
    attention, keys, hidden = random(3, tokens).abs(), random(tokens, 4, seed=1), random(tokens, 5, seed=2)
    zipped = zip_patches(attention, keys, dominant, contextual)
    order = sorted(range(tokens), key=lambda i: -float(attention[:, i].sum()))[:dominant]
    rest = [i for i in range(tokens) if i not in order]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    assert zipped.dominant.tolist() == order and zipped.targets.tolist() == targets
    groups: list[list[int]] = [[] for _ in targets]
    for i in rest:
        if i not in targets:
            slot = max(range(contextual), key=lambda t: float(cosine_similarity(keys[i], keys[targets[t]], dim=0)))
            groups[slot].append(i)
            assert zipped.slot[i] == slot
        else:
            assert zipped.slot[i] == -1
    rows = [hidden[t] + (hidden[group].mean(dim=0) if group else 0) for t, group in zip(targets, groups, strict=True)]
    torch.testing.assert_close(contextual_rows(hidden, zipped), torch.stack(rows))


def test_visionzip_needs_targets():
    with pytest.raises(ValueError, match="contextual=3 targets among 2 patches"):
        zip_patches(torch.ones(1, 9), torch.ones(9, 2), 7, 3)


@pytest.mark.parametrize("plus", [False, True])
def test_prumerge(plus):
    attention = torch.linspace(0, 1, 99, dtype=torch.float64)[random(99).argsort()]
    keys, hidden = random(99, 4, seed=1), random(99, 5, seed=2)
    attention[[3, 40, 71]] += 20
    order = prumerge_order(attention, plus).tolist()
    outliers = sorted([3, 40, 71], key=lambda i: -float(attention[i]))
    assert order == outliers + [i for i in range(0, 98, 33 // 3) if plus and i not in outliers]
    rows = prumerge_rows(hidden, keys, attention, torch.tensor(order))
    for row, i in zip(rows, order, strict=False):
        others = [j for j in range(99) if j != i]
        near = sorted(others, key=lambda j: -float(cosine_similarity(keys[i], keys[j], dim=0)))[:32]
        torch.testing.assert_close(row, hidden[i] + sum(attention[j] * hidden[j] for j in near))
    torch.testing.assert_close(rows[-1], sum(attention[j] * hidden[j] for j in range(99) if j not in order))


def test_prumerge_without_outliers_says_so():
    with pytest.raises(PruningError, match="0 of 30 patches are outliers"):
        prumerge_order(torch.ones(30), plus=True)


@pytest.mark.parametrize(("tokens", "count"), [(5, 5), (8, 3), (9, 1), (41, 12), (33, 0)])
def test_thinning_out(tokens, count):
    features, left = random(tokens, 4), list(range(tokens))
    while len(left) > count:
        half = len(left) // 2
        even, odd, spare = left[0 : 2 * half : 2], left[1 : 2 * half : 2], left[2 * half :]
        if not half:
            left = left[:count]
            break
        near = {i: max(float(cosine_similarity(features[i], features[j], dim=0)) for j in odd) for i in even}
        even.sort(key=lambda i: -near[i])
        left = even[min(8, len(left) - count) :] + odd + spare
    assert thin_out(features, torch.arange(tokens), count).tolist() == left
