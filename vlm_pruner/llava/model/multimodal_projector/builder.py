"""Builds the projector that a configuration describes: linear, mlpNx_gelu or identity."""

from __future__ import annotations

import re
from typing import Any

from torch import nn


def build_vision_projector(config: Any) -> nn.Module:
    """Maps features [.., mm_hidden_size] to embeddings [.., hidden_size].

    Module names follow the original checkpoints: a linear projector holds `weight` and `bias`, an MLP of depth N
    holds its linear layers at 0, 2, .., 2 (N - 1).
    """
    kind, bias = config.mm_projector_type, config.mm_projector_bias
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size, bias=bias)
    match = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if not match or int(match.group(1)) < 1:
        raise ValueError(f"mm_projector_type is {kind!r}; supported: 'linear', 'mlpNx_gelu' (N >= 1), 'identity'")
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size, bias=bias)]
    for _ in range(1, int(match.group(1))):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size, bias=bias)]
    return nn.Sequential(*layers)
