"""Conversation templates: turn a dialogue into the one string that a LLaVA checkpoint was trained on.

`conv_templates[name].copy()` starts a `Conversation` in a `Template`'s format:

    conv = conv_templates["vicuna_v1"].copy()
    conv.append_message(conv.roles[0], "<image>\\nWhat is this?")
    conv.append_message(conv.roles[1], None)          # None: the turn that the model writes
    prompt = conv.get_prompt()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum, auto

Message = list[str | None]  # role and text; a list, so that scripts can fill in `messages[-1][-1]` as with LLaVA


class SeparatorStyle(Enum):
    """How turns are separated. Names as in LLaVA, so that scripts comparing them keep working."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()
    CHATML = auto()


@dataclass
class Template:
    """One model family's prompt format.

    `sep` ends the system text and the user's turns, `sep2` the assistant's turns (if the style has two).
    """

    name: str
    system: str
    roles: tuple[str, str]
    sep_style: SeparatorStyle
    sep: str
    sep2: str | None = None
    version: str = "v1"

    def copy(self) -> Conversation:
        """Starts an empty conversation in this format."""
        return Conversation(**{entry.name: getattr(self, entry.name) for entry in fields(Template)})


@dataclass
class Conversation(Template):
    """A dialogue in progress: a template and its messages."""

    messages: list[Message] = field(default_factory=list)

    def append_message(self, role: str, message: str | None) -> None:
        """Adds a turn; `None` marks the turn that the model should write."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        return replace(self, messages=[list(message) for message in self.messages])

    def get_prompt(self) -> str:
        """The whole dialogue as one string, with the literal `<image>` where pictures go."""
        return _RENDERERS[self.sep_style](self, self.messages)


def get_conversation(name: str) -> Conversation:
    """Starts a conversation in the format `name`. Raises ValueError that lists the known names."""
    if name not in conv_templates:
        raise ValueError(f"unknown conversation template {name!r}; choose one of {', '.join(sorted(conv_templates))}")
    return conv_templates[name].copy()


def _render_labelled(template: Template, messages: Sequence[Message]) -> str:
    two = template.sep_style is SeparatorStyle.TWO
    separators = (template.sep, template.sep2 or "") if two else (template.sep, template.sep)
    turns = (
        f"{role}: {text}{separators[turn % 2]}" if text else f"{role}:" for turn, (role, text) in enumerate(messages)
    )
    return template.system + template.sep + "".join(turns)


def _render_mpt(template: Template, messages: Sequence[Message]) -> str:
    # The role strings end in their own line break, and an unwritten turn ends right after it.
    turns = (f"{role}{text}{template.sep}" if text else f"{role}" for role, text in messages)
    return template.system + template.sep + "".join(turns)


def _render_chatml(template: Template, messages: Sequence[Message]) -> str:
    turns = (f"{role}\n{text}{template.sep}\n" if text else f"{role}\n" for role, text in messages)
    return f"{template.system}{template.sep}\n" + "".join(turns)


def _render_plain(template: Template, messages: Sequence[Message]) -> str:
    separators = (template.sep, template.sep2 or "")
    turns = (f"{text}{separators[turn % 2]}" for turn, (_, text) in enumerate(messages) if text)
    return template.system + "".join(turns)


def _render_llama_2(template: Template, messages: Sequence[Message]) -> str:
    prompt = ""
    for turn, (_, text) in enumerate(messages):
        if not text:
            continue
        if turn == 0 and template.system:
            text = f"<<SYS>>\n{template.system}\n<</SYS>>\n\n{text}"
        prompt += f"{template.sep}[INST] {text} [/INST]" if turn % 2 == 0 else f" {text} {template.sep2}"
    # The tokenizer adds the first begin-of-sequence token itself.
    return prompt.removeprefix(template.sep)


_RENDERERS: dict[SeparatorStyle, Callable[[Template, Sequence[Message]], str]] = {
    SeparatorStyle.SINGLE: _render_labelled,
    SeparatorStyle.TWO: _render_labelled,
    SeparatorStyle.MPT: _render_mpt,
    SeparatorStyle.PLAIN: _render_plain,
    SeparatorStyle.LLAMA_2: _render_llama_2,
    SeparatorStyle.CHATML: _render_chatml,
}


def _chat_system(person: str) -> str:
    return (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
    )


_UPPER = ("USER", "ASSISTANT")
_CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")

default_conversation = Template("vicuna_v1", _chat_system("user"), _UPPER, SeparatorStyle.TWO, " ", "</s>")
_CHATML_DIRECT = Template(
    "chatml_direct", "<|im_start|>system\nAnswer the questions.", _CHATML, SeparatorStyle.MPT, "<|im_end|>",
    version="mpt",
)  # fmt: skip
_QWEN = Template(
    "qwen_1_5", "<|im_start|>system\nYou are a helpful assistant.", ("<|im_start|>user", "<|im_start|>assistant"),
    SeparatorStyle.CHATML, "<|im_end|>", version="qwen",
)  # fmt: skip

conv_templates: dict[str, Template] = {
    "default": default_conversation,
    "v1": default_conversation,
    "vicuna_v1": default_conversation,
    "llava_v0": Template(
        "llava_v0", _chat_system("human"), ("Human", "Assistant"), SeparatorStyle.SINGLE, "###", version="v0"
    ),
    "llava_v1": Template("llava_v1", _chat_system("human"), _UPPER, SeparatorStyle.TWO, " ", "</s>"),
    "llava_llama_2": Template(
        "llava_llama_2",
        "You are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language.",
        _UPPER, SeparatorStyle.LLAMA_2, "<s>", "</s>", version="llama_v2",
    ),
    "mistral_instruct": Template(
        "mistral_instruct", "", _UPPER, SeparatorStyle.LLAMA_2, "", "</s>", version="llama_v2"
    ),
    "chatml_direct": _CHATML_DIRECT,
    "mistral_direct": _CHATML_DIRECT,
    "mpt": Template(
        "mpt",
        "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. "
        "The assistant gives helpful and honest answers.",
        _CHATML, SeparatorStyle.MPT, "<|im_end|>", version="mpt",
    ),
    "plain": Template("plain", "", ("", ""), SeparatorStyle.PLAIN, "\n", version="plain"),
    "qwen_1_5": _QWEN,
    "qwen_2": _QWEN,
    "qwen_2_5": replace(
        _QWEN, name="qwen_2_5",
        system="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
}  # fmt: skip
"""Templates by the names that LLaVA's `--conv-mode` accepts."""
