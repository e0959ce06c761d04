"""A config.json that asks for more than its weight files is refused before anything is allocated, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import checkpoints, llava_tiny
from vlm_pruner import asking
from vlm_pruner.asking.counting import open_counter
from vlm_pruner.asking.weights import check_size, load_model
from vlm_pruner.llava.model.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    whole = tmp_path_factory.mktemp("families")
    made = {name: checkpoints.write(whole / name, name) for name in checkpoints.HF}
    made["original"] = llava_tiny.write_original(whole / "original")
    llava_tiny.write_tokenizer(made["original"])
    return made


@pytest.fixture
def nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read before the configuration was refused")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refuse)


def changed(folder: Path, to: Path, name: str, value: object) -> Path:
    """A copy of the checkpoint whose config.json has `value` wherever it had a number called `name`."""
    to.mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(folder)).symlink_to(path)
    text = (folder / "config.json").read_text()
    (to / "config.json").unlink()
    (to / "config.json").write_text(json.dumps(_replaced(json.loads(text), name, value)))
    assert (to / "config.json").read_text() != text
    return to


def _replaced(config: Any, name: str, value: object) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: value if key == name else _replaced(inner, name, value) for key, inner in config.items()}


NAMES = [*checkpoints.HF, "original"]


@pytest.mark.parametrize("layers", [2**31, float("nan")])
@pytest.mark.parametrize("name", NAMES)
def test_more_layers_than_any_model_has(
    name: str, layers: float, folders: dict[str, Path], tmp_path: Path, nothing_is_allocated: None
) -> None:
    folder = changed(folders[name], tmp_path / "model", "num_hidden_layers", layers)
    for read in (asking.load, open_counter):
        with pytest.raises(CheckpointError, match=r"config\.json: num_hidden_layers is .* more than any model has"):
            read(folder)


@pytest.mark.parametrize("size", ["vocab_size", "intermediate_size"])
@pytest.mark.parametrize("name", checkpoints.HF)
def test_far_more_parameters_than_bytes(
    name: str, size: str, folders: dict[str, Path], tmp_path: Path, nothing_is_allocated: None
) -> None:
    folder = changed(folders[name], tmp_path / "model", size, 2**24)
    with pytest.raises(CheckpointError, match=r"config\.json describes a model of [\d,]{10,} parameters"):
        load_model(folder)


@pytest.mark.parametrize("name", checkpoints.HF)
def test_a_weight_that_the_files_lack_is_no_random_one(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    check_size(folders[name])
    whole = load_file(folders[name] / "model.safetensors")
    lost = sorted(weight for weight in whole if "layers" in weight)[0]
    folder = changed(folders[name], tmp_path / "model", "transformers_version", "5.17.0")
    (folder / "model.safetensors").unlink()
    save_file(
        {weight: one for weight, one in whole.items() if weight != lost}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"lacks .*layers"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_small_dtypes_are_not_taken_for_missing_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "model", "llava")
    whole = load_file(folder / "model.safetensors")
    save_file({name: one.to(dtype) for name, one in whole.items()}, folder / "model.safetensors", {"format": "pt"})
    check_size(folder)
    if dtype != torch.float8_e4m3fn:
        assert load_model(folder, dtype=dtype).dtype == dtype
