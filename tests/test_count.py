"""`vlm-pruner count` says, without a checkpoint's weights, what a run of the model finds; every family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers.utils import is_torchvision_available

from tests import checkpoints, families, llava_tiny, tiny_llava_qwen
from vlm_pruner import asking, cli, methods
from vlm_pruner.asking.counting import open_counter
from vlm_pruner.commands.count import table
from vlm_pruner.errors import PruningError

SIZES = ((84, 84), (140, 60), (70, 170))
METHODS = {
    "vlm-pruner": {"keep_tokens": 5, "layer": 1},
    "pyramiddrop": {"reduction_ratio": 0.5, "layer": 1},
    "random": {"reduction_ratio": 0.77, "layer": 1},
    "divprune": {"keep_tokens": 30, "layer": 1},
}


def write(folder: Path, name: str) -> Path:
    """A checkpoint of the family called `name`."""
    if not name.startswith("llava_") or name in checkpoints.HF:
        return checkpoints.write(folder / "model", name)
    checkpoint = llava_tiny.write_original(folder) if name == "llava_original" else tiny_llava_qwen.write(folder)
    llava_tiny.write_tokenizer(checkpoint)
    return checkpoint


@pytest.mark.parametrize("name", [family.name for family in families.FAMILIES])
def test_counted_before_as_found_after(name: str, tmp_path: Path) -> None:
    if name == "mistral3" and not is_torchvision_available():
        pytest.skip("the processor needs torchvision")
    folder = write(tmp_path, name)
    chat = asking.load(folder)
    pictures = [llava_tiny.picture(3).resize(size) for size in SIZES]
    built = {label: methods.get(label)(**settings) for label, settings in METHODS.items()}
    if name == "llava":  # of 25 tokens, always
        del built["divprune"]
    found = [
        {label: chat.ask(picture, "What is there", method, max_new_tokens=1).images for label, method in built.items()}
        for picture in pictures
    ]
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    counter = open_counter(folder)
    for picture, images in zip(pictures, found, strict=True):
        tokens = counter.tokens_of(picture)
        for label, method in built.items():
            (image,) = images[label]
            assert tokens == image.n_before
            assert [list(step) for step in counter.steps(method, tokens)] == [list(step) for step in image.steps]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_released_rounding_is_the_familys(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, name)
    chat, counter, picture = asking.load(folder), open_counter(folder), llava_tiny.picture(3).resize((84, 84))
    tokens = counter.tokens_of(picture)
    ratio = 1 - 9.7 / tokens  # 10 rounded, 9 rounded down
    method = methods.get("vlm-pruner")(reduction_ratio=ratio, compat="released", threshold=9.0)  # fills its budget
    (image,) = chat.ask(picture, "What", method, max_new_tokens=1).images
    assert image.n_before == tokens
    assert counter.steps(method, tokens) == [(2, 9 if name == "qwen2_vl" else 10)] == [tuple(image.steps[0])]


def test_class_token_is_counted(tmp_path: Path) -> None:
    """A LLaVA-1.5 whose tower passes on its class token has one visual token more than patches."""
    folder = llava_tiny.write_original(tmp_path, mm_vision_select_feature="cls_patch")
    llava_tiny.write_tokenizer(folder)
    picture = llava_tiny.picture(1)
    answer = asking.load(folder).ask(picture, "What", methods.get("random")(keep_tokens=3, layer=1), max_new_tokens=1)
    assert open_counter(folder).tokens_of(picture) == answer.images[0].n_before == llava_tiny.GRID**2 + 1
    assert answer.visual_tokens == llava_tiny.GRID**2 + 1


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    checkpoint, out = llava_tiny.write_original(tmp_path / "model"), tmp_path / "count.json"
    for name, size in (("a.png", (40, 30)), ("b.png", (90, 200))):
        Image.new("RGB", size).save(tmp_path / name)
    command = ["count", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", str(checkpoint)]
    assert cli.main([*command, "--method", "vlm-pruner,pyramiddrop", "--keep", "12", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["picture", "pixels", "tokens", "vlm-pruner", "12", "pyramiddrop", "12"]
    assert lines[1].split()[:4] == ["a.png", "40x30", "36", "12"] and lines[2].split()[1:3] == ["90x200", "36"]
    counts = json.loads(out.read_text())["pictures"]
    assert counts[1]["visual_tokens"] == 36 and counts[1]["kept"]["vlm-pruner 12"] == [[2, 12]]
    assert lines[1].split()[4] == ">".join(str(tokens) for _, tokens in counts[0]["kept"]["pyramiddrop 12"])


def test_what_cannot_be_counted_is_refused(tmp_path: Path, capsys: Any) -> None:
    counter = open_counter(llava_tiny.write_original(tmp_path / "model"))
    with pytest.raises(PruningError, match="only 36 visual tokens"):
        counter.steps(methods.get("random")(keep_tokens=37), 36)
    with pytest.raises(PruningError, match="of-kept-rows"):
        counter.steps(methods.get("random")(keep_tokens=3, newlines="of-kept-rows"), 36)
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "model" / "clip", other)
    (other / "config.json").write_text(json.dumps({"model_type": "clip", "architectures": ["CLIPModel"]}))
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert cli.main(["count", str(tmp_path / "a.png"), "--model", str(other)]) == 2
    assert "CLIPModel is not supported" in capsys.readouterr().err


def test_a_table_of_many_methods_fits_a_terminal() -> None:
    """Methods beside one another while there is room, one after another when there is not."""
    names = [f"{name} {keep}" for name in ("vlm-pruner", "pyramiddrop") for keep in ("64", "ratio:0.889", "avg:250")]
    kept = {name: [[2, 110], [4, 55], [6, 27]] for name in names}
    counts = [{"file": "a/000000.png", "size": [336, 336], "visual_tokens": 576, "kept": kept}]
    narrow, wide = table(counts, names[:1]), table(counts, names)
    assert narrow.splitlines()[0].endswith("vlm-pruner 64") and max(map(len, wide.splitlines())) <= 80
    lines = wide.splitlines()
    assert lines[0].split() == ["picture", "pixels", "tokens", "64", "ratio:0.889", "avg:250"]
    assert lines[1] == "vlm-pruner" and lines[3] == "pyramiddrop" and lines[2] == lines[4]
