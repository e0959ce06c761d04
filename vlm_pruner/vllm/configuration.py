"""Changes to vLLM's configuration of a model, before one is built. Imports no model code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlm_pruner.vllm.options import options

_AXES = 3  # time, height, width


def keep_positions_of(architectures: Iterable[str]) -> None:
    """Makes vLLM ask models with one axis for positions too.

    `mrope_section` at the top of a configuration switches vLLM's bookkeeping on. The decoder's own configuration stays,
    and with it its rotary embedding, which gets one row of positions.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class KeepPositions(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            if options().keep_positions and getattr(model_config.hf_config, "mrope_section", None) is None:
                model_config.hf_config.mrope_section = [0] * _AXES

    for architecture in architectures:
        MODELS_CONFIG_MAP.setdefault(architecture, KeepPositions)
