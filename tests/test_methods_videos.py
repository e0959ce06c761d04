"""Methods that compare the frames of a video: their mathematics, and every family that takes videos."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.functional import cosine_similarity

import vlm_pruner as vp
from tests.every_method import of_videos
from tests.families import FAMILIES, FILM, MIXED, ONE, WORDS, Film, text
from tests.test_methods_reference import random
from tests.tiny_llava import tiny_llava
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.evs import changes, tokens_before
from vlm_pruner.methods.vidcom2 import frame_weights, vidcom2_order
from vlm_pruner.methods.view import View

EVS, VIDCOM2 = vp.methods.get("evs"), vp.methods.get("vidcom2")
WITH_VIDEOS = [family for family in FAMILIES if family.videos and family.name != "internvl"]
families = pytest.mark.parametrize("family", WITH_VIDEOS, ids=lambda family: family.name)
methods = pytest.mark.parametrize("name", of_videos())


def view(features, layout, budget):
    return View(features, features, layout, budget, embeddings=features)


# EVS


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 1, 1), (4, 3, 2), (5, 2, 5)])
def test_evs(shape):
    frames, height, width = shape
    layout, size = vp.TokenLayout.video(*shape), height * width
    features = random(frames * size, 6)
    wanted = [float("inf")] * size
    for i in range(size, frames * size):
        wanted.append(1 - float(cosine_similarity(features[i], features[i - size], dim=0)))
    torch.testing.assert_close(changes(features, layout.coords), torch.tensor(wanted, dtype=torch.float64))
    order = sorted(range(frames * size), key=lambda i: -wanted[i])
    for budget in range(size, frames * size + 1):
        chosen = EVS(keep_tokens=budget).choose(view(features, layout, budget))
        assert chosen.order.tolist() == order[:budget]


def test_evs_drops_what_stands_still():
    frame = random(6, 4)
    moved = frame.clone()
    moved[2] = -moved[2]
    features = torch.cat([frame, frame, moved, moved])
    chosen = EVS(keep_tokens=7).choose(view(features, vp.TokenLayout.video(4, 2, 3), 7))
    assert chosen.indices.tolist() == [0, 1, 2, 3, 4, 5, 14]


def test_evs_refuses_a_budget_below_the_first_frame():
    with pytest.raises(PruningError, match=r"a budget of 5 is less than the 6 tokens of the video's first frame"):
        EVS(keep_tokens=5).choose(view(random(12, 4), vp.TokenLayout.video(2, 2, 3), 5))


def test_the_frame_before_of_a_part_of_a_video():
    """Tokens that the mask hides, frames left out, and newlines in the last frame only."""
    layout = vp.TokenLayout.video(4, 1, 2)
    assert tokens_before(layout.coords).tolist() == [-1, -1, 0, 1, 2, 3, 4, 5]
    part = torch.tensor([0, 2, 3, 6, 7])  # of frames 0, 1 and 3
    assert tokens_before(layout.part(part).coords).tolist() == [-1, 0, -1, 1, 2]


# VidCom2


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_vidcom2(frames, size):
    features = random(frames * size, 5)
    frame = torch.arange(frames).repeat_interleave(size)
    video = features.mean(dim=0)
    to_video = [float(cosine_similarity(one, video, dim=0)) for one in features]
    unique, score = [], []
    for t in range(frames):
        own = features[t * size : (t + 1) * size]
        unique.append(-sum(to_video[t * size : (t + 1) * size]) / size)
        score += [-float(cosine_similarity(one, own.mean(dim=0), dim=0)) for one in own]
    score = [a - b for a, b in zip(score, to_video, strict=True)]
    weights = frame_weights(torch.tensor(unique, dtype=torch.float64), 0.01)
    assert float(weights.sum()) == pytest.approx(frames)
    for budget in range(1, frames * size + 1):
        order = vidcom2_order(features, frame, budget).tolist()
        assert len(set(order)) == budget and order == sorted(order, key=lambda i: -score[i])
        for t in range(frames):
            kept = [i for i in order if i // size == t]
            wanted = sorted(range(t * size, (t + 1) * size), key=lambda i: -score[i])[: len(kept)]
            assert set(kept) == set(wanted)
        counts = torch.bincount(torch.tensor(order) // size, minlength=frames)
        most = int(weights.argmax())
        assert all(int(counts[most]) >= int(counts[t]) for t in range(frames))


def test_vidcom2_gives_the_odd_frame_more():
    still = random(6, 8) + 3
    features = torch.cat([still, still, random(6, 8, seed=1) - 3, still])
    chosen = VIDCOM2(keep_tokens=8).choose(view(features, vp.TokenLayout.video(4, 2, 3), 8))
    kept = torch.bincount(chosen.indices // 6, minlength=4).tolist()
    assert kept[2] > max(kept[0], kept[1], kept[3]) and sum(kept) == 8
    even = VIDCOM2(keep_tokens=8, temperature=1e6).choose(view(features, vp.TokenLayout.video(4, 2, 3), 8))
    assert all(abs(count - 2) <= 1 for count in torch.bincount(even.indices // 6, minlength=4).tolist())


# Both, in every family with videos


@families
@methods
def test_a_videos_budget_is_met_and_pictures_stay_whole(family, name):
    method = vp.methods.get(name)(reduction_ratio=0.4)
    for prompt in (FILM, MIXED):
        batch = family.inputs(prompt)
        with torch.no_grad(), warnings.catch_warnings(), vp.prune(family.model, method) as pruning:
            warnings.simplefilter("ignore")
            family.model(**batch)
        film, *pictures = sorted(pruning.receipts[0].images, key=lambda image: image.span[0])
        assert film.n_after == method.budget(film.n_before) < film.n_before
        assert all(image.n_after == image.n_before for image in pictures)
        assert len(pictures) == (prompt is MIXED)


@families
@methods
def test_what_is_kept_follows_from_the_decoders_input(family, name):
    """And not from the layer: the same choice later in the decoder."""
    batch, kept = family.inputs(FILM), []
    for layer in (0, 2):
        with torch.no_grad(), vp.prune(family.model, vp.methods.get(name)(reduction_ratio=0.3, layer=layer)) as pruning:
            family.model(**batch)
        kept.append(pruning.receipts[0].images[0].order)
    assert kept[0] == kept[1]


@families
@methods
def test_a_batch_is_its_rows_and_keeping_all_is_dense(family, name):
    prompts = [FILM, [*text(6, 3), Film(9), *text(2, 8)]]
    asked = {"max_new_tokens": 3, "do_sample": False}
    with vp.prune(family.model, vp.methods.get(name)(reduction_ratio=0.4)) as pruning:
        together = family.model.generate(**family.inputs(*prompts), **asked)[:, -3:]
        alone = [family.model.generate(**family.inputs(one), **asked)[0, -3:] for one in prompts]
    assert together.tolist() == [tokens.tolist() for tokens in alone]
    first, *rest = pruning.receipts
    assert [image.order for image in first.images] == [one.images[0].order for one in rest]
    with torch.no_grad():
        dense = family.model(**family.inputs(FILM)).logits
        with vp.prune(family.model, vp.methods.get(name)(reduction_ratio=0.0)):
            assert torch.equal(family.model(**family.inputs(FILM)).logits, dense)


@methods
def test_newlines_may_follow_their_frames(name):
    family = next(one for one in FAMILIES if one.name == "llava_qwen")
    method = vp.methods.get(name)(reduction_ratio=0.5, newlines="of-kept-rows")
    with torch.no_grad(), vp.prune(family.model, method) as pruning:
        family.model(**family.inputs(FILM))
    (film,) = pruning.receipts[0].images
    newlines = [i for i, (_, x, _) in enumerate(film.coords) if x == 3]
    assert film.n_after - len(newlines) == method.budget(27)


@methods
def test_pictures_alone_are_told_of(name):
    """A prompt with pictures only runs dense, and says so once."""
    family = WITH_VIDEOS[0]
    with torch.no_grad():
        dense = family.model(**family.inputs(ONE)).logits
        told = pytest.warns(UserWarning, match="compares the frames of videos, so pictures are kept whole")
        with told, vp.prune(family.model, vp.methods.get(name)(keep_tokens=9)):
            assert torch.equal(family.model(**family.inputs(ONE)).logits, dense)
        with warnings.catch_warnings(), vp.prune(family.model, vp.methods.get(name)(keep_tokens=9)):
            warnings.filterwarnings("error", message=".*pictures are kept whole")
            warnings.filterwarnings("ignore", message=".*no visual tokens")
            family.model(**family.inputs(WORDS))


@methods
def test_models_without_videos_and_frames_apart_are_refused(name):
    internvl = next(one for one in FAMILIES if one.name == "internvl")
    for model in (tiny_llava(), internvl.model):
        with pytest.raises(PruningError, match=rf"{name} compares the frames of videos, and .* takes no video as one"):
            vp.prune(model, vp.methods.get(name)(keep_tokens=9))
    original = next(one for one in FAMILIES if one.name == "llava_original")
    with pytest.raises(PruningError, match="takes no video as one run of frames"):
        original.build().model.method = vp.methods.get(name)(keep_tokens=9)
    with pytest.raises(PruningError, match="per_frame=True: "):
        vp.methods.get(name)(keep_tokens=9, per_frame=True)


def test_bad_settings_are_named():
    with pytest.raises(PruningError, match=r"temperature=0\.0 must be above 0"):
        VIDCOM2(keep_tokens=9, temperature=0.0)
