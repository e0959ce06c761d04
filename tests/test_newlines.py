"""`newlines="of-kept-rows"`: newline tokens that follow their lines, over families that have them and methods."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import vlm_pruner as vp
from tests.every_method import of_decoder
from tests.families import FAMILIES, Family
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import Lines
from vlm_pruner.geometry.tiles import unpadded_layout
from vlm_pruner.geometry.videos import video_layout

WITH_NEWLINES = [family for family in FAMILIES if family.name in ("llava_next", "llava_onevision", "llava_qwen")]
RULE = {"newlines": "of-kept-rows"}
METHODS = [
    vp.CentrifugalPruner(reduction_ratio=0.8, **RULE),
    vp.CentrifugalPruner(reduction_ratio=0.8, layer=0, **RULE),
    vp.RandomPruner(keep_tokens=7, **RULE),
    *(replace(method, **RULE) for method in of_decoder()),
]


def run(family: Family, method, *prompts):
    batch = family.inputs(*prompts)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)  # as `generate` counts them
    with vp.prune(family.model, method) as pruning, torch.no_grad():
        logits = family.model(**batch, position_ids=positions).logits
    return logits, pruning.receipts[-1]


def lines_of(family: Family, image) -> Lines:
    """The lines of a receipt's span, from its coordinates: a newline is one step right of its line's last token."""
    fit = image.fit
    if fit.kind == "anyres":
        lines = unpadded_layout(fit.base, fit.rows, fit.columns).lines
    elif fit.newlines == "grid":
        lines = video_layout(fit.frames, fit.rows, "grid").lines
    else:
        lines = Lines.of(1, image.n_before - 1)
    assert lines is not None and len(lines.rows) == image.n_before
    return lines


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.layer}")
@pytest.mark.parametrize("family", WITH_NEWLINES, ids=lambda family: family.name)
def test_newlines_follow_their_lines(family: Family, method) -> None:
    for prompt in family.prompts.values():
        _, receipt = run(family, method, prompt)
        assert receipt.config["newlines"] == "of-kept-rows" and receipt.images
        for image in receipt.images:
            lines = lines_of(family, image)
            content = [token for token in image.indices if not lines.newlines[token]]
            total = int((~lines.newlines).sum())
            assert len(content) == method.budgets(total, 4)[-1]
            kept_lines = {int(lines.rows[token]) for token in content} - {-1}
            newlines = {token for token in image.indices if lines.newlines[token]}
            assert newlines == {
                token
                for token in range(image.n_before)
                if lines.newlines[token] and int(lines.rows[token]) in kept_lines
            }
            assert sorted(image.order) == image.indices
            json.dumps(image.to_dict())


@pytest.mark.parametrize("family", WITH_NEWLINES, ids=lambda family: family.name)
def test_keeping_everything_is_the_dense_model(family: Family) -> None:
    for prompt in family.prompts.values():
        with torch.no_grad():
            dense = family.model(**family.inputs(prompt), position_ids=None).logits
        assert torch.equal(dense, run(family, vp.CentrifugalPruner(reduction_ratio=0, **RULE), prompt)[0])


@pytest.mark.parametrize("family", WITH_NEWLINES, ids=lambda family: family.name)
def test_a_ragged_batch_equals_its_rows_one_by_one(family: Family) -> None:
    method = vp.CentrifugalPruner(reduction_ratio=0.7, **RULE)
    prompts = list(family.prompts.values())
    if family.name == "llava_onevision":  # of which a batch has either one picture in each row or several
        prompts = [family.prompts["one"], family.prompts["film"]]
    logits, receipt = run(family, method, *prompts)
    for row, prompt in enumerate(prompts):
        alone, own = run(family, method, prompt)
        assert torch.allclose(logits[row, -1], alone[0, -1], atol=1e-4)
        assert [image.indices for image in receipt.images if image.row == row] == [
            image.indices for image in own.images
        ]


def test_a_budget_per_frame() -> None:
    family = next(family for family in FAMILIES if family.name == "llava_qwen")
    method = vp.CentrifugalPruner(keep_tokens=4, per_frame=True, **RULE)
    _, receipt = run(family, method, family.prompts["film"])
    assert [image.n_before for image in receipt.images] == [12, 12, 12]
    for image in receipt.images:
        rows = {y for _, x, y in image.coords if x < 3}
        assert sum(x < 3 for _, x, _ in image.coords) == 4
        assert {y for _, x, y in image.coords if x == 3} == rows


def test_what_is_merged_and_what_is_not() -> None:
    """Newlines pass through unchanged, and nothing is folded into them."""
    from vlm_pruner.decoder import newlines
    from vlm_pruner.decoder.image_states import plan
    from vlm_pruner.geometry.layout import VisualSpan
    from vlm_pruner.methods.view import View

    layout = video_layout(2, 4, "grid")
    torch.manual_seed(0)
    hidden = torch.randn(40, 16)
    method = vp.CentrifugalPruner(keep_tokens=6, channels=8, **RULE)
    (task,) = plan([[VisualSpan(0, 40, layout)]], method, 4)
    seen = []

    def look(part):
        tokens = hidden[part.span.positions()]
        seen.append(part.span.length)
        return View(tokens, tokens, part.span.layout, part.budget)

    (selection,) = newlines.choose_all(method, [task], look)
    merged = newlines.merge(method, hidden, selection)
    assert seen == [32] and isinstance(selection, newlines.WithNewlines)
    ends = layout.lines.newlines[selection.indices]
    assert torch.equal(merged[ends], hidden[selection.indices][ends])
    content = ~layout.lines.newlines
    direct = method.select(hidden[content], hidden[content], layout.part(content.nonzero().squeeze(1)), 6)
    assert torch.equal(merged[~ends], method.merge(hidden[content], direct))


def test_families_without_newlines_are_pruned_as_ever() -> None:
    family = next(family for family in FAMILIES if family.name == "llava")
    plain = run(family, vp.CentrifugalPruner(keep_tokens=6), family.prompts["one"])
    assert torch.equal(plain[0], run(family, vp.CentrifugalPruner(keep_tokens=6, **RULE), family.prompts["one"])[0])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(PruningError, match="newlines='kept' is not one of 'prunable', 'of-kept-rows'"):
        vp.CentrifugalPruner(keep_tokens=6, newlines="kept")
    with pytest.raises(PruningError, match="the released code counts newlines"):
        vp.CentrifugalPruner(keep_tokens=6, compat="released", **RULE)


@pytest.mark.parametrize("family", WITH_NEWLINES, ids=lambda family: family.name)
def test_every_stage_sees_the_embeddings_of_all_that_is_no_newline(family: Family, monkeypatch) -> None:
    """And of nothing else: later stages choose among fewer tokens, but rate the text by the whole picture."""
    method, seen = vp.methods.get("sparsevlm")(keep_tokens=7, layer=1, **RULE), []
    choose = type(method).choose
    monkeypatch.setattr(
        type(method), "choose", lambda self, view: seen.append(len(view.embeddings)) or choose(self, view)
    )
    _, receipt = run(family, method, next(iter(family.prompts.values())))
    (image,) = receipt.images
    assert len(seen) > 1 and set(seen) == {int((~lines_of(family, image).newlines).sum())}
