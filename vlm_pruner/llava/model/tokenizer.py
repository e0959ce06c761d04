"""Loads a checkpoint's tokenizer from tokenizer.json, or from the tokenizer.model that LLaVA's checkpoints ship."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerBase, Qwen2Config

from vlm_pruner.llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from vlm_pruner.llava.model.checkpoint import CheckpointError, first_line, read_json


def mark_tokens(config: Any) -> list[str]:
    """Tokens that a checkpoint puts around its pictures, in the order in which LLaVA adds them to a tokenizer."""
    if not getattr(config, "mm_use_im_start_end", False):
        return []
    patch = [DEFAULT_IMAGE_PATCH_TOKEN] if getattr(config, "mm_use_im_patch_token", True) else []
    return [*patch, DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]


def load_tokenizer(folder: Path, vocab_size: int, marks: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """The tokenizer in a checkpoint's folder. marks: tokens that it must have, or that are added as LLaVA adds them.

    Raises `CheckpointError` if there is none, it cannot be read, or it has more tokens than the model's `vocab_size`.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CheckpointError(
            f"checkpoint {folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy it there"
        )
    try:
        # With a configuration given, transformers does not stumble over our model_type in config.json.
        tokenizer = AutoTokenizer.from_pretrained(folder, config=_config(folder), **_options(folder))
    except Exception as error:  # transformers, tokenizers and sentencepiece raise many kinds
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read ({first_line(error)}); copy the model's own tokenizer there"
        ) from None
    if len(tokenizer) > vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocab_size}: "
            "they do not belong together; copy the model's own tokenizer there"
        )
    _add_marks(tokenizer, marks, folder, vocab_size)
    return tokenizer


def _config(folder: Path) -> PreTrainedConfig:
    """The configuration that selects the tokenizer's class: Qwen2's if only Qwen2's files are there."""
    llama = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return LlamaConfig() if llama else Qwen2Config()


def _add_marks(tokenizer: PreTrainedTokenizerBase, marks: Sequence[str], folder: Path, vocab_size: int) -> None:
    """Adds missing marks. Each needs a trained row of the embeddings, after the rows of the known tokens."""
    known = tokenizer.get_vocab()
    missing = [mark for mark in marks if mark not in known]
    if len(known) + len(missing) > vocab_size:
        raise CheckpointError(
            f"config.json in {folder} sets mm_use_im_start_end, but the tokenizer lacks {', '.join(missing)} and the"
            f" model has {vocab_size} embeddings for its {len(known)} tokens: copy the tokenizer that was saved"
            " with the trained model there"
        )
    tokenizer.add_tokens(missing, special_tokens=True)


def _options(folder: Path) -> dict[str, Any]:
    """Makes every text begin with <s>, as LLaVA expects of Llama's sentencepiece tokenizer.

    Since version 5, transformers adds <s> only if tokenizer_config.json asks for it.
    """
    settings = folder / "tokenizer_config.json"
    stated = settings.is_file() and "add_bos_token" in read_json(settings, "tokenizer")
    sentencepiece = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    return {"add_bos_token": True} if sentencepiece and not stated else {}
