"""Settings of vLLM under which pruned answers would be wrong. Each is refused by name before the engine serves."""

from __future__ import annotations

from typing import Any

from vlm_pruner.vllm.options import POSITIONS

_WITHOUT = "or start vLLM without this plug-in (VLLM_PLUGINS='')"


def check_engine(config: Any, keeps_positions: bool) -> None:
    """Raises ValueError for a VllmConfig that the plug-in does not work with."""
    found = _conflict(config, keeps_positions)
    if found:
        raise ValueError(f"VLM-Pruner: {found}, {_WITHOUT}")


def _conflict(config: Any, keeps_positions: bool) -> str:
    if config.compilation_config.cudagraph_mm_encoder:
        return "cudagraph_mm_encoder runs the vision tower without pruning; leave it off"
    multimodal = config.model_config.multimodal_config
    if multimodal is not None and multimodal.is_multimodal_pruning_enabled():
        return "--video-pruning-rate adds channels of its own to embeddings; leave it out"
    if config.parallel_config.use_ubatching:
        return "ubatching (--enable-dbo) splits a step, and with it the offsets of kept tokens; leave it off"
    if config.speculative_config is not None and config.speculative_config.use_eagle():
        method = config.speculative_config.method
        return f"speculative decoding by {method!r} reads pictures' embeddings past the plug-in; use ngram or none"
    if config.lora_config is not None and getattr(config.lora_config, "enable_tower_connector_lora", False):
        return "--enable-tower-connector-lora counts a picture's kept tokens for its tower's; leave it out"
    if keeps_positions and config.parallel_config.pipeline_parallel_size > 1:
        return (
            "pipeline parallelism: later ranks do not see the positions of kept tokens; use tensor parallelism, or for "
            f"LLaVA {POSITIONS}=renumbered"
        )
    return ""
