"""Ways of generating, for every supported family: beams, samples, caches, drafts, and a prefilled cache."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

import vlm_pruner as vp
from tests.families import FAMILIES, FILM, MIXED, ONE, TWO, WORDS, Family
from tests.tiny_qwen import text
from tests.versions import skip_before
from vlm_pruner.decoder.cache_names import cache_argument, with_cache
from vlm_pruner.errors import CacheError, PruningError

METHOD = vp.CentrifugalPruner(keep_tokens=6)
pytestmark = pytest.mark.filterwarnings("ignore::vlm_pruner.decoder.pruning.PruningWarning")


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


def generate(family, batch, method=METHOD, model=None, **options):
    """New tokens [B, n] and the receipts."""
    model = model or family.model
    options = {"do_sample": False, "max_new_tokens": 5} | options
    if method is None:
        return model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :], []
    with vp.prune(model, method) as pruning:
        out = model.generate(**batch, **options)
    return out[:, batch["input_ids"].shape[1] :], pruning.receipts


def check_rows_are_repeated(family):
    if family.name != "llava_original":  # which repeats its pictures itself
        skip_before("5.20", "repeats the pictures of a prompt in the wrong order for beams and samples")


def ragged(family):
    return family.inputs(TWO, WORDS, MIXED if family.videos else ONE)


@pytest.mark.column("beam")
def test_beams_are_the_same_without_a_cache(family):
    """Without one, every step is a prefill of all beams, and so knows nothing of reordered caches."""
    check_rows_are_repeated(family)
    batch = family.inputs(TWO, ONE)
    cached, receipts = generate(family, batch, num_beams=3)
    plain, _ = generate(family, batch, num_beams=3, use_cache=False)
    assert torch.equal(cached, plain)
    alone = generate(family, batch)[1][0].images
    kept = [image.indices for image in receipts[0].images]
    assert kept == [one.indices for row in (0, 1) for _ in range(3) for one in alone if one.row == row]
    one_by_one = [generate(family, family.inputs(prompt), num_beams=3)[0][0].tolist() for prompt in (TWO, ONE)]
    assert cached.tolist() == one_by_one


@pytest.mark.column("beam")
def test_several_samples_of_a_row_see_its_pictures(family):
    check_rows_are_repeated(family)
    batch = family.inputs(TWO, WORDS, ONE)
    torch.manual_seed(0)
    tokens, receipts = generate(family, batch, do_sample=True, num_return_sequences=2)
    alone = generate(family, batch)[1][0].images
    kept = [(image.row, image.indices) for image in receipts[0].images]
    assert kept == [(2 * row + i, one.indices) for row in (0, 2) for i in (0, 1) for one in alone if one.row == row]
    assert tokens.shape == (6, 5)
    with_top_1, _ = generate(family, batch, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(with_top_1, generate(family, batch)[0].repeat_interleave(2, dim=0))


@pytest.mark.column("static cache")
def test_a_static_cache_gives_the_same(family):
    for batch in (family.inputs(TWO), ragged(family)):
        dynamic, _ = generate(family, batch)
        static, _ = generate(family, batch, cache_implementation="static")
        assert torch.equal(static, dynamic)


def test_no_cache_gives_the_same(family):
    for batch in (family.inputs(FILM if family.videos else TWO), ragged(family)):
        assert torch.equal(generate(family, batch, use_cache=False)[0], generate(family, batch)[0])


def test_drafts_change_nothing(family):
    """By another model, by the pruned model itself, and from the prompt: rejected tokens are taken back."""
    batch = family.inputs([*TWO, *TWO[-3:]])
    plain, _ = generate(family, batch, max_new_tokens=8)
    for draft in (
        {"assistant_model": family.eager},
        {"assistant_model": family.model},
        {"prompt_lookup_num_tokens": 3},
    ):
        assert torch.equal(generate(family, batch, max_new_tokens=8, **draft)[0], plain)


def test_a_prefill_in_chunks_is_refused(family):
    skip_before("5.23", "forgets the pictures of a prefill in chunks; pruning warns that nothing is visual")
    reason = "in one forward call|Chunked prefill cannot split the raw multimodal inputs"
    for size in (7, 8, 9):
        with pytest.raises((PruningError, ValueError), match=reason):
            generate(family, family.inputs(TWO), prefill_chunk_size=size)


def test_a_prefix_may_be_cached_before(family):
    """A system prompt is prefilled once, outside the context or in it, and its cache copied for every question."""
    if family.name.startswith("qwen"):
        skip_before("5.23", "counts positions behind a cached prefix wrongly for models with three axes")
    prefix = text(5, 40)
    whole, receipts = generate(family, family.inputs([*prefix, *TWO]))
    prefilled = DynamicCache()
    with torch.no_grad():
        family.model(input_ids=torch.tensor([prefix]), **cache_argument(prefilled), use_cache=True)
    for _ in range(2):
        batch = family.inputs([*prefix, *TWO])
        after, again = generate(family, batch, **cache_argument(copy.deepcopy(prefilled)))
        assert torch.equal(after, whole)
        assert [one.indices for one in again[0].images] == [one.indices for one in receipts[0].images]


def test_a_copied_cache_of_a_picture_goes_on_for_one_row_and_is_refused_for_several(family):
    for prompts in ([TWO], [TWO, ONE]):
        batch, cache = family.inputs(*prompts), DynamicCache()
        words = torch.tensor([text(2, 50 + row) for row in range(len(prompts))])
        more = {"input_ids": words, "use_cache": True}
        with torch.no_grad(), vp.prune(family.model, METHOD):
            family.model(**batch, **cache_argument(cache), use_cache=True)
            copied = copy.deepcopy(cache)
            wanted = family.model(**with_cache(more, cache)).logits
            if len(prompts) == 1:
                torch.testing.assert_close(family.model(**with_cache(more, copied)).logits, wanted)
                continue
            with pytest.raises(CacheError, match="pruned elsewhere"):
                family.model(**with_cache(more, copied))
