"""The embedded model's tokenizer: WordPiece over the world's vocabulary, saved as an ordinary `tokenizer.json`.

Words are one token each, printed texts are spelled character by character ("472" is `4 ##7 ##2`), and the fixed
sentences of LLaVA's prompts are one token each: at this model's size they would only be noise to attend to.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from playground.mini.questions import LETTER, SHORT, vocabulary
from playground.mini.world import GLYPHS

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def build() -> PreTrainedTokenizerFast:
    """The tokenizer; it lower-cases, prepends `<s>`, and decodes `4 ##7 ##2` to "472"."""
    glyphs = [c.lower() for c in GLYPHS]
    words = list(dict.fromkeys([*SPECIAL, *vocabulary(), *glyphs, *(f"##{c}" for c in glyphs), "?", '"', ",", "."]))
    vocab = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=32))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    fixed = [VICUNA_SYSTEM, SHORT, LETTER, "USER:", "ASSISTANT:", "Context: N/A", "Question:", "Options:"]
    fixed += [pattern % letter for pattern in ("%s.", "(%s)", "%s") for letter in "ABCD"]
    core.add_tokens([AddedToken(s, single_word=len(s) == 1, normalized=False) for s in fixed])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def save(folder: Path) -> None:
    build().save_pretrained(folder)
