"""The methods against their public code's choices and merges. Skipped without the conformance kit."""

from __future__ import annotations

import json

import torch
from safetensors import safe_open
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from tests.conformance import conformance
from vlm_pruner.decoder.attention_rows import rows_now
from vlm_pruner.decoder.layer_call import LayerCall
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.cdpruner import cdpruner_order
from vlm_pruner.methods.dart import DartPruner, largest_keys, set_order
from vlm_pruner.methods.divprune import DivPruner
from vlm_pruner.methods.fastervlm import FasterVLMPruner
from vlm_pruner.methods.fastv import FastVPruner
from vlm_pruner.methods.prumerge import class_attention, outlier_count, prumerge_order, prumerge_rows
from vlm_pruner.methods.pyramiddrop import PyramidDropPruner
from vlm_pruner.methods.sparsevlm import SparseVLMPruner, recycle, text_raters
from vlm_pruner.methods.view import View
from vlm_pruner.methods.visionzip import contextual_rows, zip_patches
from vlm_pruner.methods.vispruner import VisPruner

GRID = TokenLayout.grid(24, 24)
TOLERANCE = dict(atol=1e-4, rtol=0)


def cases(method):
    """(name, inputs in float32, parameters, expected) of every case; tensors in `expected` are loaded."""
    folder = conformance("methods")
    described = json.loads((folder / f"{method}.json").read_text())["cases"]
    with safe_open(folder / f"{method}.safetensors", "pt") as tensors:
        for case in described:
            given = {role: tensors.get_tensor(entry["tensor"]).float() for role, entry in case["inputs"].items()}
            wanted = {
                key: tensors.get_tensor(value["tensor"]).float() if isinstance(value, dict) else value
                for key, value in case["expected"].items()
            }
            yield case["name"], given, case["params"], case["budget"], wanted


def view(features, budget, **more):
    return View(features, features, TokenLayout.grid(1, len(features)), budget, **more)


def assert_chosen(name, selection, wanted):
    assert selection.indices.tolist() == wanted["kept"], name
    if "order" in wanted:
        assert selection.order.tolist() == wanted["order"], name


def test_fastv():
    for name, given, params, budget, wanted in cases("fastv"):
        start, length = params["image_start"], params["image_length"]
        row = given["last_row"]
        image = row[:, None, start : start + length]

        def attend(queries, image=image):
            assert queries.tolist() == [-1]
            return image

        chosen = FastVPruner(keep_tokens=budget).choose(view(torch.zeros(length, 1), budget, attend=attend))
        assert_chosen(name, chosen, wanted)
        text = [i for i in range(row.shape[1]) if not start <= i < start + length]
        assert sorted([*text, *(chosen.indices + start).tolist()]) == wanted["kept_sequence"]


def test_divprune():
    for name, given, params, budget, wanted in cases("divprune"):
        method = DivPruner(reduction_ratio=1 - params["ratio"])
        assert method.budget(576) == budget
        assert_chosen(name, method.choose(view(given["features"], budget, embeddings=given["features"])), wanted)


def test_dart():
    for name, given, params, _, wanted in cases("dart"):
        start, stop = params["image_start"], params["image_start"] + params["image_length"]
        method = DartPruner(reduction_ratio=params["reduction_ratio"], compat="released")
        budget = method.budget(params["image_length"])
        assert budget == wanted["count"]
        keys = given["keys"].transpose(0, 1).flatten(1)
        hidden = given["hidden"]
        text = dict(text_hidden=hidden[stop:], text_keys=keys[stop:], final_norm=lambda x: x, start=start)
        chosen = method.choose(View(hidden[start:stop], keys[start:stop], GRID, budget, **text))
        assert chosen.indices.tolist() == wanted["kept"], name
        assert chosen.pivots.tolist() == wanted["image_pivots"]
        places = [start + i for i in wanted["image_pivots"]] + wanted["text_pivots"]
        assert (largest_keys(keys[stop:], 4) + stop).tolist() == wanted["text_pivots"]
        assert [places[i] for i in set_order(places[:4], places[4:])] == wanted["pivot_order"]


def test_cdpruner():
    for name, given, _, budget, wanted in cases("cdpruner"):
        order = cdpruner_order(given["features"], given["image_embeds"], given["text_embeds"], budget)
        assert order.tolist() == wanted["order"], name
        assert sorted(order.tolist()) == wanted["kept"]


def test_fastervlm():
    for name, given, _, budget, wanted in cases("fastervlm"):
        chosen = FasterVLMPruner(keep_tokens=budget).choose(
            view(torch.zeros(576, 1), budget, cls_attention=given["cls_attention"])
        )
        assert_chosen(name, chosen, wanted)


def test_vispruner():
    for name, given, params, budget, wanted in cases("vispruner"):
        method = VisPruner(keep_tokens=budget, important=params["important_ratio"])
        seen = view(given["features"], budget, patch_features=given["features"], cls_attention=given["cls_attention"])
        chosen = method.choose(seen)
        assert chosen.indices.tolist() == wanted["kept"], name
        assert chosen.order.tolist() == wanted["important"] + wanted["diverse"]


