"""Ways of running a model in which pruning would be passed over or go wrong without a word. Refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vlm_pruner.errors import PruningError


def check_not_compiled(outer: Iterable[nn.Module], layers: Iterable[nn.Module]) -> None:
    """Raises PruningError if torch.compile has taken over one of the modules, and with it whether hooks are called.

    outer: modules with decoder layers inside. A single layer's compiled `forward` does no harm: hooks run around it.
    """
    for module in {*outer, *layers}:
        if module._compiled_call_impl is not None:
            raise _compiled(module, "leave .compile() out")
    for module in outer:
        if hasattr(module, "_orig_mod"):
            raise _compiled(module, "put its _orig_mod in its place")
        if hasattr(module.forward, "_torchdynamo_orig_callable"):
            raise _compiled(module, "delete its compiled `forward`")


def _compiled(module: nn.Module, remedy: str) -> PruningError:
    inner = getattr(module, "_orig_mod", module)
    return PruningError(
        f"{type(inner).__name__} is compiled by torch.compile, which does not look at hooks that come later, and "
        f"pruning is made of them; {remedy}, or compile the `forward` of single decoder layers"
    )


def check_not_checkpointed(layers: Iterable[nn.Module]) -> None:
    """Raises PruningError if a backward pass would run the layers a second time."""
    if any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in layers):
        raise PruningError(
            "gradient checkpointing runs every layer again in the backward pass, without its cache, and pruning cannot "
            "follow; call model.gradient_checkpointing_disable() or model.eval()"
        )


def counting_positions(call: dict[str, Any]) -> str | None:
    """The name of an argument of a call of the whole model that counts positions of the un-pruned sequence, if any.

    Labels are for every position, and a tensor of logits to keep is of positions.
    """
    named = [name for name in ("labels", "logits_to_keep") if isinstance(call.get(name), Tensor)]
    return named[0] if named else None


def check_not_counted(by_position: str | None) -> None:
    """Raises PruningError if there is such an argument."""
    if by_position is not None:
        raise PruningError(
            f"{by_position} counts positions in the un-pruned sequence, and a pruned prefill's logits have others; "
            f"leave {by_position} out, or call the model outside the pruning context"
        )
