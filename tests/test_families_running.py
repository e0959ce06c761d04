"""The ways people run models: FlashAttention, torch.compile, accelerate, training, wrappers, other doors."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import CompileConfig, GenerationConfig, Qwen2VLModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vlm_pruner as vp
from Qwen2VL_VLMPruner.modeling_qwen2_vl_self import VLMPruner, VLMPrunerForConditionalGeneration
from tests import flash, llava_tiny, tiny_qwen
from tests.families import FAMILIES, ONE, TWO, WORDS, Family, llava, llava_original, qwen2_5_vl, qwen3_vl
from tests.running import assert_close
from vlm_pruner.errors import PruningError, UnsupportedModelError

METHOD = vp.CentrifugalPruner(keep_tokens=6)
SOME = [family for family in FAMILIES if family.name in ("llava_original", "llava_onevision", "qwen2_5_vl", "qwen3_vl")]
pytestmark = pytest.mark.filterwarnings("ignore::vlm_pruner.decoder.pruning.PruningWarning")


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture(params=SOME, ids=lambda family: family.name)
def some(request) -> Family:
    return request.param


def logits(model, batch, method=METHOD):
    """Of the last position, [B, vocabulary]."""
    with torch.no_grad():
        if method is None:
            return model(**batch).logits[:, -1]
        with vp.prune(model, method):
            return model(**batch).logits[:, -1]


# FlashAttention-2: transformers' own path, with slow functions where the fast ones would be


@pytest.fixture
def seen(monkeypatch) -> list[tuple]:
    """What every layer's attention is given: (position ids, mask)."""
    flash.install(monkeypatch)
    calls = []

    def record(*args, **kwargs):
        calls.append((kwargs.get("position_ids"), args[4] if len(args) > 4 else kwargs["attention_mask"]))
        return flash_attention_forward(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", record)
    return calls


def with_flash(family):
    model = family.build()
    family.decoder(model).config._attn_implementation = "flash_attention_2"
    return model


@pytest.mark.column("eager/SDPA")
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_flash_attention_gives_what_sdpa_does(family, seen, cache):
    model = with_flash(family)
    options = {"do_sample": False, "max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    for prompts in ([TWO], [ONE, TWO, WORDS])[cache == "static" :]:
        batch, found = family.inputs(*prompts), []
        for one in (family.model, model):
            with vp.prune(one, METHOD):
                out = one.generate(**batch, cache_implementation=cache, **options)
            found.append(torch.stack(out.logits, 1))
        assert_close(*found)
        by_layer = [seen[layer::4] for layer in range(4)]
        assert all(places is None for layer in by_layer[METHOD.layer :] for places, _ in layer)
        assert all(mask is None or mask.ndim == 2 for layer in by_layer for _, mask in layer)
        assert len(prompts) == 1 or all(mask is not None for _, mask in by_layer[-1]), "rows are padded"
        seen.clear()


def test_flash_attention_without_padding_refuses_a_static_cache(family, seen):
    """transformers gives it no mask then, and unused room would be seen. LLaVA's own class always gives one."""
    if family.name == "llava_original":
        pytest.skip("gives a mask")
    with pytest.raises(PruningError, match="unused room in the cache"), vp.prune(with_flash(family), METHOD) as pruning:
        pruning.model.generate(**family.inputs(TWO), cache_implementation="static", max_new_tokens=2)


def test_position_ids_with_gaps_are_taken_for_packed_sequences():
    """Why pruned layers get none."""
    places = torch.arange(12)[None]
    assert not _is_packed_sequence(places, 1)
    assert _is_packed_sequence(places[:, [0, 1, 2, 5, 6, 9]], 1)


# torch.compile


def compiled_whole(model, decoder):
    model.forward = torch.compile(model.forward, backend="eager")


def compiled_decoder(model, decoder):
    decoder.compile(backend="eager")


def compiled_layers(model, decoder):
    for layer in decoder.layers:
        layer.compile(backend="eager")


@pytest.mark.parametrize("compiling", [compiled_whole, compiled_decoder, compiled_layers])
def test_a_compiled_model_is_refused_before_anything_changes(some, compiling):
    """Run dense first, it would stay dense: torch.compile does not look whether hooks have come."""
    model = some.build()
    compiling(model, some.decoder(model))
    with pytest.raises(PruningError, match="is compiled by torch"), vp.prune(model, METHOD):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_with_divided_heads_is_refused(some):
    """scripts/test_zero3.sh shows with two processes that transformers sets this, and what would go wrong."""
    model = some.build()
    model._tp_size = 2
    with pytest.raises(PruningError, match="among 2 processes by tensor parallelism"), vp.prune(model, METHOD):
        pass
    model._tp_size = 1
    with vp.prune(model, METHOD):
        pass


def test_a_compiled_decoder_inside_is_refused():
    model = qwen2_5_vl().build()
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    with pytest.raises(PruningError, match=r"Qwen2_5_VLTextModel is compiled .* _orig_mod"), vp.prune(model, METHOD):
        pass


def test_layers_whose_forward_is_compiled_are_pruned():
    family = llava()
    model, batch = family.build(), family.inputs(ONE)
    wanted = [logits(model, batch, method) for method in (None, METHOD)]
    torch._dynamo.reset()
    for layer in family.decoder(model).layers:
        layer.forward = torch.compile(layer.forward, backend="eager")
    assert_close(logits(model, batch, None), wanted[0])
    assert_close(logits(model, batch), wanted[1])
    assert_close(logits(model, batch, None), wanted[0])


def compiling_generate(model, batch):
    """As `generate` does by itself on a GPU, where decoding with a static cache is compiled."""
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    options = {"do_sample": False, "max_new_tokens": 5, "cache_implementation": "static", "compile_config": config}
    return model.generate(**batch, generation_config=GenerationConfig(**options))[:, -5:]


def test_generate_does_not_compile_pruned_decoding():
    family = llava_original()
    model, batch = family.build(), family.inputs(TWO)
    torch._dynamo.reset()
    options = {"do_sample": False, "max_new_tokens": 5}
    dense = model.generate(**batch, **options)[:, -5:]
    with vp.prune(model, METHOD):
        wanted = model.generate(**batch, **options)[:, -5:]
    assert not torch.equal(dense, wanted)
    for _ in range(2):
        assert torch.equal(compiling_generate(model, batch), dense)
        assert model.generation_config.disable_compile is None
        with vp.prune(model, METHOD):
            assert torch.equal(compiling_generate(model, batch), wanted)
        model.model.method = METHOD
        assert torch.equal(compiling_generate(model, batch), wanted)
        model.model.method = None


# Other ways


@pytest.mark.parametrize("target", ["cpu", "disk"])
def test_a_model_that_accelerate_has_spread_is_pruned(some, target, tmp_path):
    """Weights of three decoder layers, of norms and of the head are elsewhere until a layer runs."""
    accelerate = pytest.importorskip("accelerate")
    model, batch = some.build(), some.inputs(TWO)
    wanted = [logits(model, batch, method) for method in (None, METHOD, vp.methods.get("fastv")(keep_tokens=6))]
    decoder = next(name for name, module in model.named_modules() if module is some.decoder(model))
    places = {}
    for name, module in model.named_modules():
        if not list(module.children()) and not name.startswith(f"{decoder}.layers"):
            places[name] = "cpu"
    places |= {name: "cpu" for name, _ in model.named_parameters() if not name.startswith(f"{decoder}.layers")}
    places |= {f"{decoder}.layers.{i}": target if i else "cpu" for i in range(4)}
    spread = accelerate.dispatch_model(
        model, places, main_device="cpu", offload_dir=tmp_path, offload_buffers=False, force_hooks=True
    )
    if target == "disk":
        assert all(weight.is_meta for weight in some.decoder(spread).layers[METHOD.layer].parameters())
    assert_close(logits(spread, batch, None), wanted[0])
    assert_close(logits(spread, batch), wanted[1])
    assert_close(logits(spread, batch, vp.methods.get("fastv")(keep_tokens=6)), wanted[2])
    assert_close(logits(spread, batch, None), wanted[0])


def test_training_with_checkpoints_is_refused_and_a_backward_pass_works(some):
    model, batch = some.build(), some.inputs(TWO)
    model.gradient_checkpointing_enable()
    logits(model, batch)  # not in training
    model.train()
    with pytest.raises(PruningError, match="gradient_checkpointing_disable"), vp.prune(model, METHOD):
        model(**batch)
    with vp.prune(model, vp.CentrifugalPruner(reduction_ratio=0.0)):
        model(**batch)  # drops nothing
    model.gradient_checkpointing_disable()
    with vp.prune(model, METHOD):
        model(**batch).logits[:, -1].logsumexp(-1).sum().backward()
    layers = some.decoder(model).layers
    assert all(layer.self_attn.q_proj.weight.grad.abs().sum() > 0 for layer in layers)


def test_wrappers_are_named_with_what_is_inside():
    model = llava().build()

    class PeftModel(torch.nn.Module):
        """peft's class has this name."""

    wrapped = [(torch.compile(model), "_orig_mod"), (PeftModel(), "get_base_model")]
    for wrapper, remedy in wrapped:
        with pytest.raises(UnsupportedModelError, match=f"wraps a model; prune the one inside, .*{remedy}"):
            vp.prune(wrapper, METHOD)
    with vp.prune(torch.compile(model)._orig_mod, METHOD):
        pass


# The doors of models that own a method: the same errors as prune()'s


def door(name: str):
    """A model with a method inside, and a batch for it."""
    if name == "llava":
        return llava_original().build(), llava_original().inputs(TWO)
    model = tiny_qwen.prepare(VLMPrunerForConditionalGeneration(tiny_qwen.config("qwen2_vl")))
    return model, next(family for family in FAMILIES if family.name == "qwen2_vl").inputs(TWO)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_what_counts_positions_is_refused_at_every_door(name):
    model, batch = door(name)
    labels = batch["input_ids"]
    dense = model(**batch, labels=labels).loss
    model.model.method = METHOD
    for named in ({"labels": labels}, {"logits_to_keep": torch.tensor([1, 3])}):
        with pytest.raises(PruningError, match=f"{next(iter(named))} counts positions in the un-pruned sequence"):
            model(**batch, **named)
    pruned = model(**batch, logits_to_keep=1).logits[:, -1]
    model.model.method = vp.CentrifugalPruner(reduction_ratio=0.0)
    assert torch.equal(model(**batch, labels=labels).loss, dense)
    model.model.method = None
    assert torch.equal(model(**batch, labels=labels).loss, dense)
    assert_close(logits(model, batch), pruned)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_checkpoints_and_embeddings_are_refused_at_every_door(name):
    model, batch = door(name)
    model.model.method = METHOD
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="pass input_ids"):
        model(**{**batch, "input_ids": None, "inputs_embeds": embeds})
    model.train()
    model.gradient_checkpointing_enable()
    with pytest.raises(PruningError, match="gradient checkpointing"):
        model(**batch)


def test_pictures_in_llavas_own_convention_need_the_cache():
    model = llava_tiny.model()
    with pytest.raises(ValueError, match="use_cache=False: without a cache every step needs the pictures again"):
        model.generate(llava_tiny.prompt_ids(), images=llava_tiny.pixels(0), use_cache=False, max_new_tokens=2)


def test_qwen_with_a_method_has_the_signature_of_transformers():
    assert VLMPruner.__mro__[1] is Qwen2VLModel
    assert inspect.signature(VLMPruner.forward) == inspect.signature(Qwen2VLModel.forward)
    assert list(inspect.signature(VLMPruner).parameters) == list(inspect.signature(Qwen2VLModel).parameters)
    theirs = inspect.signature(VLMPrunerForConditionalGeneration.__mro__[1].forward)
    assert inspect.signature(VLMPrunerForConditionalGeneration.forward) == theirs


def test_deepstack_is_found_behind_accelerates_wrapper():
    accelerate = pytest.importorskip("accelerate")
    family = qwen3_vl()
    model, batch = family.build(), family.inputs(TWO)
    wanted = logits(model, batch)
    accelerate.hooks.add_hook_to_module(family.decoder(model), accelerate.hooks.ModelHook())
    assert_close(logits(model, batch), wanted)
