"""D2Pruner against a slow version, and the command that makes its prior."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

import vlm_pruner as vp
from tests import tiny_original
from tests.test_methods_reference import random
from tests.tiny_llava import N, inputs, prompt, tiny_llava
from vlm_pruner import cli
from vlm_pruner.asking.original import OriginalChat
from vlm_pruner.commands import options
from vlm_pruner.errors import PruningError
from vlm_pruner.methods import words
from vlm_pruner.methods.d2pruner import Prior, d2_order

D2 = vp.methods.get("d2pruner")
EVEN = Prior((1 / N,) * N, 5, 5, layer=2, pictures=3)


def written(path: Path, prior: Prior = EVEN) -> str:
    path.write_text(json.dumps({"prior": asdict(prior)}))
    return str(path)


@pytest.fixture
def even(tmp_path: Path) -> str:
    return written(tmp_path / "prior.json")


# The choice


def slow_order(score, hidden, height, width, budget, pivots, alpha, threshold):
    def joined(i, j):
        apart = math.hypot(i % width - j % width, i // width - j // width) / math.hypot(height, width)
        cosine = float(cosine_similarity(hidden[i], hidden[j], dim=0))
        return alpha * cosine + (1 - alpha) * (1 - apart) > threshold

    ranking = sorted(range(len(score)), key=lambda i: -float(score[i]))
    kept = ranking[: min(pivots, budget)]
    for token in ranking:
        if len(kept) < budget and token not in kept and not any(joined(token, other) for other in kept):
            kept.append(token)
    return kept + [token for token in ranking if token not in kept][: budget - len(kept)]


@pytest.mark.parametrize(
    ("alpha", "threshold"), [(1.0, 0.8), (0.5, 0.8), (0.5, 0.3), (0.0, 0.9), (1.0, -2.0), (1.0, 2)]
)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (6, 5)])
def test_the_order(height, width, alpha, threshold):
    hidden, score = random(height * width, 3), random(height * width, seed=1)
    layout = vp.TokenLayout.grid(height, width)
    for budget in {1, height * width // 2 or 1, height * width}:
        for pivots in {1, max(1, round(0.7 * budget))}:
            wanted = slow_order(score, hidden, height, width, budget, pivots, alpha, threshold)
            assert d2_order(score, hidden, layout, budget, pivots, alpha, threshold).tolist() == wanted


def test_the_prior_is_divided_out(even, tmp_path):
    """An even prior leaves attention's order; one that is attention itself leaves nothing of it."""
    model, batch = tiny_llava(), inputs(prompt(), images=[0])

    def kept(path, **more):
        with torch.no_grad(), vp.prune(model, D2(keep_tokens=9, prior=path, **more)) as pruning:
            model(**batch)
        return pruning.receipts[0].images[0].order

    with torch.no_grad(), vp.prune(model, vp.methods.get("fastv")(keep_tokens=9)) as pruning:
        model(**batch)
    assert kept(even, pivots=1.0) == pruning.receipts[0].images[0].order
    last = pruning.receipts[0].images[0].order[0]
    skewed = [1 / N] * N
    skewed[last] = 1.0
    assert last not in kept(written(tmp_path / "skewed.json", replace(EVEN, attention=tuple(skewed))), pivots=1.0)


def test_inside_a_model(even):
    """The budget is met, a batch gives what its rows give, keeping all is the dense model, hidden tokens stay out."""
    model, prompts = tiny_llava(), [prompt(4, 6, 0), prompt(2, 9, 1)]
    asked = {"max_new_tokens": 4, "do_sample": False}
    with vp.prune(model, D2(keep_tokens=9, prior=even)) as pruning:
        together = model.generate(**inputs(*prompts, images=[0, 1]), **asked)[:, -4:]
        alone = [model.generate(**inputs(one, images=[i]), **asked)[0, -4:] for i, one in enumerate(prompts)]
    assert together.tolist() == [tokens.tolist() for tokens in alone]
    first, *rest = pruning.receipts
    assert [one.order for one in first.images] == [one.images[0].order for one in rest]
    assert all(one.n_after == 9 for one in first.images)
    batch = inputs(prompt(), images=[0])
    with torch.no_grad():
        dense = model(**batch).logits
        with vp.prune(model, D2(reduction_ratio=0.0, prior=even)):
            assert torch.equal(model(**batch).logits, dense)
        batch["attention_mask"][0, 5 : 5 + N : 2] = 0
        with vp.prune(model, D2(keep_tokens=6, prior=even)) as pruning:
            model(**batch)
    assert set(pruning.receipts[0].images[0].indices) < set(range(1, N, 2))


