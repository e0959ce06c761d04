"""Finds the golden inputs and outputs of the released code, and its tiny checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "conformance"


def conformance(part: str) -> Path:
    """The kit's folder `part`; skips the calling test where the kit is absent."""
    folder = Path(os.environ.get("VLM_PRUNER_CONFORMANCE", _BESIDE)) / part
    if not folder.is_dir():
        pytest.skip(f"no conformance kit at {folder}; set VLM_PRUNER_CONFORMANCE to its folder")
    return folder


def llava_checkpoint(root: Path) -> Path:
    """The kit's tiny LLaVA in `root`, linked, with a tokenizer: the kit holds none."""
    source, folder = conformance("llava"), root / "llava-tiny"
    (root / "clip-tiny-336").symlink_to(source / "clip-tiny-336")
    folder.mkdir()
    for file in (source / "llava-tiny").iterdir():
        (folder / file.name).symlink_to(file)
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """One token per word, 512 in all: `<s>`, `</s>`, `<unk>`, a few words of prompts, and fillers to be generated."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "A", "chat", "between", "a", "curious", "user", "and", "an", "artificial", "USER"]
    vocabulary = {word: index for index, word in enumerate([*words, *(f"w{i}" for i in range(512 - len(words)))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    fast.save_pretrained(folder)
