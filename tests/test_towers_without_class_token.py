"""SigLIP and Pixtral in LLaVA's and LLaVA-NeXT's classes: one feature per patch, and no class token to leave out."""

from __future__ import annotations

import pytest
import torch
import transformers

import vlm_pruner as vp
from tests.families import _TEXT, _TOWER, Picture, llava_next, random
from tests.tiny_llava import inputs, prompt, tiny_llava
from tests.tiny_qwen import IMAGE, prepare, text
from vlm_pruner.errors import PruningError

KEEP = vp.CentrifugalPruner(keep_tokens=6, self_weight=1)
SIGLIP = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, "image_token_id": IMAGE}


def llava(vision, **more):
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**_TEXT), **{**SIGLIP, **more}
    )
    return prepare(transformers.LlavaForConditionalGeneration(config))


def interleave():
    vision = transformers.SiglipVisionConfig(**_TOWER, image_size=70, patch_size=14)
    return llava(vision), inputs(prompt(), images=[0]), 25


def pixtral():
    """3 x 4 patches, with a word after every row."""
    model = llava(transformers.PixtralVisionConfig(**_TOWER, head_dim=16, image_size=224, patch_size=14))
    ids = [*text(4, 1), *([IMAGE] * 4 + [94]) * 2, *[IMAGE] * 4, 93, *text(5, 2)]
    batch = {"input_ids": torch.tensor([ids]), "pixel_values": random(1, 3, 42, 56, seed=1)}
    return model, {**batch, "image_sizes": torch.tensor([[42, 56]])}, 12


def granite():
    """Two layers' features side by side, as Granite Vision takes them."""

    class granite_vision(llava_next):
        def vision_config(self):
            return transformers.SiglipVisionConfig(**_TOWER, image_size=70, patch_size=14)

        def text_config(self):
            return transformers.GraniteConfig(**_TEXT)

    family = granite_vision()
    more = {"vision_feature_select_strategy": "full", "vision_feature_layer": [-2, -1]}
    family.config = lambda: llava_next.config(family, **more)
    batch = family.inputs([*text(4, 1), Picture(1, 1), *text(5, 2)])
    return family.model, batch, int((batch["input_ids"] == IMAGE).sum())


@pytest.mark.parametrize("make", [interleave, pixtral, granite])
def test_keep_all_is_dense_and_the_budget_is_met(make):
    model, batch, tokens = make()
    with torch.no_grad():
        dense = model(**batch).logits
        with vp.prune(model, vp.CentrifugalPruner(reduction_ratio=0.0)):
            assert torch.equal(model(**batch).logits, dense)
        with vp.prune(model, KEEP) as pruning:
            short = model(**batch).logits
            model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert short.shape[1] == dense.shape[1] - tokens + 6
    (kept,) = pruning.receipts[0].images
    assert kept.n_before == tokens and kept.order == pruning.receipts[1].images[0].order


def test_pixtrals_tokens_are_where_the_rows_say():
    model, batch, _ = pixtral()
    with torch.no_grad(), vp.prune(model, vp.CentrifugalPruner(keep_tokens=11)) as pruning:
        model(**batch)
    (kept,) = pruning.receipts[0].images
    assert kept.coords == [[i % 4, i // 4] for i in kept.indices] and (kept.fit.rows, kept.fit.columns) == (3, 4)


def test_features_that_are_not_one_per_patch_are_refused_with_the_reason():
    clip = transformers.CLIPVisionConfig(**_TOWER, image_size=70, patch_size=14)
    siglip = transformers.SiglipVisionConfig(**_TOWER, image_size=70, patch_size=14)
    with pytest.raises(PruningError, match=r"'full' with CLIPVisionModel adds the class token.*needs 'default'"):
        vp.prune(llava(clip), KEEP)
    with pytest.raises(PruningError, match=r"'default' with SiglipVisionModel leaves out a patch.*needs 'full'"):
        vp.prune(llava(siglip, vision_feature_select_strategy="default"), KEEP)
    with pytest.raises(PruningError, match="has no class token"):
        vp.prune(llava(siglip), vp.methods.get("fastervlm")(keep_tokens=6))
    assert vp.prune(tiny_llava(), KEEP)
