"""Methods that choose by the vision tower's class-token attention."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import vlm_pruner as vp
from tests import llava_tiny, tiny_qwen
from tests.every_method import of_tower
from tests.tiny_llava import LAYERS, N, image, inputs, prompt, tiny_llava
from vlm_pruner.adapters.clip_tower import ClipTower
from vlm_pruner.decoder.cache_names import cache_of
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.cdpruner import cdpruner_order
from vlm_pruner.methods.prumerge import class_attention, outliers_first, prumerge_rows
from vlm_pruner.methods.visionzip import contextual_rows, zip_patches

METHODS = of_tower()
NAMES = [method.name for method in METHODS]
BY_NAME = {method.name: method for method in METHODS}


def label(method):
    return method.name


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def tower_run(model, pixels):
    """Of one picture: the tower's states and, by eager attention, its maps; the encoder's layers."""
    tower = tiny_llava("eager").model.vision_tower
    with torch.no_grad():
        out = tower(pixels, output_hidden_states=True, output_attentions=True)
    return out.hidden_states, out.attentions, model.model.vision_tower.get_submodule("encoder.layers")


def first_rows(model, method, batch):
    """The receipt's image, and the rows that enter layer 0 for its kept tokens."""
    seen = []
    with torch.no_grad(), vp.prune(model, method) as pruning:
        layer = model.model.language_model.layers[0]
        hook = layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(args[0]), with_kwargs=True)
        model(**batch)
        hook.remove()
    kept = pruning.receipts[0].images[0]
    return kept, seen[0][0, 5 : 5 + kept.n_after]


def test_fastervlm_ranks_by_the_class_tokens_attention(model):
    """The layer is the one whose output is selected: -2 in this model, as in LLaVA-1.5."""
    assert model.config.vision_feature_layer == -2
    _, maps, _ = tower_run(model, image(0))
    scores = maps[-2][0].mean(dim=0)[0, 1:]
    kept, rows = first_rows(model, BY_NAME["fastervlm"], inputs(prompt(), images=[0]))
    assert kept.order == scores.argsort(descending=True)[:9].tolist()
    with torch.no_grad():
        features = model.model.get_image_features(image(0)).pooler_output[0]
    assert torch.equal(rows, features[kept.indices])


def test_visionzips_rows_are_projected_after_they_are_summed_up(model):
    states, maps, layers = tower_run(model, image(0))
    with torch.no_grad():
        normed = layers[-2].layer_norm1(states[-3][0])
        keys = layers[-2].self_attn.k_proj(normed)[1:].unflatten(-1, (2, 16)).mean(dim=1)
        zipped = zip_patches(maps[-2][0][:, 0, 1:], keys, 8, 1)
        wanted = model.model.multi_modal_projector(contextual_rows(states[-2][0, 1:], zipped))
        plain = model.model.multi_modal_projector(states[-2][0, 1:])
    kept, rows = first_rows(model, BY_NAME["visionzip"], inputs(prompt(), images=[0]))
    assert kept.order == [*zipped.dominant.tolist(), *zipped.targets.tolist()]
    target = kept.indices.index(int(zipped.targets[0]))
    torch.testing.assert_close(rows[target], wanted[0], atol=1e-5, rtol=1e-4)
    others = [i for i in range(9) if i != target]
    torch.testing.assert_close(rows[others], plain[[kept.indices[i] for i in others]], atol=1e-5, rtol=1e-4)


def test_prumerges_rows_are_those_of_its_mathematics(model):
    states, _, layers = tower_run(model, image(0))
    with torch.no_grad():
        normed = layers[-1].layer_norm1(states[-2][0])
        query, keys = layers[-1].self_attn.q_proj(normed[0]), layers[-1].self_attn.k_proj(normed)
        attention = class_attention(query, keys)
        order = outliers_first(attention, 9)
        rows = prumerge_rows(states[-2][0, 1:], keys[1:], attention, order)[:-1]
        wanted = model.model.multi_modal_projector(rows)
    kept, found = first_rows(model, BY_NAME["prumerge"], inputs(prompt(), images=[0]))
    assert kept.order == order.tolist()
    torch.testing.assert_close(found, wanted[order.argsort()], atol=1e-5, rtol=1e-4)


