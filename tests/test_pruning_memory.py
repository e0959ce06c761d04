"""After a prefill, pruning keeps indices only: nothing as large as hidden states or N x N."""

from __future__ import annotations

import gc

import pytest
import torch

import vlm_pruner as vp
from tests.families import FAMILIES
from vlm_pruner.speed.workload import make_workload

N, KEPT = 4096, 64
LLAVA = next(family for family in FAMILIES if family.name == "llava")
pytestmark = pytest.mark.usefixtures("only_new_objects")


def tensors() -> dict[int, torch.Tensor]:
    return {id(thing): thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)}


@pytest.mark.parametrize("batch", [1, 2])
def test_nothing_large_is_held_after_a_prefill(batch):
    model = LLAVA.build()
    work = make_workload(model, N, 8, batch)
    assert work.visual == N
    hidden_size = model.config.get_text_config().hidden_size
    with torch.no_grad(), vp.prune(model, vp.CentrifugalPruner(keep_tokens=KEPT)) as pruning:
        gc.collect()
        before = tensors()
        model(**work.inputs, use_cache=False, logits_to_keep=1)  # its output, cache included, is dropped at once
        gc.collect()
        left = [one for key, one in tensors().items() if key not in before]
        assert pruning.receipts[0].images[0].n_after == KEPT
        largest = max((one.numel() for one in left), default=0)
        # Coordinates [N, 2] and per-token notes [N] may stay for the receipt; a hidden state for each token may not.
        assert largest <= 3 * N < N * hidden_size
        assert sum(one.numel() for one in left) < N * hidden_size * batch


def test_no_mask_is_held_after_a_prefill():
    model = LLAVA.build()
    inputs = make_workload(model, 64, 8, 2).inputs
    inputs["attention_mask"][1, 0] = 0  # so that the layers get masks
    with torch.no_grad(), vp.prune(model, vp.CentrifugalPruner(keep_tokens=16)) as pruning:
        before = tensors()
        model(**inputs, use_cache=False, logits_to_keep=1)
        gc.collect()
        left = [one for key, one in tensors().items() if key not in before]
        assert pruning.receipts and not [one.shape for one in left if one.ndim == 4]


def test_the_probe_sees_what_is_held():
    before = tensors()
    held = torch.zeros(N, 16)
    assert id(held) in tensors() and id(held) not in before
