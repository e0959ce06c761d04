"""The embedded model inside vLLM: answers as in transformers, KV blocks, prefix cache, preemption, positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import vlm_pruner as vp
from tests.vllm import mini
from tests.vllm.engine import BLOCK, engine, lengths, request, vllm
from vlm_pruner.methods import View, vispruner
from vlm_pruner.vllm.options import options

SIDE_BY_SIDE, SOME, FEW = 24, 12, 8  # questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mini")


@pytest.fixture(scope="module")
def reference(folder):
    return mini.references(folder, mini.WISHES, SIDE_BY_SIDE)


@pytest.fixture(scope="module")
def made(folder, reference):
    with engine(mini.checkpoint(folder)) as found:
        yield found


def requests(wishes: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Each question under each wish: budgets of one picture side by side."""
    some = mini.questions()[:count]
    return [request(one.prompt, [one.picture], wish) for one in some for wish in wishes.values()]


def wanted(reference: Any, names: Any, count: int) -> list[list[int]]:
    return [reference[name][number] for number in range(count) for name in names]


def ask(made: Any, asked: list[dict[str, Any]]) -> list[list[int]]:
    """Answers up to the end of the text."""
    greedy = vllm.SamplingParams(temperature=0, max_tokens=mini.NEW)
    return [list(out.outputs[0].token_ids) for out in made.generate(asked, greedy, use_tqdm=False)]


def counted(made: Any, name: str) -> float:
    return sum(metric.value for metric in made.get_metrics() if metric.name == f"vllm:{name}")


def test_answers_are_those_of_transformers(made, reference):
    asked, expected = requests(mini.WISHES, SIDE_BY_SIDE), wanted(reference, mini.WISHES, SIDE_BY_SIDE)
    assert ask(made, asked) == expected
    made.reset_prefix_cache()
    assert ask(made, asked) == expected  # pictures from the cache, nothing else


def test_methods_that_read_the_class_token(made, folder):
    reference = mini.references(folder, mini.BY_CLASS_TOKEN, FEW)
    assert ask(made, requests(mini.BY_CLASS_TOKEN, FEW)) == wanted(reference, mini.BY_CLASS_TOKEN, FEW)


@pytest.fixture
def vispruner_runs(monkeypatch):
    """(view, all orders that it sorted into, tokens by importance) of each choice that VisPruner makes."""
    runs: list[tuple[View, list[Tensor], Tensor]] = []
    orders: list[Tensor] = []
    choose, largest = vispruner.VisPruner.choose, vispruner.largest

    def noted(values: Tensor, count: int) -> Tensor:
        orders.append(largest(values, count))
        return orders[-1]

    def watched(method: Any, view: View) -> Any:
        orders.clear()
        made = choose(method, view)
        runs.append((view, list(orders), made.order))
        return made

    monkeypatch.setattr(vispruner, "largest", noted)
    monkeypatch.setattr(vispruner.VisPruner, "choose", watched)
    return runs


