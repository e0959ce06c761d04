"""Every family as a checkpoint folder in transformers' layout: model, tokenizer, processor and chat template.

Written as transformers 5 writes them, with the processor in processor_config.json alone, except that the video halves,
which need torchvision, are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import families, tiny_qwen, tiny_qwen_checkpoint

SIDE = 5 * families._PATCH
_WORDS = {
    "llava": {families.IMAGE: "<image>"},
    "llava_next": {families.IMAGE: "<image>"},
    "llava_next_video": {families.IMAGE: "<image>", families.VIDEO: "<video>"},
    "llava_onevision": {families.IMAGE: "<image>", families.VIDEO: "<video>"},
    "internvl": {families.IMAGE: "<IMG_CONTEXT>", families._START: "<img>", families._END: "</img>", 80: "<video>"},
    "mistral3": {families.IMAGE: "[IMG]", families._BREAK: "[IMG_BREAK]", families._END: "[IMG_END]"},
}
_PLACEHOLDERS = {"internvl": "<IMG_CONTEXT>", "mistral3": "[IMG]"}  # of a picture in the chat template
_CROP: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_TILED = {"image_grid_pinpoints": [[70, 140], [140, 70], [140, 140]]}
_PROCESSORS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # class, its own settings, its image processor's
    "llava": ("Llava", {"num_additional_image_tokens": 1}, {"image_processor_type": "CLIPImageProcessor", **_CROP}),
    "llava_next": ("LlavaNext", {"num_additional_image_tokens": 1},
                   {"image_processor_type": "LlavaNextImageProcessor", **_CROP, **_TILED}),
    "llava_next_video": ("LlavaNextVideo", {"num_additional_image_tokens": 1},
                         {"image_processor_type": "LlavaNextImageProcessor", **_CROP, **_TILED}),
    "llava_onevision": ("LlavaOnevision", {"num_image_tokens": 25, "vision_aspect_ratio": "anyres_max_2"},
                        {"image_processor_type": "LlavaOnevisionImageProcessor",
                         "size": {"height": SIDE, "width": SIDE}, **_TILED}),
    "internvl": ("InternVL", {"image_seq_length": 9},
                 {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 84, "width": 84},
                  "crop_to_patches": True, "min_patches": 1, "max_patches": 4}),
    "mistral3": ("Pixtral", {"spatial_merge_size": 2},
                 {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 112},
                  "patch_size": {"height": 14, "width": 14}}),
}  # fmt: skip
HF = [*_WORDS, *tiny_qwen.FAMILIES]


def write(folder: Path, name: str) -> Path:
    """The checkpoint of the family called `name`, in `folder`, which is returned."""
    if name in tiny_qwen.FAMILIES:
        return tiny_qwen_checkpoint.write(folder, name)
    family = next(one for one in families.FAMILIES if one.name == name)
    family.build().save_pretrained(folder)
    words = _WORDS[name]
    _write_tokenizer(folder, words)
    kind, own, images = _PROCESSORS[name]
    patch = {} if name == "internvl" else {"patch_size": families._PATCH}
    chosen = name.startswith("llava") and name != "llava_onevision"
    strategy = {"vision_feature_select_strategy": "default"} if chosen else {}
    settings = {"processor_class": f"{kind}Processor", **own, **patch, **strategy,
                "image_processor": images}  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(settings))
    placeholder = _PLACEHOLDERS.get(name, "<image>")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}user {% for part in message.content %}{% if part.type == 'image' %}"
        + placeholder
        + " {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}assistant "
    )
    return folder


def _write_tokenizer(folder: Path, special: dict[int, str]) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    size = families._TEXT["vocab_size"]
    known = {0: "<pad>", 1: "<unk>", 2: "</s>", **special}
    words = iter(["user", "assistant", "What", "is", "there", *(f"w{i}" for i in range(size))])
    vocabulary = {known.get(index) or next(words): index for index in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in known.values()])
    named = {"image_token": special[families.IMAGE]}
    if "<img>" in special.values():
        named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
                 "video_token": "<video>"}  # fmt: skip
    if "<video>" in special.values():
        named["video_token"] = "<video>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", extra_special_tokens=named
    ).save_pretrained(folder)