def test_visionzip():
    for name, given, params, _, wanted in cases("visionzip"):
        attention, hidden = given["cls_attention"][:, 1:], given["hidden"]
        zipped = zip_patches(attention, given["metric"][1:], params["dominant"] - 1, params["contextual"])
        assert zipped.dominant.tolist() == wanted["dominant_order"], name
        assert zipped.targets.tolist() == wanted["contextual_targets"]
        merged_from = (zipped.slot >= 0).nonzero().squeeze(1)
        assert merged_from.tolist() == wanted["merged_from"]
        assert zipped.slot[merged_from].tolist() == wanted["merged_into"]
        dominant = hidden[1:][zipped.dominant.sort().values]
        rows = torch.cat([hidden[:1], dominant, contextual_rows(hidden[1:], zipped)])
        torch.testing.assert_close(rows, wanted["features"], **TOLERANCE)


def test_prumerge():
    for name, given, params, _, wanted in cases("prumerge"):
        attention = class_attention(given["q"][0], given["k"])
        order = prumerge_order(attention, params["plus"])
        assert outlier_count(attention) == wanted["outliers"] == wanted["topk"], name
        assert order.tolist() == wanted["order"], name
        rows = prumerge_rows(given["hidden"][1:], given["k"][1:], attention, order)
        torch.testing.assert_close(rows, wanted["features"], **TOLERANCE)


def test_sparsevlm():
    for name, given, params, _, wanted in cases("sparsevlm"):
        if params["kind"] == "raters":
            assert text_raters(given["visual_embeds"], given["text_embeds"]).tolist() == wanted["raters"], name
            continue
        scores = given["attention"][:, params["raters"]].mean(dim=(0, 1))
        made = recycle(given["hidden"], scores, len(wanted["kept"]))
        assert made.kept.tolist() == wanted["kept"], name
        assert made.recycled.tolist() == wanted["recycled"], name
        assert len(made.centres) == wanted["cluster_num"]
        assert len(made.kept) + len(made.centres) == wanted["visual_tokens_after"]
        if "centers" in wanted:
            assert made.centres.tolist() == wanted["centers"], name
            assert made.cluster.tolist() == wanted["assignment"], name
        torch.testing.assert_close(made.merged, wanted["features"], **TOLERANCE)


def llama_layer(given, params):
    """A decoder layer with the case's weights, and its rotary embedding."""
    config = LlamaConfig(
        hidden_size=given["hidden"].shape[1],
        num_attention_heads=params["heads"],
        num_key_value_heads=params["kv_heads"],
        head_dim=params["head_dim"],
        rms_norm_eps=params["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": params["rope_theta"]},
    )
    layer = LlamaDecoderLayer(config, 0)
    weights = {"input_layernorm.weight": given["norm_weight"]}
    weights |= {f"self_attn.{x}_proj.weight": given[f"{x}_weight"] for x in "qk"}
    layer.load_state_dict(weights, strict=False)
    return layer, LlamaRotaryEmbedding(config)


def test_pyramiddrop():
    for name, given, params, budget, wanted in cases("pyramiddrop"):
        layer, rotary = llama_layer(given, params)
        hidden, start, present = given["hidden"][None], params["image_start"], wanted["image_tokens_before"]
        phases = rotary(hidden, torch.arange(hidden.shape[1])[None])
        call = LayerCall(layer, 0, (hidden,), {"position_embeddings": phases})

        def attend_next(queries, call=call, start=start, present=present):
            last = call.hidden.shape[1] + queries
            with torch.no_grad():
                return rows_now(call, call.mask(0), 0, last)[..., start : start + present]

        chosen = PyramidDropPruner(keep_tokens=budget).choose(view(hidden[0], budget, attend_next=attend_next))
        assert len(given["hidden"]) == params["prompt_len"] + present
        assert_chosen(name, chosen, wanted)
        scores = attend_next(torch.tensor([-1])).mean(dim=(0, 1)) * 100
        torch.testing.assert_close(scores, wanted["scores"], **TOLERANCE)
        ratios = params["ratio_list"][1:]
        stages = tuple(range(8, 8 + len(ratios)))
        assert PyramidDropPruner(ratios=ratios, stages=stages).budgets(576, 32)[params["stage"]] == budget


def test_sparsevlm_in_full():
    """From attention and states to the rows that go on: those of the public code, but in the order of places."""
    for name, given, params, _, wanted in cases("sparsevlm"):
        if params["kind"] == "raters":
            continue
        layer = (2, 6, 15).index(params["layer"])
        method = SparseVLMPruner(keep_tokens=params["retained_tokens"], compat="released")
        budget = method.budgets(576, 32)[layer]
        assert budget == wanted["visual_tokens_after"]
        text = torch.zeros(given["attention"].shape[1], 2)
        text[params["raters"], 0] = 9.0
        seen = view(
            given["hidden"],
            budget,
            attend=lambda raters, given=given: given["attention"][:, raters],
            embeddings=torch.ones(3, 2),
            text_embeddings=text,
        )
        chosen = method.choose(seen)
        rows = method.merge(given["hidden"], chosen)
        centres = chosen.order[len(wanted["kept"]) :]
        assert len(chosen.indices) == budget
        if "centers" in wanted:
            assert centres.tolist() == wanted["centers"], name
        merged = rows[torch.searchsorted(chosen.indices, centres)]
        torch.testing.assert_close(merged, wanted["features"], **TOLERANCE)
        stay = ~torch.isin(chosen.indices, centres)
        assert chosen.indices[stay].tolist() == wanted["kept"]
        assert torch.equal(rows[stay], given["hidden"][wanted["kept"]])
