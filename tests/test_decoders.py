"""Every decoder that transformers offers for causal language models, in a LLaVA: pruned rightly, or refused by name.

`python -m tests.test_decoders` prints the table decoder x method.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

import vlm_pruner as vp
from vlm_pruner.errors import PruningError

IMAGE, N, START = 90, 25, 4
# Whole models, and decoders, that take minutes to build and cannot be a LLaVA's decoder.
COMPOSITE = {"blt", "emu3", "gemma3", "gemma4", "gemma4_text", "gemma4_unified", "got_ocr2", "llama4"}
COMPOSITE |= {"moss_transcribe_diarize", "qwen3_5", "qwen3_5_moe", "qwen4_exp"}
KINDS = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(MODEL_MAPPING_NAMES) - COMPOSITE)
SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.25,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4}
EXPERTS |= {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "shared_expert_intermediate_size": 32}
MUST_RUN = {"llama", "qwen2", "qwen3", "cohere", "ernie4_5", "glm", "glm4", "granite", "helium", "hunyuan_v1_dense"}
MUST_RUN |= {"nemotron", "olmo", "olmo2", "phi", "phi3", "stablelm", "starcoder2", "mixtral", "persimmon", "smollm3"}
ATTENTION = [vp.methods.get(name)(keep_tokens=6) for name in ("fastv", "pyramiddrop")]
OTHERS = [vp.CentrifugalPruner(keep_tokens=6), vp.methods.get("dart")(keep_tokens=9)]


def build(kind):
    """A LLaVA around a tiny decoder; skips where transformers itself cannot run one."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=70,
        patch_size=14,
    )
    reason = ""
    for sizes in ({**GROUPED, **EXPERTS}, GROUPED, {}):
        try:
            decoder = transformers.AutoConfig.for_model(kind, **SIZES, **sizes)
            torch.manual_seed(0)
            config = LlavaConfig(vision_config=vision, text_config=decoder, image_token_id=IMAGE)
            model = LlavaForConditionalGeneration(config).eval()
            with torch.no_grad():
                for weight in model.parameters():  # far from uniform attention
                    if weight.ndim == 2:
                        weight.mul_(1.5)
                model(**BATCH)
            return model
        except Exception as error:  # whatever transformers finds
            reason = f"{type(error).__name__}: {str(error)[:70]}"
    pytest.skip(f"no LLaVA with this decoder: {reason}")


def words(count, seed):
    return torch.randint(2, 80, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


IDS = torch.tensor([[*words(START, 0), *[IMAGE] * N, *words(5, 100)]])
PIXELS = torch.randn(1, 3, 70, 70, generator=torch.Generator().manual_seed(1))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "pixel_values": PIXELS}


def pruned(model, method):
    """The receipt's picture and the text's logits; None where the method is refused by name."""
    try:
        with torch.no_grad(), vp.prune(model, method) as pruning:
            found = model(**BATCH).logits[:, -5:]
    except PruningError as error:
        assert "Model" in str(error) or "Layer" in str(error) or "Block" in str(error), f"names nothing: {error}"
        return None
    return pruning.receipts[0].images[0], found


def hidden_from(model, kept, layer=2):
    """Logits of the dense model in which layers from `layer` on may not look at dropped tokens."""
    mask = torch.ones(IDS.shape[1], IDS.shape[1]).tril().bool()
    mask[:, [START + i for i in range(N) if i not in kept]] = False
    mask |= torch.eye(len(mask)).bool()

    def hide(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask[None, None]}

    layers = model.model.language_model.layers[layer:]
    hooks = [one.register_forward_pre_hook(hide, with_kwargs=True) for one in layers]
    with torch.no_grad():
        found = model(**BATCH).logits[:, -5:]
    for hook in hooks:
        hook.remove()
    return found


def results(kind):
    """Method -> "right", "refused" or "runs" (nothing to compare with). Fails where a result is wrong."""
    model, found = build(kind), {}
    answer = pruned(model, vp.RandomPruner(keep_tokens=6))
    found["random"] = "refused"
    if answer is not None:
        kept, logits = answer
        wanted = hidden_from(model, kept.indices)
        torch.testing.assert_close(logits, wanted, atol=2e-3 * float(wanted.abs().max()), rtol=1e-3)
        found["random"] = "right"
    kept_by = {method.name: pruned(model, method) for method in ATTENTION}
    attention = model.config.text_config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        with torch.no_grad():
            maps = model(**BATCH, output_attentions=True).attentions
    except Exception:  # not every decoder has eager attention
        maps = None
    model.set_attn_implementation({"text_config": attention})  # some decoders cannot run eagerly with so few heads
    for method in ATTENTION:
        answer = kept_by[method.name]
        found[method.name] = "refused" if answer is None else "runs"
        if answer is not None and maps is not None and maps[1] is not None:
            layer = 1 if method.name == "fastv" else 2
            first = answer[0].steps[0][1]
            wanted = maps[layer][0].mean(dim=0)[-1, START : START + N].topk(first).indices.tolist()
            assert set(answer[0].indices) <= set(wanted) and (layer == 2 or len(wanted) == len(answer[0].indices))
            found[method.name] = "right"
    for method in OTHERS:
        found[method.name] = "refused" if pruned(model, method) is None else "runs"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_is_pruned_rightly_or_refused_by_name(kind):
    found = results(kind)
    if kind in MUST_RUN:
        assert found["random"] == found["fastv"] == found["pyramiddrop"] == "right" and "refused" not in found.values()


@pytest.mark.parametrize("kind", ["laguna", "mellum"])
def test_renumbering_is_refused_where_the_rotary_embedding_asks_for_more_than_positions(kind):
    with pytest.raises(PruningError, match=r"renumber=True: .* has no `rotary_emb` that gives the phases"):
        vp.prune(build(kind), vp.RandomPruner(keep_tokens=6, renumber=True))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    for one in KINDS:
        try:
            print(f"| `{one}` | {' | '.join(results(one).values())} |", flush=True)
        except pytest.skip.Exception:
            continue
