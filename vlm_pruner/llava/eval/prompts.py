"""One question's prompt, built as LLaVA's evaluation builds it."""

from __future__ import annotations

from vlm_pruner.llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from vlm_pruner.llava.conversation import get_conversation

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."


def build_prompt(asked: str, conv_mode: str, pictures: int = 1, start_end_tokens: bool = False) -> str:
    """The conversation up to the model's turn; each picture is a literal ``<image>`` line before the question."""
    image = DEFAULT_IMAGE_TOKEN
    if start_end_tokens:
        image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
    conversation = get_conversation(conv_mode)
    conversation.append_message(conversation.roles[0], f"{image}\n" * pictures + asked)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()
