"""Prefills replayed as CUDA graphs, with a stand-in for CUDA: a replay runs the layers again on the copied inputs.

What a real graph does is checked by benchmarks/gpu_check.py. Here: what is copied in and out, when a graph is used, and
what is refused.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from transformers.cache_utils import DynamicLayer

import vlm_pruner as vp
from tests.families import FAMILIES, ONE, TWO
from vlm_pruner import kernels
from vlm_pruner.decoder import graphs
from vlm_pruner.decoder.pruning import PruningWarning
from vlm_pruner.errors import PruningError

METHOD = vp.CentrifugalPruner(keep_tokens=6, layer=2)
DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe")


def rerun(run, pool):
    made = run()

    def replay():
        for old, new in zip(leaves(made), leaves(run()), strict=True):
            old.copy_(new)

    return made, replay


def leaves(made: graphs.Captured) -> list[torch.Tensor]:
    parts = [made.hidden]
    for layer in made.cache.layers:
        parts += [layer.keys, layer.values]
    for holder in (*(image.kept for image in made.run.images), *made.states.values()):
        if holder is not None:
            values = [getattr(holder, entry.name) for entry in dataclasses.fields(holder)]
            parts += [value for value in values if isinstance(value, torch.Tensor)]
    return parts


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphs, "record", rerun)
    monkeypatch.setattr(kernels, "loaded", lambda backend: True)


def fresh(family):
    """The family with a model of its own: hooks that other tests leave on a shared one prevent graphs."""
    own = copy.copy(family)
    vars(own).pop("model", None)
    return own


def answer(model, batch):
    options = {"do_sample": False, "max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**batch, **options)
    return torch.stack(out.logits), out.past_key_values


def other_pictures(batch, seed):
    noise = torch.Generator().manual_seed(seed)
    changed = {}
    for name, value in batch.items():
        changed[name] = value
        if "pixel" in name or name == "images":
            changed[name] = torch.randn(value.shape, generator=noise).to(value)
    return changed


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name not in DEEPSTACK], ids=lambda family: family.name)
def test_replays_give_what_plain_runs_do(family, layer):
    method, family = dataclasses.replace(METHOD, layer=layer), fresh(family)
    try:
        vp.prune(family.model, method)
    except PruningError as error:
        pytest.skip(str(error))
    batches = [other_pictures(family.inputs(ONE), seed) for seed in range(5)]
    with vp.prune(family.model, method) as plain:
        wanted = [answer(family.model, batch) for batch in batches]
    with vp.prune(family.model, method, cuda_graphs=True) as pruning:
        found = [answer(family.model, batch) for batch in batches]
    assert pruning.replays == 3
    for (logits, cache), (other, other_cache) in zip(found, wanted, strict=True):
        assert torch.equal(logits, other)
        for mine, theirs in zip(cache.layers, other_cache.layers, strict=True):
            assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)
    assert [dataclasses.asdict(r.images[0]) for r in pruning.receipts] == [
        dataclasses.asdict(r.images[0]) for r in plain.receipts
    ]
    assert len({tuple(r.images[0].indices) for r in pruning.receipts}) > 1


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_later_calls_find_what_each_prefill_left(name):
    """The state of every cache, after all prefills: rows of equal length, positions that the caller gives."""
    family = fresh(next(family for family in FAMILIES if family.name == name))
    batches = [other_pictures(family.inputs(ONE, ONE), seed) for seed in range(5)]
    positions = torch.arange(batches[0]["input_ids"].shape[1]).expand(3 if name == "qwen2_vl" else 1, 2, -1)
    for number, batch in enumerate(batches):
        batch["position_ids"] = (positions if name == "qwen2_vl" else positions[0]) + 7 * number
    found = []
    for cuda_graphs in (False, True):
        with torch.no_grad(), vp.prune(family.model, METHOD, cuda_graphs=cuda_graphs) as pruning:
            caches = [family.model(**batch).past_key_values for batch in batches]
        states = [pruning._stages[2].caches.get(cache) for cache in caches]
        found.append([[getattr(state, entry.name) for entry in dataclasses.fields(state)] for state in states])
    assert pruning.replays == 3
    for mine, theirs in zip(*found, strict=True):
        for part, other in zip(mine, theirs, strict=True):
            assert part is other or torch.equal(torch.as_tensor(part), torch.as_tensor(other))


def test_caches_that_keep_what_they_are_given_get_copies(family, monkeypatch):
    def keep(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
            return keys, values
        return update(self, keys, values, *args, **kwargs)

    update = DynamicLayer.update
    monkeypatch.setattr(DynamicLayer, "update", keep)
    batches = [other_pictures(family.inputs(ONE), seed) for seed in range(4)]
    with torch.no_grad(), vp.prune(family.model, METHOD, cuda_graphs=True):
        caches = [family.model(**batch).past_key_values for batch in batches]
    assert not torch.equal(caches[2].layers[3].keys, caches[3].layers[3].keys)


def test_hidden_states_of_all_layers_are_the_layers_own(family):
    """transformers collects them with hooks, which stay."""
    batch, found = family.inputs(ONE), []
    for cuda_graphs in (False, True):
        with torch.no_grad(), vp.prune(family.model, METHOD, cuda_graphs=cuda_graphs):
            for _ in range(4):
                family.model(**batch)
            found.append([family.model(**batch, output_hidden_states=True).hidden_states for _ in range(3)][-1])
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


def test_autocast_runs_as_usual(family):
    batch = family.inputs(ONE)
    with torch.no_grad(), torch.autocast("cpu"), vp.prune(family.model, METHOD, cuda_graphs=True) as pruning:
        for _ in range(4):
            family.model(**batch)
    assert pruning.replays == 0


def test_places_of_the_picture_are_part_of_the_size(family):
    """The same length, with a word moved from before the picture to behind it."""
    one = family.inputs(ONE)
    moved = {**one, "input_ids": one["input_ids"].roll(-1, dims=1)}
    counts = replays_of(family, [one, one, one, moved, moved, moved])
    assert counts == [0, 0, 1, 1, 1, 2]


@pytest.fixture
def family():
    return fresh(next(family for family in FAMILIES if family.name == "llava"))


def replays_of(family, calls, between=lambda number: None):
    """Replays after each call."""
    counts = []
    with torch.no_grad(), vp.prune(family.model, METHOD, cuda_graphs=True) as pruning:
        for number, batch in enumerate(calls):
            between(number)
            family.model(**batch)
            counts.append(pruning.replays)
    return counts


def test_each_size_has_a_graph_of_its_own(family):
    one, two = family.inputs(ONE), family.inputs(TWO)
    assert replays_of(family, [one, two, one, two, one, two]) == [0, 0, 0, 0, 1, 2]


def test_padded_batches_run_as_usual(family):
    assert replays_of(family, [family.inputs(ONE, TWO)] * 4) == [0] * 4


def test_a_context_that_is_opened_again_has_its_graphs_still(family):
    pruning, batch = vp.prune(family.model, METHOD, cuda_graphs=True), family.inputs(ONE)
    for _ in range(4):
        with torch.no_grad(), pruning:
            family.model(**batch)
    assert pruning.replays == 2


def test_gradients_run_as_usual(family):
    with vp.prune(family.model, METHOD, cuda_graphs=True) as pruning:
        for _ in range(4):
            family.model(**family.inputs(ONE))
    assert pruning.replays == 0


def test_a_hook_of_the_users_is_not_left_out(family):
    seen, handles = [], []
    layer = family.decoder(family.model).layers[3].mlp

    def add(number):
        if number == 3:
            handles.append(layer.register_forward_hook(lambda *_: seen.append(number)))

    with pytest.warns(PruningWarning, match="hooks that a graph would leave out"):
        assert replays_of(family, [family.inputs(ONE)] * 6, add) == [0, 0, 1, 1, 1, 1]
    handles[0].remove()
    assert seen


def test_modules_that_were_replaced_are_captured_anew(family):
    model, batch = family.build(), family.inputs(ONE)
    layer = family.decoder(model).layers[3]
    with torch.no_grad(), vp.prune(model, METHOD, cuda_graphs=True) as pruning:
        for _ in range(3):
            before = model(**batch).logits
        layer.mlp.act_fn = torch.nn.ReLU()
        replaced = model(**batch).logits
        layer.mlp.forward = lambda hidden: 0 * hidden
        silenced = model(**batch).logits
        model.train()
        model(**batch)
    assert pruning.replays == 1
    assert not torch.equal(before, replaced) and not torch.equal(replaced, silenced)


def test_a_forward_that_was_replaced_is_not_left_out(family):
    mlp = family.decoder(family.model).layers[3].mlp

    def silence(number):
        if number == 3:
            mlp.forward = lambda hidden: 0 * hidden

    assert replays_of(family, [family.inputs(ONE)] * 5, silence) == [0, 0, 1, 1, 1]


def test_inference_mode_and_no_grad_have_graphs_of_their_own(family):
    """Tensors made in inference mode cannot be written outside of it."""
    batch = family.inputs(ONE)
    with vp.prune(family.model, METHOD, cuda_graphs=True) as pruning:
        for mode in (torch.inference_mode, torch.no_grad):
            for _ in range(3):
                with mode():
                    family.model(**batch)
    assert pruning.replays == 2


def test_weights_that_moved_are_captured_anew(family):
    model = family.build()
    weight = family.decoder(model).layers[3].mlp.down_proj
    batch = family.inputs(ONE)
    with torch.no_grad(), vp.prune(model, METHOD, cuda_graphs=True) as pruning:
        for _ in range(3):
            before = model(**batch).logits
        weight.weight = torch.nn.Parameter(weight.weight * 2)
        after = model(**batch).logits
    with torch.no_grad(), vp.prune(model, METHOD):
        assert torch.equal(model(**batch).logits, after)
    assert pruning.replays == 1 and not torch.equal(before, after)


def test_a_graph_that_gives_something_else_is_never_used(family, monkeypatch):
    def wrong(run, pool):
        made, replay = rerun(run, pool)
        return made, lambda: (replay(), made.hidden.add_(1e-3))

    monkeypatch.setattr(graphs, "record", wrong)
    with pytest.warns(PruningWarning, match="gives another result"):
        assert replays_of(family, [family.inputs(ONE)] * 4) == [0] * 4


def test_a_prefill_that_cannot_be_captured_says_so(family, monkeypatch):
    def fails(run, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "record", fails)
    with pytest.raises(PruningError, match=r"cannot be captured .*not permitted.*leave cuda_graphs out"):
        replays_of(family, [family.inputs(ONE)] * 2)
    assert replays_of(family, [family.inputs(ONE)]) == [0]


def test_the_number_of_graphs_is_limited(family, monkeypatch):
    monkeypatch.setattr(graphs, "KEPT", 1)
    one, two = family.inputs(ONE), family.inputs(TWO)
    assert replays_of(family, [one, one, one, two, one, one, one]) == [0, 0, 1, 1, 1, 1, 2]


def test_what_cannot_be_captured_is_refused(family, monkeypatch):
    for method, reason in (
        (vp.RandomPruner(keep_tokens=6), "RandomPruner may wait for the GPU"),
        (vp.CentrifugalPruner(keep_tokens=6, renumber=True), "renumber"),
        (vp.CentrifugalPruner(keep_tokens=6, compat="released"), "compat"),
        (vp.CentrifugalPruner(keep_tokens=6, calibrate="size"), "calibrate"),
    ):
        with pytest.raises(PruningError, match=f"cuda_graphs=True: .*{reason}"):
            vp.prune(family.model, method, cuda_graphs=True)
    monkeypatch.setattr(kernels, "loaded", lambda backend: False)
    with pytest.raises(PruningError, match="needs the GPU kernels"):
        vp.prune(family.model, METHOD, cuda_graphs=True)
    monkeypatch.setattr(graphs, "DEVICES", ("cuda",))
    with pytest.raises(PruningError, match="the model is on cpu"):
        vp.prune(family.model, METHOD, cuda_graphs=True)


@pytest.mark.parametrize("name", DEEPSTACK)
def test_decoders_that_add_features_between_layers_are_refused(name):
    family = next((family for family in FAMILIES if family.name == name), None)
    if family is None:
        pytest.skip(f"no family {name}")
    with pytest.raises(PruningError, match="between its layers"):
        vp.prune(family.model, METHOD, cuda_graphs=True)