def joint_space(dtype=torch.float32):
    """Stand-ins for the half of CLIP that LLaVA has not got: a question, and the way into the joint space."""
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(12, 32, generator=random).to(dtype)
    return torch.randn(2, 12, generator=random), lambda patches: torch.nn.functional.linear(patches, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cdpruner_weighs_by_a_question_that_is_given(dtype):
    model = tiny_llava().to(dtype)
    question, joint = joint_space(dtype)
    pixels = image(0).to(dtype)
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
        features = model.model.get_image_features(pixels).pooler_output[0]
    order = cdpruner_order(features.float(), joint(states).float(), question, 9)
    method = vp.methods.get("cdpruner")(keep_tokens=9, question=question, joint=joint)
    kept, rows = first_rows(model, method, {**inputs(prompt(), images=[0]), "pixel_values": pixels})
    assert kept.order == order.tolist() and torch.equal(rows, features[kept.indices])


def test_cdpruner_without_its_half_of_clip_says_what_is_missing():
    question, joint = joint_space()
    with pytest.raises(PruningError, match=r"picture half of CLIP only: pass question= and joint="):
        vp.methods.get("cdpruner")(keep_tokens=9)
    with pytest.raises(PruningError, match=r"question must have shape \[M, c\].*not \[12\]"):
        vp.methods.get("cdpruner")(keep_tokens=9, question=question[0], joint=joint)
    method = vp.methods.get("cdpruner")(keep_tokens=9, question=question, joint=joint)
    assert json.loads(json.dumps(method.config()))["keep_tokens"] == 9
    assert replace(method, question=question[:1]) == method and "tensor" not in repr(method)


@pytest.mark.parametrize("budget", [1, 2, 9, 24, 25])
@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_met(model, name, budget):
    method = vp.methods.get(name)(keep_tokens=budget)
    with torch.no_grad(), vp.prune(model, method) as pruning:
        model(**inputs(prompt(), images=[0]))
    (kept,) = pruning.receipts[0].images
    assert kept.n_after == len(set(kept.order)) == budget and kept.indices == sorted(kept.order)
    assert kept.steps == [[0, budget]] and type(method)(**pruning.receipts[0].config) == method


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_batches_beams_and_caches(model, method):
    prompts = [prompt(4, 6, 0), prompt(2, 3, 1)]
    together = inputs(*prompts, images=[0, 1])
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    with vp.prune(model, method) as pruning:
        batch = model.generate(**together, max_new_tokens=4, do_sample=False)[:, -4:]
        static = model.generate(**together, max_new_tokens=4, do_sample=False, cache_implementation="static")[:, -4:]
        alone = [
            model.generate(**inputs(tokens, images=[row]), max_new_tokens=4, do_sample=False)[0, -4:]
            for row, tokens in enumerate(prompts)
        ]
        model.generate(**together, max_new_tokens=2, do_sample=False, num_beams=3)
    first, _, *singles, beams = pruning.receipts
    assert batch.tolist() == static.tolist() == [tokens.tolist() for tokens in alone]
    orders = [kept.order for kept in first.images]
    assert orders == [single.images[0].order for single in singles] and orders[0] != orders[1]
    assert [kept.order for kept in beams.images] == [order for order in orders for _ in range(3)]
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()) == hooks


@pytest.mark.parametrize("name", ["fastervlm", "vispruner"])
def test_dropping_later_is_possible_where_nothing_is_merged(model, name):
    batch = inputs(prompt(), images=[0])
    with vp.prune(model, vp.methods.get(name)(keep_tokens=9)) as early:
        model.generate(**batch, max_new_tokens=2)
    with vp.prune(model, vp.methods.get(name)(keep_tokens=9, layer=2)) as late:
        out = model.generate(**batch, max_new_tokens=2, return_dict_in_generate=True)
    assert early.receipts[0].images[0].order == late.receipts[0].images[0].order
    lengths = [cache_of(out).get_seq_length(i) for i in range(LAYERS)]
    assert lengths == [37, 37, 37 - N + 9, 37 - N + 9]


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_the_original_layout(method):
    """Its tower takes features from the last layer, and runs before the decoder without `generate` in between."""
    model = llava_tiny.model()
    layer, pixels = model.model.vision_tower.select_layer, llava_tiny.pixels(0)
    with torch.no_grad():
        model.model.vision_tower.vision_tower.set_attn_implementation("eager")
        maps = model.model.vision_tower.vision_tower(pixels, output_attentions=True).attentions
        model.model.vision_tower.vision_tower.set_attn_implementation("sdpa")
    with vp.prune(model, method) as pruning:
        model.generate(llava_tiny.prompt_ids(), images=pixels, max_new_tokens=3, do_sample=False)
    (kept,) = pruning.receipts[0].images
    assert kept.n_after == 9
    if method.name == "fastervlm":
        assert kept.order == maps[layer][0].mean(dim=0)[0, 1:].argsort(descending=True)[:9].tolist()


def test_pictures_that_were_encoded_elsewhere_are_refused(model):
    batch = inputs(prompt(), images=[0])
    with torch.no_grad():
        encoded = model.model.get_image_features(image(0), return_dict=True)
    with vp.prune(model, BY_NAME["fastervlm"]), pytest.raises(PruningError, match="encoded no picture"):
        model.model(input_ids=batch["input_ids"], mm_encoder_outputs={"image": encoded})


def test_families_without_a_class_token_are_refused(model):
    for method in METHODS:
        with pytest.raises(PruningError, match="class token"):
            vp.prune(tiny_qwen.model("qwen2_vl"), method)
    with pytest.raises(PruningError, match=r"Linear has no class token"):
        ClipTower.of(torch.nn.Linear(2, 2), -2, torch.nn.Linear(2, 2))
    with pytest.raises(PruningError, match=r"layers \[-2, -1\]"):
        ClipTower.of(model.model.vision_tower, [-2, -1], torch.nn.Linear(2, 2))


def test_the_decoder_alone_says_what_is_missing():
    model = llava_tiny.model()
    with pytest.raises(PruningError, match=r"FasterVLMPruner needs cls_attention.*prune\(model, method\)"):
        model.model.method = BY_NAME["fastervlm"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("visionzip", {"layer": 2}, "layer=2: VisionZip makes new input tokens"),
        ("prumerge", {"layer": 2}, "layer=2: PruMerge makes new input tokens"),
        ("visionzip", {"contextual": 1.5}, "contextual=1.5"),
        ("vispruner", {"important": -0.5}, "important=-0.5"),
        ("prumerge", {"neighbours": 1.5}, "neighbours=1.5"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(PruningError, match=message):
        vp.methods.get(name)(keep_tokens=9, **settings)