def replayed(features: Tensor, orders: list[Tensor], budget: int) -> tuple[Tensor, float]:
    """VisPruner's tokens by given orders, and by how much these orders are wrong for `features` [N, c], in cosines."""
    unit, (ranking, *rounds) = normalize(features.double(), dim=1), orders
    attended, tokens, worst = ranking[: budget // 2], ranking[budget // 2 :], 0.0
    for order in rounds:
        even, odd = (tokens[: len(tokens) // 2 * 2][start::2] for start in (0, 1))
        cosines = (unit[even] @ unit[odd].T).amax(dim=1)[order]
        worst = max(worst, float(cosines.diff().max()))
        gone = min(8, len(tokens) - (budget - len(attended)))
        tokens = torch.cat([even[order[gone:]], odd, tokens[2 * len(even) :]])
    return torch.cat([attended, tokens]), worst


def test_vispruner_keeps_other_tokens_only_where_rounding_decides(made, folder, vispruner_runs):
    """Its rounds sort cosines that lie closer than rounding, and each order decides which tokens meet next.

    So engines part, as float32 and float64 do in transformers. The engine's orders are right for transformers' features
    in float64 to 1e-5, and wrong by far for another picture's.
    """
    first = list({id(one.picture): one for one in reversed(mini.questions())}.values())[:FEW]
    for one in first:
        ask(made, [request(one.prompt, [one.picture], {"method": "vispruner", "keep_tokens": 64})])
    engines, other = list(vispruner_runs), list(vispruner_runs)[1:] + list(vispruner_runs)[:1]
    vispruner_runs.clear()
    model, processor = mini.load(mini.checkpoint(folder))
    for one in first:
        batch = processor(text=[one.prompt], images=[one.picture], return_tensors="pt")
        with torch.no_grad(), vp.prune(model, vispruner.VisPruner(keep_tokens=64)):
            model(**batch)
    assert len(engines) == len(vispruner_runs) == FEW
    parted = 0
    for (_, orders, kept), (view, own, _), (_, wrong, _) in zip(engines, vispruner_runs, other, strict=True):
        assert torch.equal(orders[0], own[0])  # by the class token's attention
        tokens, worst = replayed(view.patch_features, orders, 64)
        assert torch.equal(tokens, kept) and worst < 1e-5 < 1e-2 < replayed(view.patch_features, wrong, 64)[1]
        exact = vispruner.thin_out(view.patch_features.double(), own[0][32:], 32)
        parted += set(exact.tolist()) != set(replayed(view.patch_features, own, 64)[0][32:].tolist())
    assert parted > FEW // 4


@pytest.mark.parametrize(
    ("wish", "kept"), [(None, 576), ("off", 576), ({"reduction_ratio": 0.889}, 64), ({"keep_tokens": 16}, 16)]
)
def test_prompt_tokens_are_those_that_stay(made, wish, kept):
    one = mini.questions()[0]
    assert lengths(made, [request(one.prompt, [one.picture], wish)]) == [590 - 576 + kept]


def test_a_pruned_prompt_holds_as_few_blocks_as_its_tokens(made):
    """Counted in vLLM's own block manager, at the last step."""
    core = made.llm_engine.engine_core.engine_core
    schedule, held = core.scheduler.schedule, {}

    def watched(*args: Any, **more: Any) -> Any:
        out = schedule(*args, **more)
        for running in core.scheduler.running:
            blocks = core.scheduler.kv_cache_manager.get_block_ids(running.request_id)[0]
            held[running.num_prompt_tokens] = len(blocks)
        return out

    core.scheduler.schedule = watched
    try:
        one = mini.questions()[0]
        for wish in [None, *({"keep_tokens": keep} for keep in (192, 128, 64, 16))]:
            ask(made, [request(one.prompt, [one.picture], wish)])
    finally:
        core.scheduler.schedule = schedule
    assert held == {tokens: -(-(tokens + 1) // BLOCK) for tokens in (590, 206, 142, 78, 30)}


def test_an_identical_picture_at_an_identical_budget_hits_the_prefix_cache_and_at_another_never(made):
    one, made_hits = mini.questions()[1], []
    made.reset_prefix_cache()
    for wish in ({"keep_tokens": 64}, {"keep_tokens": "64"}, {"keep_tokens": 128}, {"keep_tokens": 64}, None, "off"):
        before = counted(made, "prefix_cache_hits")
        ask(made, [request(one.prompt, [one.picture], wish)])
        made_hits.append(counted(made, "prefix_cache_hits") - before)
    same = 78 // BLOCK * BLOCK
    assert made_hits == [0, same, 0, same, 0, 590 // BLOCK * BLOCK]


def test_two_pictures_have_a_budget_each(made):
    first, other = mini.questions()[0], mini.questions()[-1]
    prompt = first.prompt.replace("<image>\n", "<image>\n<image>\n")
    assert lengths(made, [request(prompt, [first.picture, other.picture], {"keep_tokens": 64})]) == [142]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"keep_tokens": 600}, "keep_tokens=600, but the image has only 576"),
        ({"keep_tokens": -1}, "keep_tokens=-1 must be"),
        ({"keep_tokens": 64, "channels": 9}, "channels cannot be set by a request"),
        ({"method": "fastv", "keep_tokens": 64}, "'fastv' needs attend"),
        (64, "64 is neither"),
    ],
)
def test_a_bad_wish_is_refused_before_the_engine(made, wish, message):
    one = mini.questions()[0]
    with pytest.raises(vllm.exceptions.VLLMValidationError, match=message) as caught:
        ask(made, [request(one.prompt, [one.picture], wish)])
    assert caught.value.parameter == "mm_processor_kwargs.pruning"


def test_other_processor_keys_are_refused_until_the_operator_allows_them(made, monkeypatch):
    one = mini.questions()[0]
    asked = {**request(one.prompt, [one.picture]), "mm_processor_kwargs": {"do_rescale": False}}
    with pytest.raises(vllm.exceptions.VLLMValidationError, match="do_rescale is not open to requests"):
        ask(made, [asked])
    monkeypatch.setenv("VLM_PRUNER_ALLOW", "do_rescale")
    options.cache_clear()
    ask(made, [asked])
    monkeypatch.undo()
    options.cache_clear()


TWO = {name: mini.WISHES[name] for name in ("64", "192")}


def test_chunks_of_a_prefill(folder, reference):
    with engine(mini.checkpoint(folder), max_num_batched_tokens=96, max_num_seqs=16) as chunked:
        assert ask(chunked, requests(TWO, SOME)) == wanted(reference, TWO, SOME)


def test_a_preempted_request_goes_on_as_before(folder, reference):
    """All prompts fit, their answers do not: requests are thrown out while they answer, and prefilled again."""
    names = ("64", "128")  # 3 and 5 blocks, and 2 more with their answers
    wishes = {name: mini.WISHES[name] for name in names}
    greedy = vllm.SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    asked = requests(wishes, 4)
    with engine(mini.checkpoint(folder), num_gpu_blocks_override=36, enable_prefix_caching=False) as small:
        crowded = [list(out.outputs[0].token_ids) for out in small.generate(asked, greedy, use_tqdm=False)]
        assert counted(small, "num_preemptions") > 0
        alone = [list(small.generate([one], greedy, use_tqdm=False)[0].outputs[0].token_ids) for one in asked]
    assert crowded == alone
    assert [mini.until_end(ids)[: mini.NEW] for ids in crowded] == wanted(reference, names, 4)


def test_the_server_may_have_a_default_and_renumber(folder, monkeypatch):
    """Renumbered: consecutive positions, as an engine that knows nothing of pruning would give."""
    anew = mini.references(folder, ("dense", "192", "64"), SOME, renumber=True)
    monkeypatch.setenv("VLM_PRUNER_POSITIONS", "renumbered")
    options.cache_clear()
    with engine(mini.checkpoint(folder), mm_processor_kwargs={"pruning": {"keep_tokens": 64}}) as found:
        some = mini.questions()[:SOME]
        assert ask(found, [request(one.prompt, [one.picture]) for one in some]) == anew["64"]
        off = ask(found, [request(one.prompt, [one.picture], "off") for one in some])
        assert off == anew["dense"]
        other = ask(found, [request(one.prompt, [one.picture], {"keep_tokens": 192}) for one in some])
        assert other == anew["192"]
    monkeypatch.undo()
    options.cache_clear()


def test_the_references_would_show_wrong_positions(folder, reference):
    anew = mini.references(folder, ("64",), SIDE_BY_SIDE, renumber=True)
    assert reference["64"] != anew["64"]


def test_what_would_be_wrong_is_refused_before_the_engine_serves(folder):
    with (
        pytest.raises(Exception, match="cudagraph_mm_encoder runs the vision tower without pruning"),
        engine(mini.checkpoint(folder), compilation_config={"cudagraph_mm_encoder": True}),
    ):
        pass
