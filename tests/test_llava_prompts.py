"""Prompts character for character, and ids around pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from llava.conversation import conv_templates, default_conversation, get_conversation
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from tests.conformance import conformance

OPENING = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def render(name: str, *turns: str | None) -> str:
    conversation = get_conversation(name)
    for number, text in enumerate(turns):
        conversation.append_message(conversation.roles[number % 2], text)
    return conversation.get_prompt()


BENCHMARKS = ["gqa", "scienceqa", "textvqa", "pope", "MME", "mmbench", "OCRBench", "seed_bench", "okvqa"]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_prompts_are_those_of_llavas_evaluation(benchmark):
    golden = json.loads((conformance("scorers") / benchmark / "prompts.json").read_text())
    items = golden["items"] + golden.get("llava_1_6_with_is_textvqa", [])
    prompts = [value for item in items for key, value in item.items() if key.startswith("prompt")]
    assert prompts
    for prompt in prompts:
        question = prompt.removeprefix(OPENING + "USER: ").removesuffix(" ASSISTANT:")
        assert render(golden["conv_mode"], question, None) == prompt


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vicuna_v1", OPENING + "USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"),
        ("llava_v1", OPENING.replace("user", "human") + "USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"),
        ("llava_v0", OPENING.replace("user", "human")[:-1] + "###Human: Q1###Assistant: A1###Human: Q2###Assistant:"),
        ("mistral_instruct", "[INST] Q1 [/INST] A1 </s>[INST] Q2 [/INST]"),
        (
            "chatml_direct",
            "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nQ1<|im_end|>"
            "<|im_start|>assistant\nA1<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n",
        ),
        ("plain", "Q1\nA1Q2\n"),
    ],
)
def test_templates_with_two_turns(name, expected):
    assert render(name, "Q1", "A1", "Q2", None) == expected


def test_llama_2_puts_the_system_text_into_the_first_turn_and_leaves_the_first_bos_to_the_tokenizer():
    prompt = render("llava_llama_2", "Q1", "A1", "Q2", None)
    assert prompt.startswith("[INST] <<SYS>>\nYou are a helpful language and vision assistant.")
    assert prompt.endswith("using natural language.\n<</SYS>>\n\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]")


def test_conversations_do_not_share_their_messages():
    first = conv_templates["vicuna_v1"].copy()
    first.append_message(first.roles[0], "Q")
    assert default_conversation.copy().messages == []
    assert first.copy().messages == first.messages and first.copy().messages is not first.messages


def test_a_conversation_can_be_changed_as_llavas_scripts_change_it():
    """Its command line fills in the last turn and starts afresh; others replace the system text."""
    conversation, other = conv_templates["vicuna_v1"].copy(), conv_templates["vicuna_v1"].copy()
    for role, text in zip(conversation.roles, ("Q1", None), strict=True):
        conversation.append_message(role, text)
    before = conversation.copy()
    conversation.messages[-1][-1] = "A1"
    conversation.system = "Hello."
    assert conversation.get_prompt() == "Hello. USER: Q1 ASSISTANT: A1</s>"
    assert before.get_prompt() == OPENING + "USER: Q1 ASSISTANT:"
    conversation.messages = []
    assert conversation.get_prompt() == "Hello. " and other.get_prompt() == OPENING
    assert default_conversation.system + " " == OPENING


def test_one_separator_ends_every_turn_of_a_single_style():
    conversation = replace(conv_templates["llava_v0"].copy(), sep2="</s>")
    for role, text in zip(conversation.roles, ("Q1", "A1"), strict=True):
        conversation.append_message(role, text)
    assert conversation.get_prompt().endswith("###Human: Q1###Assistant: A1###")


def test_unknown_template_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown conversation template 'vicuna_v9'.*vicuna_v1"):
        get_conversation("vicuna_v9")


class Words:
    """A tokenizer that gives each character its code, after a begin-of-sequence token if it has one."""

    def __init__(self, bos: int | None) -> None:
        self.bos_token_id = bos

    def __call__(self, text: str) -> SimpleNamespace:
        bos = [] if self.bos_token_id is None else [self.bos_token_id]
        return SimpleNamespace(input_ids=bos + [ord(character) for character in text])


def test_image_tokens_between_pieces_keep_one_bos():
    assert tokenizer_image_token("ab<image>c<image>", Words(1)) == [1, 97, 98, -200, 99, -200]
    assert tokenizer_image_token("<image>c", Words(1)) == [1, -200, 99]
    assert tokenizer_image_token("a<image>c", Words(None)) == [97, -200, 99]
    assert tokenizer_image_token("<image>", Words(None), image_token_index=7) == [7]


def test_image_tokens_as_tensor():
    ids = tokenizer_image_token("a<image>", Words(1), return_tensors="pt")
    assert ids.dtype == torch.long and ids.tolist() == [1, 97, -200]
    with pytest.raises(ValueError, match="'np'"):
        tokenizer_image_token("a", Words(1), return_tensors="np")


def test_model_names():
    assert get_model_name_from_path("liuhaotian/llava-v1.5-7b/") == "llava-v1.5-7b"
    assert get_model_name_from_path("out/my-llava/checkpoint-100") == "my-llava_checkpoint-100"
    assert get_model_name_from_path("checkpoint-100") == "checkpoint-100"
