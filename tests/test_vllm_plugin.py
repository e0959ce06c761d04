"""The vLLM plug-in where vLLM is not installed: harmless, and clear about versions. tests/vllm has the rest."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it to older Pythons

import vlm_pruner.vllm as plugin
from vlm_pruner.vllm import options, refusals


def test_vllm_finds_the_plugin():
    """In pyproject.toml, since an editable install may be older than an entry point."""
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["entry-points"]["vllm.general_plugins"] == {"vlm-pruner": "vlm_pruner.vllm:register"}


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "1.0", "0.32x", None])
def test_another_vllm_is_left_alone_and_named(version, monkeypatch, caplog):
    monkeypatch.setattr(plugin, "_vllm_version", lambda: version)
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it would fail
    with caplog.at_level(logging.WARNING):
        plugin.register()
    assert "supports vLLM from 0.32 to below 0.34" in caplog.text and str(version) in caplog.text


@pytest.mark.parametrize("version", ["0.32.0+cpu", "0.33.1"])
def test_models_are_registered_by_name(version, monkeypatch):
    registered, asked = {}, []
    monkeypatch.setattr(plugin, "_vllm_version", lambda: version)
    monkeypatch.setitem(
        sys.modules, "vllm", SimpleNamespace(ModelRegistry=SimpleNamespace(register_model=registered.setdefault))
    )
    kept = SimpleNamespace(keep_positions_of=asked.append)
    monkeypatch.setitem(sys.modules, "vlm_pruner.vllm.configuration", kept)
    plugin.register()
    plugin.register()
    assert registered == plugin.MODELS and set(asked) == {plugin.ONE_AXIS}
    assert all(isinstance(where, str) for where in registered.values())


def config(**changed):
    settings = {
        "cudagraph": False,
        "video": False,
        "ubatching": False,
        "eagle": None,
        "tower_lora": None,
        "ranks": 1,
    } | changed
    speculative = (
        None if settings["eagle"] is None else SimpleNamespace(use_eagle=lambda: settings["eagle"], method="m")
    )
    lora = (
        None if settings["tower_lora"] is None else SimpleNamespace(enable_tower_connector_lora=settings["tower_lora"])
    )
    return SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mm_encoder=settings["cudagraph"]),
        model_config=SimpleNamespace(
            multimodal_config=SimpleNamespace(is_multimodal_pruning_enabled=lambda: settings["video"])
        ),
        parallel_config=SimpleNamespace(use_ubatching=settings["ubatching"], pipeline_parallel_size=settings["ranks"]),
        speculative_config=speculative,
        lora_config=lora,
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"cudagraph": True}, "cudagraph_mm_encoder"),
        ({"video": True}, "--video-pruning-rate"),
        ({"ubatching": True}, "--enable-dbo"),
        ({"eagle": True}, "speculative decoding by 'm'"),
        ({"tower_lora": True}, "--enable-tower-connector-lora"),
        ({"ranks": 2}, "pipeline parallelism.*VLM_PRUNER_POSITIONS=renumbered"),
    ],
)
def test_settings_under_which_answers_would_be_wrong_are_refused_by_name(changed, named):
    with pytest.raises(ValueError, match=f"VLM-Pruner: .*{named}.*VLLM_PLUGINS"):
        refusals.check_engine(config(**changed), keeps_positions=True)


def test_other_settings_pass():
    for changed in ({}, {"eagle": False}, {"tower_lora": False}):
        refusals.check_engine(config(**changed), keeps_positions=True)
    refusals.check_engine(config(ranks=2), keeps_positions=False)


def test_the_operators_options(monkeypatch):
    options.options.cache_clear()
    assert options.options() == options.Options()
    monkeypatch.setenv(options.POSITIONS, "renumbered")
    monkeypatch.setenv(options.ALLOW, "size, num_crops,")
    options.options.cache_clear()
    assert options.options() == options.Options(False, frozenset({"size", "num_crops"}))
    monkeypatch.setenv(options.POSITIONS, "shuffled")
    options.options.cache_clear()
    with pytest.raises(ValueError, match="VLM_PRUNER_POSITIONS='shuffled' is neither"):
        options.options()
    options.options.cache_clear()
