"""Asking a checkpoint about a picture. Tests what is measured, not what is said, which depends on the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import vlm_pruner as vp
from vlm_pruner.asking import load
from vlm_pruner.cost.flops import DecoderShape, kv_bytes, lengths
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.mini import CHECKPOINT

PICTURE = Image.linear_gradient("L").convert("RGB")
QUESTION = "What number is written in the image?"


@pytest.fixture(scope="module")
def chat() -> Any:
    if not (CHECKPOINT / "config.json").is_file():
        pytest.skip("the embedded model is not here")
    return load(CHECKPOINT)


def test_costs_are_those_of_the_answer(chat):
    dense = chat.ask(PICTURE, QUESTION, max_new_tokens=5)
    pruned = chat.ask(PICTURE, QUESTION, vp.CentrifugalPruner(keep_tokens=32), max_new_tokens=5)
    assert (dense.visual_tokens, dense.kept, dense.images) == (576, 576, ())
    assert (pruned.visual_tokens, pruned.kept, len(pruned.images[0].order)) == (576, 32, 32)
    shape = DecoderShape.of(chat.decoder.config)
    for answer, kept in ((dense, 576), (pruned, 32)):
        held = answer.prompt_tokens + answer.tokens - 1  # the last token is not run through the model
        assert answer.kv_bytes == kv_bytes(shape, lengths(shape, held, 576, [(2, kept)]), bytes_per_number=4)
        assert 0 < answer.first_token_seconds <= answer.seconds


def test_the_text_grows_to_the_answer(chat):
    seen: list[str] = []
    answer = chat.ask(PICTURE, QUESTION, max_new_tokens=5, on_text=seen.append)
    assert len(seen) == answer.tokens and seen[-1].strip() == answer.text


def test_an_answer_can_be_stopped_after_any_token(chat, monkeypatch):
    monkeypatch.setattr(chat.model.generation_config, "eos_token_id", None)
    tokens: list[str] = []
    answer = chat.ask(PICTURE, QUESTION, max_new_tokens=50, on_text=tokens.append, stop=lambda: len(tokens) >= 3)
    assert answer.stopped and answer.tokens < 50


def test_the_model_is_dense_again_after_an_error(chat):
    before = chat.ask(PICTURE, QUESTION, max_new_tokens=3)
    with pytest.raises(PruningError, match="last layer"):
        chat.ask(PICTURE, QUESTION, vp.CentrifugalPruner(keep_tokens=32, layer=99), max_new_tokens=3)

    def fail(text: str) -> None:
        raise RuntimeError("the visitor is gone")

    with pytest.raises(RuntimeError, match="gone"):
        chat.ask(PICTURE, QUESTION, vp.CentrifugalPruner(keep_tokens=32), max_new_tokens=3, on_text=fail)
    assert chat.ask(PICTURE, QUESTION, max_new_tokens=3).text == before.text


def test_a_question_beyond_the_models_positions_is_refused_with_the_numbers(chat):
    with pytest.raises(ValueError, match=r"576.*shorter question"):
        chat.ask(PICTURE, "red circle " * 2000)


def test_a_placeholder_in_the_question_is_no_second_picture(chat):
    assert chat.prompt(PICTURE, "what is <image> ?").visual_tokens == 576


def test_other_checkpoints_and_devices_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="'warp' cannot be used"):
        load(CHECKPOINT, device="warp")
    with pytest.raises(ValueError, match="dtype is 'int3'"):
        load(CHECKPOINT, dtype="int3")
    assert torch.is_grad_enabled()
