"""The methods against what their public code chose and merged. Skipped where the conformance kit is absent."""

from __future__ import annotations

import json

import torch
from safetensors import safe_open

from tests.conformance import conformance
from vlm_pruner.layout import TokenLayout
from vlm_pruner.methods.cdpruner import cdpruner_order
from vlm_pruner.methods.dart import DartPruner, largest_keys, set_order
from vlm_pruner.methods.divprune import DivPruner
from vlm_pruner.methods.fastervlm import FasterVLMPruner
from vlm_pruner.methods.fastv import FastVPruner
from vlm_pruner.methods.hiprune import choose_hierarchy, received_attention
from vlm_pruner.methods.prumerge import class_attention, outlier_count, prumerge_order, prumerge_rows
from vlm_pruner.methods.sparsevlm import recycle, text_raters
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


def test_hiprune():
    for name, given, params, budget, wanted in cases("hiprune"):
        middle = received_attention(given["q_object"], given["k_object"])
        deep = received_attention(given["q_deep"], given["k_deep"])
        chosen = choose_hierarchy(middle, deep, budget, 24, params["alpha"])
        assert chosen.anchors.tolist() == wanted["anchors"], name
        assert chosen.surrounded.tolist() == wanted["anchors_and_buffers"]
        assert chosen.registers.tolist() == wanted["registers"]
        assert torch.cat([chosen.surrounded, chosen.registers]).sort().values.tolist() == wanted["kept"]


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
