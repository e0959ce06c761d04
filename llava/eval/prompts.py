"""The prompt string of one question, as LLaVA's evaluation builds it."""

from __future__ import annotations

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import get_conversation


def build_prompt(asked: str, conv_mode: str, with_image: bool = True, start_end_tokens: bool = False) -> str:
    """The conversation up to the model's turn; the picture stands in front of the question as a literal ``<image>``."""
    image = DEFAULT_IMAGE_TOKEN
    if start_end_tokens:
        image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
    conversation = get_conversation(conv_mode)
    conversation.append_message(conversation.roles[0], f"{image}\n{asked}" if with_image else asked)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()
