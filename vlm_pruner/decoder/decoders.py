"""What a decoder must be like to be pruned, and what is refused by name before anything runs."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from vlm_pruner.decoder.calibration import check_additive
from vlm_pruner.errors import PruningError, UnsupportedModelError
from vlm_pruner.methods.base import Pruner

_NORMS = ("norm", "final_layernorm", "final_layer_norm")


def final_norm(decoder: nn.Module) -> nn.Module | None:
    """The normalisation after the last layer."""
    found = (getattr(decoder, name, None) for name in _NORMS)
    return next((norm for norm in found if isinstance(norm, nn.Module)), None)


def check_decoder(decoder: nn.Module, method: Pruner, supplied: frozenset[str]) -> None:
    """Raises PruningError if `method` does not fit `decoder`. supplied: the needs that can be met."""
    if not isinstance(method, Pruner):
        raise PruningError(
            f"method={method!r} is not a pruning method; use for example CentrifugalPruner(keep_tokens=64)"
        )
    _check_layers(decoder)
    layers = method.layers(len(decoder.layers))
    _check_depth(decoder, layers)
    _check_positions(decoder, method)
    _check_window(decoder, layers[0])
    _check_needs(decoder, method, supplied)
    if method.calibrate:
        check_additive(decoder.config._attn_implementation, method)


def _check_layers(decoder: nn.Module) -> None:
    """Whether layers take the arguments that pruning replaces."""
    name = type(decoder).__name__
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList) or not len(decoder.layers):
        raise UnsupportedModelError(f"{name} has no list of `layers`; models with this decoder are not supported")
    layer = decoder.layers[0]
    takes = inspect.signature(layer.forward).parameters
    wanted = [("attention_mask",), ("position_embeddings",), ("cache", "past_key_values")]
    missing = [names[0] for names in wanted if not any(one in takes for one in names)]
    if missing:
        raise UnsupportedModelError(
            f"{type(layer).__name__} takes no {', '.join(missing)}, which pruned layers need in place of the "
            f"decoder's; models with {name} are not supported"
        )


def _check_depth(decoder: nn.Module, layers: tuple[int, ...]) -> None:
    depth = len(decoder.layers)
    if layers[-1] >= depth:
        raise PruningError(
            f"layer={layers[-1]}, but the decoder's last layer is {depth - 1}; use layer=1 to layer={depth - 1} "
            f"with {type(decoder).__name__}"
        )


def _check_positions(decoder: nn.Module, method: Pruner) -> None:
    name = type(decoder).__name__
    if "llama_4_scaling_beta" in _rotary(decoder):
        raise PruningError(
            f"{name} scales queries by position ids, which pruned layers are not given; "
            "models with this decoder are not supported"
        )
    if method.renumber and not _turns_by_positions(getattr(decoder, "rotary_emb", None)):
        raise PruningError(
            f"renumber=True: {name} has no `rotary_emb` that gives the phases of position ids alone; use renumber=False"
        )


def _turns_by_positions(rotary: Any) -> bool:
    """Whether it is a rotary embedding called with hidden states and position ids, and nothing else."""
    if not isinstance(rotary, nn.Module):
        return False
    wanted = [one for one in inspect.signature(rotary.forward).parameters.values() if one.default is one.empty]
    return "position_ids" in inspect.signature(rotary.forward).parameters and len(wanted) <= 2


def several_axes(decoder: nn.Module) -> bool:
    """Whether rotary phases count positions in time, height and width (M-RoPE), as in Qwen's models."""
    return "mrope_section" in _rotary(decoder)


def _rotary(decoder: nn.Module) -> dict[str, Any]:
    return getattr(decoder.config, "rope_parameters", None) or {}


def _check_window(decoder: nn.Module, first: int) -> None:
    config = decoder.config
    kinds = getattr(config, "layer_types", None)
    windowed = kinds[first:] if kinds else ["sliding_attention"] * bool(getattr(config, "sliding_window", None))
    if any(kind != "full_attention" for kind in windowed):
        raise PruningError(
            f"{type(decoder).__name__} uses attention other than full attention from layer {first} on; "
            "a window over a pruned sequence is not supported"
        )


def _check_needs(decoder: nn.Module, method: Pruner, supplied: frozenset[str]) -> None:
    if method.needs - supplied:
        raise PruningError(
            f"{type(method).__name__} needs {', '.join(sorted(method.needs - supplied))}, which "
            f"{type(decoder).__name__} alone does not provide; use vlm_pruner.prune(model, method) on a model with "
            "such a vision tower"
        )
    if "final_norm" in method.needs and final_norm(decoder) is None:
        raise PruningError(
            f"{type(method).__name__} needs the normalisation after the last layer, and {type(decoder).__name__} has "
            f"none called {' or '.join(_NORMS)}"
        )
    if method.needs & {"attend", "attend_next"}:
        from vlm_pruner.decoder.attention_rows import check_attention

        for index in method.layers(len(decoder.layers)):
            check_attention(decoder.layers[index])
