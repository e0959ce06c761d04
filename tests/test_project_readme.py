"""The README keeps its promises: its Python runs, its commands and files exist, CI runs its test command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import vlm_pruner as vp
from tests import checkpoints
from vlm_pruner import asking
from vlm_pruner.cli import COMMANDS
from vlm_pruner.experiments.mini import CHECKPOINT
from vlm_pruner.images import read_image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A LLaVA-1.5 folder in transformers' layout: random weights, 576 visual tokens, four layers."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from playground.mini.tokenizer import build

    torch.manual_seed(0)
    tokenizer = build()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=336, patch_size=14),
        text_config=LlamaConfig(**text, vocab_size=len(tokenizer), **special),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    crop = {"height": 336, "width": 336}
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.chat_template = "{% for message in messages %}USER: <image>\nWhat is this? {% endfor %}ASSISTANT:"
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=crop),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(tmp_path)
    Image.new("RGB", (400, 300), "red").save(tmp_path / "picture.jpg")
    return tmp_path


def ten_lines(checkpoint: Path, picture: Path, keep: int, capsys: pytest.CaptureFixture[str]) -> list[int]:
    """Runs the README's Python with a tiny model in place of the download; returns the kept tokens it printed."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1 and len([line for line in blocks[0].splitlines() if line]) <= 14
    code = blocks[0]
    for written, here in (
        ("llava-hf/llava-1.5-7b-hf", str(checkpoint)),
        ("picture.jpg", str(picture)),
        ("keep_tokens=64", f"keep_tokens={keep}"),
        ("max_new_tokens=64", "max_new_tokens=4"),
    ):
        assert written in code
        code = code.replace(written, here)
    exec(compile(code, "README.md", "exec"), {})
    kept = re.search(r"^\[([\d, ]+)\]$", capsys.readouterr().out, re.MULTILINE)
    assert kept is not None
    return [int(word) for word in kept[1].split(",")]


def test_the_ten_lines_run_as_they_stand(llava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(ten_lines(llava, llava / "picture.jpg", 64, capsys)) == 64


@pytest.mark.parametrize("family", ["llava_next", "internvl", "qwen2_5_vl"])
def test_the_ten_lines_run_with_other_families(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((140, 100), 80).convert("RGB").save(tmp_path / "picture.jpg")
    checkpoint = checkpoints.write(tmp_path / "model", family)
    assert len(ten_lines(checkpoint, tmp_path / "picture.jpg", 5, capsys)) == 5


def test_the_first_answers_are_those_that_it_promises() -> None:
    if not (CHECKPOINT / "config.json").is_file():
        pytest.skip("the embedded model is not here")
    asked = re.search(r'vlm-pruner ask (playground/scene\.png) --question "(.+)"\n', README)
    photographed = re.search(r"vlm-pruner ask (playground/photos/\S+)", README)
    assert asked is not None and photographed is not None and (ROOT / photographed[1]).is_file()
    chat, picture = asking.load(CHECKPOINT), read_image(ROOT / asked[1])
    dense = chat.ask(picture, asked[2], max_new_tokens=4)
    pruned = chat.ask(picture, asked[2], vp.CentrifugalPruner(keep_tokens=64), max_new_tokens=4)
    assert (dense.text, pruned.text) == ("yes", "yes") and 'answers "yes" twice' in README
    assert dense.visual_tokens == 576 and "all 576 visual tokens, and with 64" in README
    assert round(100 * (1 - pruned.kv_bytes / dense.kv_bytes)) == 65 and "65 %" in README


def test_links_and_scripts_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README) if not link.startswith("http")]
    scripts = re.findall(r"bash (scripts/\S+?\.sh)", README)
    assert links and scripts
    for path in [*links, *scripts]:
        assert (ROOT / path).exists(), f"README names {path}, which does not exist"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "bash scripts/test.sh" in README
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "bash scripts/test.sh"
    assert commands[0] == "set -euo pipefail", "a failure must fail the build"


def test_the_demo_script_calls_a_command_that_exists() -> None:
    called = re.search(r"vlm-pruner (\S+) ", (ROOT / "scripts" / "demo.sh").read_text())
    assert called is not None and called[1] in COMMANDS
