"""The lmms-eval plug-in. lmms-eval finds it by its entry point (`pyproject.toml`); nothing else imports it.

Only `model.py`, `llava.py` and `chat.py` need lmms-eval. The other files do not, so settings, scripts and checks can be
tested without it.
"""

from __future__ import annotations

from typing import Any

_PACKAGE = "vlm_pruner.lmms"

# lmms-eval's name of the model -> classes for plain prompts ("simple") and for messages ("chat", which it prefers).
MODELS = {
    "vlm_pruner_llava": (f"{_PACKAGE}.llava.Llava", None),
    "vlm_pruner_llava_vid": (f"{_PACKAGE}.llava.LlavaVideo", None),
    "vlm_pruner_llava_onevision": (f"{_PACKAGE}.llava.LlavaOnevision", None),
    "vlm_pruner_qwen2_vl": (f"{_PACKAGE}.chat.Qwen2VLSimple", f"{_PACKAGE}.chat.Qwen2VL"),
    "vlm_pruner_qwen2_5_vl": (f"{_PACKAGE}.chat.Qwen25VLSimple", f"{_PACKAGE}.chat.Qwen25VL"),
    "vlm_pruner_qwen3_vl": (f"{_PACKAGE}.chat.Qwen3VLSimple", f"{_PACKAGE}.chat.Qwen3VL"),
    "vlm_pruner_hf": (f"{_PACKAGE}.chat.ChatModelSimple", f"{_PACKAGE}.chat.ChatModel"),
}


def manifests() -> list[Any]:
    """The entry point of lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(model_id=name, simple_class_path=simple, chat_class_path=chat)
        for name, (simple, chat) in MODELS.items()
    ]
