"""The model families, and what decides which methods fit each. Tables and the `methods` command read this list."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner
from vlm_pruner.methods.view import FROM_TOWER


@dataclass(frozen=True)
class Family:
    """One family.

    name: in this repository. models: published checkpoints, for example. classes: with the language head.
    class_token: whether visual tokens come one by one from a tower with a class token.
    videos:      whether a video is one span whose tokens know their frame.
    """

    name: str
    models: str
    classes: str
    class_token: bool = False
    videos: bool = False

    def refusal(self, method: type[Pruner]) -> str:
        """Why the method cannot run on this family; "" if it can."""
        if FROM_TOWER & method.needs and not self.class_token:
            return "no class token"
        return "no videos" if method.videos_only and not self.videos else ""


FAMILIES: tuple[Family, ...] = (
    Family("llava", "LLaVA-1.5 (-hf)", "LlavaForConditionalGeneration", class_token=True),
    Family("llava_original", "LLaVA-1.5, 1.6 (original layout)", "LlavaLlamaForCausalLM", class_token=True),
    Family("llava_qwen", "LLaVA-Video, -OneVision (original)", "LlavaQwenForCausalLM", videos=True),
    Family("llava_next", "LLaVA-1.6 (-hf), Granite Vision", "LlavaNextForConditionalGeneration"),
    Family("llava_next_video", "LLaVA-NeXT-Video (-hf)", "LlavaNextVideoForConditionalGeneration", videos=True),
    Family("llava_onevision", "LLaVA-OneVision (-hf)", "LlavaOnevisionForConditionalGeneration", videos=True),
    Family("internvl", "InternVL 2.5, 3, 3.5 (-hf)", "InternVLForConditionalGeneration"),
    Family("mistral3", "Mistral Small 3.1 and later", "Mistral3ForConditionalGeneration"),
    Family("qwen2_vl", "Qwen2-VL", "Qwen2VLForConditionalGeneration", videos=True),
    Family("qwen2_5_vl", "Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", videos=True),
    Family("qwen3_vl", "Qwen3-VL", "Qwen3VLForConditionalGeneration", videos=True),
    Family("qwen3_vl_moe", "Qwen3-VL with experts", "Qwen3VLMoeForConditionalGeneration", videos=True),
)


def find_family(name: str) -> Family:
    """The family called `name`. Raises PruningError that lists the names if there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise PruningError(f"unknown family {name!r}; known families: {', '.join(one.name for one in FAMILIES)}")
