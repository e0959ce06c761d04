"""A Qwen-VL checkpoint folder with random weights, a word tokenizer, a processor and a chat template, made in code."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_qwen
from tiny_qwen import END, IMAGE, PAD, START, VIDEO, VOCABULARY

TURN, CLOSE, NEWLINE = 94, 95, 96
_SPECIAL = {
    PAD: "<pad>", 1: "<unk>", IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", START: "<|vision_start|>",
    END: "<|vision_end|>", TURN: "<|turn|>", CLOSE: "<|close|>", NEWLINE: "<|newline|>",
}  # fmt: skip
_WORDS = ["system", "user", "assistant", "You", "are", "helpful", "Is", "there", "a", "red", "star", "in", "the"]
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|turn|> system You are helpful <|close|> {% endif %}"
    "{% for message in messages %}<|turn|> {{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|> "
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|> "
    "{% else %}{{ part.text }} {% endif %}{% endfor %}<|close|> {% endfor %}"
    "{% if add_generation_prompt %}<|turn|> assistant {% endif %}"
)


def write(folder: Path, family: str = "qwen2_vl") -> Path:
    """The checkpoint in `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_qwen.build(family).save_pretrained(folder)
    _write_tokenizer(folder)
    _write_processor(folder, 3 if family.startswith("qwen3") else 2)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = iter([*_WORDS, *(f"w{i}" for i in range(VOCABULARY))])
    vocabulary = {_SPECIAL.get(index) or next(words): index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in _SPECIAL.values()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<|close|>"
    )
    fast.save_pretrained(folder)


def _write_processor(folder: Path, kind: int) -> None:
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    own = {"image_processor_type": "Qwen2VLImageProcessor", "size": pixels, **sizes}
    (folder / "preprocessor_config.json").write_text(json.dumps(own))
    video = {"video_processor_type": f"Qwen{kind}VLVideoProcessor", "size": pixels, **sizes}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