def test_settings_and_results(even):
    method = words.from_words(f"d2pruner:prior={even}:alpha=0.5", {"keep_tokens": 9})
    assert method.alpha == 0.5 and type(method)(**json.loads(json.dumps(method.config()))) == method
    assert method.source["file"] == "prior.json" and len(method.source["sha256"]) == 64
    assert pickle.loads(pickle.dumps(method)).choose is not None and "d2pruner" not in vp.methods.names()


def test_what_does_not_fit_is_refused(even, tmp_path):
    (tmp_path / "text.json").write_text("not a prior")
    (tmp_path / "other.json").write_text('{"prior": {"attention": [1]}}')
    wide = written(tmp_path / "wide.json", Prior((0.1,) * 6, 2, 3, layer=2, pictures=1))
    for settings, told in {
        (("prior", ""),): "vlm-pruner prior PICTURES --out prior.json, and pass prior=prior.json",
        (("prior", str(tmp_path / "none.json")),): "No such file or directory; make one with vlm-pruner prior",
        (("prior", str(tmp_path / "text.json")),): "is not a prior that vlm-pruner prior wrote",
        (("prior", str(tmp_path / "other.json")),): "is not a prior that vlm-pruner prior wrote",
        (("prior", even), ("layer", 3)): "layer=3, but the prior is of layer=2; make one for this layer",
        (("prior", even), ("alpha", 2.0)): r"alpha=2\.0 must be between 0 and 1",
        (("prior", even), ("pivots", -0.1)): r"pivots=-0\.1 must be between 0 and 1",
        (("prior", even), ("threshold", math.nan)): "threshold=nan must be a finite number",
    }.items():
        with pytest.raises(PruningError, match=told):
            D2(keep_tokens=9, **dict(settings))
    with (
        torch.no_grad(),
        pytest.raises(PruningError, match="prior is of pictures of 2 x 3 tokens, and this one has another grid"),
        vp.prune(tiny_llava(), D2(keep_tokens=9, prior=wide)) as pruning,
    ):
        pruning.model(**inputs(prompt(), images=[0]))
    with pytest.raises(PruningError, match="2 numbers for a grid of 1 x 3"):
        Prior((0.1, 0.2), 1, 3, 2, 1)
    with pytest.raises(PruningError, match="negative or not a number"):
        Prior((0.1, math.nan), 1, 2, 2, 1)


# The command


@pytest.fixture(scope="module")
def chat() -> OriginalChat:
    from llava.eval.checkpoint import Checkpoint

    return OriginalChat(Checkpoint("tiny", *tiny_original.parts(image_aspect_ratio="pad")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "notes.txt").write_text("no picture")
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / f"{number}.png")
    return pictures


def test_the_command_averages_and_its_prior_runs(chat, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(options, "load_chat", lambda args: chat)
    priors = {}
    for name, given in {"all": [folder], **{str(i): [folder / f"{i}.png"] for i in range(3)}}.items():
        out = tmp_path / f"{name}.json"
        assert cli.main(["prior", *map(str, given), "--layer", "1", "--out", str(out)]) == 0
        priors[name] = Prior.read(out)
    assert "3 pictures of 4 x 4 tokens, layer 1" in capsys.readouterr().out
    mean = np.mean([priors[str(i)].attention for i in range(3)], axis=0)
    np.testing.assert_allclose(priors["all"].attention, mean, rtol=1e-6)
    assert priors["all"].pictures == 3 and priors["all"].model == "tiny" and 0 < sum(mean) < 1
    method = D2(keep_tokens=6, layer=1, prior=str(tmp_path / "all.json"))
    with Image.open(folder / "1.png") as picture:
        assert chat.ask(picture.convert("RGB"), "what?", method, max_new_tokens=1).kept == 6


def test_the_command_says_what_is_wrong(chat, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(options, "load_chat", lambda args: chat)
    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "prior.json")]
    assert cli.main(["prior", str(tmp_path / "empty"), *out]) == 2
    assert "has no pictures (.png, " in capsys.readouterr().err
    assert cli.main(["prior", str(folder), "--limit", "0", *out]) == 2
    assert "--limit is 0; it must be at least 1" in capsys.readouterr().err
    assert cli.main(["prior", str(folder), "--layer", "9", *out]) == 2
    assert "layer=9" in capsys.readouterr().err and not (tmp_path / "prior.json").exists()
