"""Compared methods inside running models: their views match what the model computes, and shared properties hold."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

import vlm_pruner as vp
from tests.every_method import label, of_decoder, of_pictures, of_tower
from tests.tiny_llava import LAYERS, N, inputs, prompt, text, tiny_llava
from vlm_pruner.decoder import attention_rows, views
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.decoder.masks import LayerMask
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection

START = 5  # of the image in prompt()
METHODS = [
    *of_decoder(),
    *of_tower(),
    vp.methods.get("fastv")(keep_tokens=8, layer=1),
    vp.methods.get("mmtok")(keep_tokens=8, features="embeddings", suffix=2),
    vp.methods.get("residual-question")(keep_tokens=8, favour="unattended"),
    vp.methods.get("dart")(reduction_ratio=0.5, compat="released", layer=3),
    vp.methods.get("divprune")(keep_tokens=8, layer=2),
    vp.CentrifugalPruner(keep_tokens=8, layer=0),
    vp.RandomPruner(keep_tokens=8, layer=0),
    vp.methods.get("pool")(keep_tokens=8),
    vp.methods.get("pool")(keep_tokens=9, layer=2),
    vp.methods.get("pyramiddrop")(keep_tokens=9, layer=0),
    vp.methods.get("pyramiddrop")(keep_tokens=9, layer=1),
    vp.methods.get("pyramiddrop")(ratios=(0.6, 0.2), stages=(1, 3)),
    vp.methods.get("residual")(keep_tokens=8, layer=0, channels=5),
    vp.methods.get("sparsevlm")(keep_tokens=10, layer=1),
    vp.methods.get("sparsevlm")(reduction_ratio=0.5, layer=2),
]


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


class Recorder(Pruner):
    """Keeps the first tokens, and everything that it was shown."""

    def __init__(self, *needs, layer=2, keep_tokens=8, rows=6):
        super().__init__(keep_tokens=keep_tokens, layer=layer)
        object.__setattr__(self, "needs", frozenset(needs))
        object.__setattr__(self, "views", [])
        object.__setattr__(self, "rows", rows)

    def choose(self, view):
        self.views.append(view)
        for need in {"attend", "attend_next"} & self.needs:
            self.views[-1] = getattr(view, need)(torch.arange(-self.rows, 0))
        indices = torch.arange(view.budget)
        return Selection(indices, indices)


def run(model, method, batch):
    with torch.no_grad(), vp.prune(model, method) as pruning:
        logits = model(**batch).logits
    return pruning.receipts[0], logits


def eager_rows(dtype, layer, row, batch):
    """Attention [heads, T, T] of one decoder layer and row, as eager attention returns it."""
    model = tiny_llava("eager").to(dtype)
    with torch.no_grad():
        out = model(**{**batch, "pixel_values": batch["pixel_values"].to(dtype)}, output_attentions=True)
    return out.attentions[layer][row]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("need", "layer"), [("attend", 1), ("attend", 3), ("attend_next", 2)])
def test_recomputed_attention_rows_are_those_of_eager_attention(need, layer, ragged):
    """Within twice the error that eager attention itself has in the dtype, against float64."""
    batch = inputs(prompt(4, 6, 0), prompt(2, 6, 1), images=[0, 1]) if ragged else inputs(prompt(), images=[0])
    row = len(batch["input_ids"]) - 1
    seen_layer = layer - 1 if need == "attend" else layer
    single = inputs(prompt(2, 6, 1), images=[1]) if ragged else batch  # padded, float64 is NaN in transformers
    truth = eager_rows(torch.float64, seen_layer, 0, single)
    for dtype in (torch.float32, torch.bfloat16):
        model, method = tiny_llava().to(dtype), Recorder(need, layer=layer)
        given = {**batch, "pixel_values": batch["pixel_values"].to(dtype)}
        run(model, method, given)
        want = truth[:, -6:, -6 - N : -6]
        eager = eager_rows(dtype, seen_layer, row, batch)[:, -6:, -6 - N : -6]
        error = (method.views[row].double() - want).abs().max()
        allowed = 2 * (eager.double() - want).abs().max()
        assert method.views[row].shape == (4, 6, N)
        assert error <= max(allowed, 1e-6), f"{dtype}: {error} > {allowed}"


def test_only_the_asked_rows_are_computed(model, monkeypatch):
    """One query row: nothing of size T x T, whatever the length of the prompt."""
    asked = []
    rows_before = views.rows_before

    def watch(call, mask, row, positions, keys):
        made = rows_before(call, mask, row, positions, keys)
        asked.append((positions.tolist(), list(made.shape)))
        return made

    monkeypatch.setattr(views, "rows_before", watch)
    run(model, vp.methods.get("fastv")(keep_tokens=8), inputs(prompt(4, 30), images=[0]))
    assert asked == [([59], [4, 1, 60])]


def test_a_method_sees_what_the_model_computes(model):
    batch = inputs(prompt(4, 6, 0), prompt(2, 3, 1), images=[0, 1])
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    method = Recorder("embeddings", "text_embeddings", "text_hidden", "text_keys", "final_norm", layer=2)
    run(model, method, batch)
    for row, (before, after) in enumerate([(4, 6), (2, 3)]):
        view, length = method.views[row], batch["input_ids"].shape[1]
        image, end = slice(length - after - N, length - after), slice(length - after, None)
        assert torch.equal(view.embeddings, states[0][row, image])
        assert torch.equal(view.text_embeddings, states[0][row, end])
        torch.testing.assert_close(view.hidden, states[2][row, image], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(view.text_hidden, states[2][row, end], atol=1e-4, rtol=1e-4)
        assert view.text_keys.shape == (after, 32) and view.start == before + 1
        assert torch.equal(view.final_norm(view.hidden), model.model.language_model.norm(view.hidden))


def test_fastv_keeps_what_the_last_token_attends_to(model):
    batch = inputs(prompt(), images=[0])
    receipt, _ = run(model, vp.methods.get("fastv")(keep_tokens=8), batch)
    scores = eager_rows(torch.float32, 1, 0, batch).mean(dim=0)[-1, START : START + N]
    assert receipt.images[0].order == scores.argsort(descending=True)[:8].tolist()


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_the_budget_is_met_and_the_receipt_is_true(model, method):
    batch = inputs(prompt(), images=[0])
    receipt, _ = run(model, method, batch)
    (image,) = receipt.images
    budgets = method.budgets(N, LAYERS)
    assert image.n_after == len(image.indices) == budgets[-1]
    assert image.indices == sorted(set(image.order)) and len(image.order) == image.n_after
    assert image.steps == [list(step) for step in zip(method.layers(LAYERS), budgets, strict=True)]
    assert receipt.tokens_after == receipt.tokens_before - N + image.n_after
    assert type(method)(**{**receipt.config}) == method


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_a_batch_equals_its_rows_one_by_one(model, method):
    prompts = [prompt(4, 6, 0), prompt(2, 9, 1)]
    with vp.prune(model, method) as pruning:
        together = model.generate(**inputs(*prompts, images=[0, 1]), max_new_tokens=4, do_sample=False)
        alone = [
            model.generate(**inputs(p, images=[i]), max_new_tokens=4, do_sample=False) for i, p in enumerate(prompts)
        ]
    first, *rest = pruning.receipts
    assert [image.order for image in first.images] == [receipt.images[0].order for receipt in rest]
    assert together[:, -4:].tolist() == [tokens[0, -4:].tolist() for tokens in alone]


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_a_static_cache_gives_the_same_and_no_hook_is_left(model, method):
    batch = inputs(prompt(), images=[0])
    hooks = sum(len(m._forward_pre_hooks) for m in model.modules())
    with vp.prune(model, method) as pruning:
        cached = model.generate(**batch, max_new_tokens=5, do_sample=False)
        static = model.generate(**batch, max_new_tokens=5, do_sample=False, cache_implementation="static")
    assert torch.equal(cached, static)
    assert len({tuple(receipt.images[0].order) for receipt in pruning.receipts}) == 1
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == hooks


@pytest.mark.parametrize("name", of_pictures())
def test_keeping_all_is_the_dense_model_bit_for_bit(model, name):
    batch = inputs(prompt(), images=[0])
    with torch.no_grad():
        dense = model(**batch).logits
    assert torch.equal(run(model, vp.methods.get(name)(reduction_ratio=0.0), batch)[1], dense)


def test_fastv_without_text_after_the_image_says_so(model):
    batch = inputs([1, *text(4, 0), *prompt()[5:-6]], images=[0])
    with pytest.raises(PruningError, match="needs text after it"):
        run(model, vp.methods.get("fastv")(keep_tokens=8), batch)
    assert run(model, vp.methods.get("dart")(keep_tokens=8), batch)[0].images[0].n_after == 8


def test_a_second_picture_is_rated_with_the_first_in_view(model):
    """In a later turn the cache holds the first one's keys, and attention is spread over them too."""
    from transformers import DynamicCache

    from tests.tiny_llava import image

    first, second = prompt(4, 6, 0), prompt(1, 4, 1)[1:]
    method = Recorder("attend", layer=2, rows=4)
    cache = DynamicCache()
    with torch.no_grad(), vp.prune(model, method):
        for ids, number in ((first, 0), (second, 1)):
            model(input_ids=torch.tensor([ids]), pixel_values=image(number), **cache_argument(cache), use_cache=True)
    late = method.views[1]
    both = {"input_ids": torch.tensor([first + second]), "pixel_values": torch.cat([image(0), image(1)])}
    method = Recorder("attend", layer=2, rows=4)
    run(model, method, both)
    torch.testing.assert_close(late, method.views[1], atol=1e-5, rtol=1e-4)


