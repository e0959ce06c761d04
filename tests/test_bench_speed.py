"""`vlm-pruner bench`: shapes, prompts, figures and refusals."""

from __future__ import annotations

import json

import pytest
import torch

from tests.families import FAMILIES
from vlm_pruner import cli
from vlm_pruner.experiments.arms import make_arms
from vlm_pruner.speed import models
from vlm_pruner.speed.summary import _p95, break_even, ratio
from vlm_pruner.speed.timing import check_cache, peak_cpu_bytes, run_once
from vlm_pruner.speed.workload import make_workload

# Parameters of the published checkpoints, in millions, an output head that shares its weights counted once.
PARAMETERS = {"llava-1.5-7b": 7063, "llava-1.5-13b": 13351, "llava-next-7b": 7063}
PARAMETERS |= {"qwen2-vl-2b": 2209, "qwen2-vl-7b": 8291, "qwen2.5-vl-7b": 8292}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_shapes_have_the_published_number_of_parameters(name):
    model = models.build(name, device="meta", dtype=torch.bfloat16)
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6) == PARAMETERS[name]
    assert torch.get_default_dtype() == torch.float32


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="unknown model 'llava-9'"):
        models.build("llava-9")


def test_a_family_without_a_synthetic_prompt_is_named():
    model = next(family for family in FAMILIES if family.name == "llava_qwen").build()
    with pytest.raises(ValueError, match="no synthetic prompt for model type 'llava_qwen'; known: internvl, llava,"):
        make_workload(model, 16, 7, 2)


TIMED = [family for family in FAMILIES if family.name != "llava_qwen"]


@pytest.mark.parametrize("family", TIMED, ids=lambda family: family.name)
def test_every_family_is_timed_in_parts(family):
    model = family.build()
    work = make_workload(model, 16, 7, 2)
    dense, pruned = make_arms(["dense", "vlm-pruner"], [6], 16)
    runs = [run_once(model, work, arm, 3) for arm in (dense, pruned)]
    assert runs[1].steps == [[2, 6]] and runs[0].steps == []
    assert runs[0].kv_bytes > runs[1].kv_bytes
    for run in runs:
        seconds = run.seconds
        assert seconds["vision"] > 0 and 0 < seconds["prefill"] < seconds["first_token"] < seconds["end_to_end"]
        assert seconds["first_token"] + 2 * seconds["per_token"] < 1.001 * seconds["end_to_end"]
    assert 0 < runs[1].seconds["selection"] < runs[1].seconds["prefill"]
    assert "selection" not in runs[0].seconds


def test_the_cache_must_be_on():
    model = FAMILIES[0].build()
    check_cache(model)
    model.config.get_text_config().use_cache = False
    with pytest.raises(ValueError, match="use_cache=False"):
        check_cache(model)


def test_peak_memory_is_what_was_held_at_once():
    def run():
        for _ in range(3):
            torch.zeros(250_000)  # a million bytes, given back before the next

    assert 1e6 <= peak_cpu_bytes(run) < 1.5e6


def test_ratios_and_percentiles():
    assert _p95([5, 1, 4, 2, 3]) == 5 and _p95(range(40)) == 37
    found = ratio([2.0, 2.2, 1.8, 2.0], [1.0, 1.1, 0.9, 1.0])
    assert found["value"] == pytest.approx(2) and found["low"] <= 2 <= found["high"]
    assert ratio([3.0] * 5, [1.0] * 5) == {"value": 3, "low": 3, "high": 3}
    assert ratio([2.0, 4.0, 2.0], [1.0, 2.0, 2.0])["value"] == 2  # a pace that changed once, within the last round


def _case(visual, dense, pruned):
    figure = {"median": pruned, "ratio": {"value": dense / pruned}, "predicted_ratio": None}
    arms = [{"figures": {"prefill": {"median": dense}}}, {"tokens": 4, "figures": {"prefill": figure}}]
    return {"visual": visual, "arms": arms}


def test_break_even_lies_between_loss_and_gain():
    cases = [_case(64, 1.0, 1.5), _case(128, 2.0, 1.5), _case(256, 4.0, 2.0)]
    assert break_even("m", 0.1, 1, cases)["visual"] == 96
    assert break_even("m", 0.1, 1, cases[1:])["visual"] == 128
    assert break_even("m", 0.1, 1, cases[:1])["visual"] is None


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    command = "bench --layers 3 --visual-tokens 64 --budgets 16 --rounds 2 --new-tokens 3 --break-even 36"
    command += " --methods vlm-pruner:token_batch=16:threshold=0.7"
    assert cli.main([*command.split(), "--machine", "1e11,1e10", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    dense, pruned = results["cases"][0]["arms"]
    assert pruned["steps"] == [[2, 16]]
    for arm in (dense, pruned):
        assert arm["figures"]["kv_bytes"]["median"] == arm["figures"]["kv_bytes"]["predicted"]
    assert pruned["figures"]["prefill"]["ratio"]["value"] > 0
    assert results["machine"]["flops"] == 1e11 and results["environment"]["versions"]["torch"]
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines() if not line.startswith("  /"))
    assert (tmp_path / "speed.png").stat().st_size > 1000
