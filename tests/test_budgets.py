"""Budgets in every convention: parsed, solved for every method, and met by the receipts of a run."""

from __future__ import annotations

from functools import partial

import pytest

import vlm_pruner as vp
from tests.every_method import of_pictures
from tests.running import lengths_seen
from tests.tiny_llava import LAYERS, N, inputs, prompt, tiny_llava
from vlm_pruner.cost import accounting
from vlm_pruner.cost.budgets import Budget, plain, solve
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.errors import PruningError

LLAVA_7B = DecoderShape(layers=32, hidden=4096, intermediate=11008, heads=32, key_value_heads=32, head_size=128)
MINI = DecoderShape(layers=6, hidden=320, intermediate=576, heads=5, key_value_heads=5, head_size=64)
TEXT = 11  # of prompt(4, 6)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.mark.parametrize(
    ("word", "kind", "value", "shown"),
    [
        ("64", "tokens", 64, "64"),
        ("64tok", "tokens", 64, "64"),
        (" 64 ", "tokens", 64, "64"),
        ("ratio:0.889", "ratio", 0.889, "ratio:0.889"),
        ("ratio:.5", "ratio", 0.5, "ratio:0.5"),
        ("avg:64", "avg", 64, "avg:64"),
        ("avg:90.5", "avg", 90.5, "avg:90.5"),
        ("flops:0.3", "flops", 0.3, "flops:0.3"),
        ("flops:0.3@40", "flops", 0.3, "flops:0.3@40"),
    ],
)
def test_reading(word, kind, value, shown):
    budget = Budget.parse(word)
    assert (budget.kind, budget.value, str(budget)) == (kind, value, shown)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("0", "a whole number of at least 1"),
        ("0.3", r"a whole number of at least 1; a share is ratio:0.3"),
        ("64.5tok", "a whole number"),
        ("-5", "is not understood; write 64"),
        ("share:0.3", "is not understood"),
        ("ratio:0.3tok", "is not understood"),
        ("avg:64@40", "is not understood"),
        ("ratio:1", "at least 0 and below 1"),
        ("avg:0", "above 0"),
        ("flops:1.2", "above 0 and at most 1"),
        ("", "is not understood"),
    ],
)
def test_what_is_no_budget(word, message):
    with pytest.raises(PruningError, match=message):
        Budget.parse(word)


@pytest.mark.parametrize("word", ["9", "ratio:0.6", "avg:20", "flops:0.8"])
@pytest.mark.parametrize("name", of_pictures())
def test_every_method_meets_it_in_a_run(model, name, word):
    """Never over it, and one token more would be: read off the layers of a running model."""
    budget, make, shape = Budget.parse(word), vp.methods.get(name), DecoderShape.of(model.config.text_config)
    setting = solve(budget, make, N, shape, text=TEXT)
    seen, receipt = lengths_seen(model, setting.method, inputs(prompt(4, 6), images=[0]))
    (account,) = accounting.of_receipt(receipt, shape, TEXT)
    assert account == setting.accounting and [TEXT + kept for kept in account.kept] == seen
    if budget.kind == "tokens":
        from_first = account.kept[setting.method.layers(LAYERS)[0] :]
        assert 8 < sum(from_first) / len(from_first) <= 9
    elif budget.kind == "ratio":
        from_first = account.kept[setting.method.layers(LAYERS)[0] :]
        assert 9 < sum(from_first) / len(from_first) <= 10
    else:
        spent = {"avg": account.average_tokens, "flops": account.flops_share}[budget.kind]
        assert spent <= budget.value
        bigger = accounting.of_method(make(keep_tokens=setting.method.keep_tokens + 1), N, TEXT, shape)
        assert {"avg": bigger.average_tokens, "flops": bigger.flops_share}[budget.kind] > budget.value


def test_methods_at_one_average_cost_nearly_the_same():
    """What the convention is for: at avg:192 every method of LLaVA-1.5-7B holds the same number of tokens, nearly."""
    accounts = [solve(Budget.parse("avg:192"), vp.methods.get(name), 576, LLAVA_7B).accounting for name in NAMES]
    assert all(190 < account.average_tokens <= 192 for account in accounts)
    assert max(a.flops_share for a in accounts) - min(a.flops_share for a in accounts) < 0.02


NAMES = ("vlm-pruner", "fastv", "sparsevlm", "pyramiddrop", "divprune", "visionzip")


def test_it_says_what_it_chose():
    setting = solve(Budget.parse("avg:192"), vp.CentrifugalPruner, 576, LLAVA_7B)
    assert setting.method == vp.CentrifugalPruner(keep_tokens=166)  # (2 * 576 + 30 * 166) / 32 = 191.6
    assert setting.chosen.startswith("avg:192: keep_tokens=166: 166 tokens from layer 2; average 191.6 tokens over 32")
    setting = solve(Budget.parse("ratio:0.889"), vp.methods.get("divprune"), 576, LLAVA_7B)
    assert setting.method.reduction_ratio == 0.889 and "64 tokens from layer 0; average 64.0 tokens" in setting.chosen


def test_the_text_length_counts():
    """Text is in every layer and cannot be pruned: the same share of FLOPs leaves fewer visual tokens."""
    short, long = (solve(Budget.parse(f"flops:0.4@{n}"), vp.CentrifugalPruner, 576, LLAVA_7B) for n in (20, 120))
    assert short.method.keep_tokens > long.method.keep_tokens
    assert short.accounting.text == 20 and long.accounting.flops_share <= 0.4


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "avg:64",
            r"avg:64 cannot be met by vlm-pruner with layer=2 of 6 layers: keep_tokens=4 still costs 194.7 tokens",
        ),
        ("avg:64", r"ask for avg:194.7 or more, or for a smaller layer"),
        ("flops:0.1", r"% of the dense FLOPs \(64 text tokens\); ask for flops:0.\d+ or more"),
        ("600", r"keep_tokens=600, but the image has only 576 visual tokens"),
        ("2", r"keep_tokens=2"),
    ],
)
def test_what_cannot_be_reached_is_told(word, message):
    with pytest.raises(PruningError, match=message):
        solve(Budget.parse(word), vp.CentrifugalPruner, 576, MINI)


def test_the_remedy_works():
    """What the error asks for is met, by the smallest setting."""
    for kind in ("avg", "flops"):
        with pytest.raises(PruningError) as error:
            solve(Budget.parse(f"{kind}:0.01"), vp.CentrifugalPruner, 576, MINI)
        asked = str(error.value).split("ask for ")[1].split()[0]
        assert solve(Budget.parse(asked), vp.CentrifugalPruner, 576, MINI).method.keep_tokens in (4, 5)
        early = partial(vp.CentrifugalPruner, layer=0)
        assert solve(Budget.parse("avg:64"), early, 576, MINI).method.keep_tokens == 64


def test_settings_that_a_method_refuses_are_passed_over():
    """SparseVLM's published lists exist for three numbers only."""
    released = partial(vp.methods.get("sparsevlm"), compat="released")
    setting = solve(Budget.parse("avg:260"), released, 576, LLAVA_7B)
    assert setting.method.keep_tokens in (128, 192) and setting.accounting.average_tokens <= 260
    with pytest.raises(PruningError, match="depends on the model's layers"):
        plain(Budget.parse("avg:260"), released)