def test_a_need_that_cannot_be_met_is_refused(model):
    with pytest.raises(PruningError, match=r"Recorder needs depth_map, which LlamaModel alone does not provide"):
        vp.prune(model, Recorder("depth_map"))
    with pytest.raises(PruningError, match=r"FastVPruner cannot choose by hidden states and keys alone.*attend"):
        vp.methods.get("fastv")(keep_tokens=8).select(
            torch.zeros(9, 4), torch.zeros(9, 4), vp.TokenLayout.grid(3, 3), 8
        )


@pytest.mark.parametrize("name", of_pictures())
def test_every_method_runs_in_half_precision(name):
    """Whatever a method is shown in bfloat16, it computes, and what it hands on is bfloat16 again."""
    model = tiny_llava().to(torch.bfloat16)
    batch = inputs(prompt(), images=[0])
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    receipt, logits = run(model, vp.methods.get(name)(keep_tokens=9), batch)
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert 1 <= receipt.images[0].n_after <= 9


def test_no_method_escapes_the_shared_tests():
    assert {method.name for method in METHODS} == set(of_pictures())


@pytest.mark.parametrize(("scaling", "softcap"), [(None, None), (0.9, None), (0.3, 1.5)])
def test_recomputed_rows_scale_and_cap_as_the_decoders_that_do(scaling, softcap):
    """Granite's multiplier and Gemma's cap of scores, by transformers' own eager attention."""
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    query, key = (torch.randn(1, 4, 7, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    causal = torch.ones(7, 7).tril().bool()
    wanted = attention_rows._Rows(LayerMask(None, rows=1, past=0, new=7), 0, torch.arange(7), None)
    module = SimpleNamespace(vlm_pruner_rows=wanted, num_key_value_groups=1, training=False, head_dim=8)
    with contextlib.suppress(attention_rows._Found):
        attention_rows._attention_rows(module, query, key, key, scaling=scaling, softcap=softcap)
    mask = torch.zeros(7, 7).masked_fill(~causal, torch.finfo(torch.float32).min)[None, None]
    factor = 8**-0.5 if scaling is None else scaling
    eager = eager_attention_forward(module, query, key, key, mask, scaling=factor, softcap=softcap)[1]
    torch.testing.assert_close(wanted.attention, eager[0])
