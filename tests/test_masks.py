"""Which tokens a layer's mask hides: those that no query of any head may attend to."""

from __future__ import annotations

import pytest
import torch

from vlm_pruner.decoder.masks import LayerMask


def causal(heads: int, hidden: list[tuple[int, int]]) -> torch.Tensor:
    """Bool [1, heads, 5, 5]. hidden: (head, token) pairs that only the token's own query may see."""
    mask = torch.ones(5, 5, dtype=torch.bool).tril().repeat(1, heads, 1, 1)
    for head, token in hidden:
        mask[0, head, token + 1 :, token] = False
    return mask


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize(
    ("heads", "hidden", "expected"),
    [
        (1, [], None),
        (1, [(0, 2)], [2]),
        (2, [(0, 2)], None),
        (2, [(1, 2)], None),
        (2, [(0, 2), (1, 2)], [2]),
        (3, [(0, 1), (1, 1), (2, 1), (0, 3), (2, 3)], [1]),
    ],
)
def test_a_token_that_some_head_shows_is_not_hidden(heads, hidden, expected, additive):
    mask = causal(heads, hidden)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    given = mask.clone()
    found = LayerMask(given, rows=1, past=0, new=5).hidden_tokens(0)
    assert (None if found is None else found.nonzero().flatten().tolist()) == expected
    assert torch.equal(given, mask), "the caller's mask is unchanged"
