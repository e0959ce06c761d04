"""--budget in the answer generators and the demo: answers are made with the requested budget."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from llava.eval import evaluate, model_vqa_loader, options
from tests.test_eval_engine import checkpoint, data, read, run  # noqa: F401  (fixtures)
from vlm_pruner.commands import demo_run
from vlm_pruner.cost import accounting
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.errors import PruningError

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "playground" / "mini" / "checkpoint"


def method_of(*flags: str):
    """As a generator makes it for the embedded checkpoint, of which the configuration alone is read."""
    paths = ["--model-path", str(MINI), "--question-file", "unused", "--answers-file", "unused"]
    return options.build_method(evaluate.build_parser(model_vqa_loader.TASK).parse_args([*paths, *flags]))


def test_tokens_and_ratios_are_settings_as_they_stand():
    assert method_of("--sparse", "--budget", "64").keep_tokens == 64
    assert method_of("--sparse", "--budget", "ratio:0.889", "--token_batch", "16").config()["token_batch"] == 16
    assert method_of("--sparse", "--budget", "ratio:0.889").reduction_ratio == 0.889


@pytest.mark.parametrize("name", ["vlm-pruner", "pyramiddrop", "divprune"])
def test_what_depends_on_the_model_is_solved_for_it(name, capsys):
    shape = DecoderShape.of(options_config())
    for word, measure in (("avg:300", "average_tokens"), ("flops:0.6", "flops_share")):
        method = method_of("--sparse", "--method", name, "--budget", word)
        spent = getattr(accounting.of_method(method, 576, 64, shape), measure)
        limit = float(word.partition(":")[2])
        assert 0.98 * limit < spent <= limit
        assert f"budget {word}: keep_tokens={method.keep_tokens}" in capsys.readouterr().err


def options_config():
    from llava.model.builder import open_checkpoint

    return open_checkpoint(MINI).config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sparse", "--budget", "64", "--keep_tokens", "64"], "--budget 64 and --keep_tokens are both given"),
        (
            ["--sparse", "--budget", "64", "--reduction_ratio", "0.5"],
            "--budget 64 and --reduction_ratio are both given",
        ),
        (["--budget", "64"], "--budget prunes only together with --sparse"),
        (["--sparse", "--budget", "half"], "budget 'half' is not understood"),
        (["--sparse", "--budget", "avg:10"], "budget avg:10 cannot be met by vlm-pruner with layer=2"),
        (["--sparse"], "--keep_tokens or --budget"),
    ],
)
def test_contradictions_are_told_before_a_model_is_loaded(flags, message):
    with pytest.raises((ValueError, PruningError), match=message):
        method_of(*flags)


def test_the_answers_say_what_was_kept(checkpoint, data, tmp_path):  # noqa: F811
    answers = tmp_path / "answers.jsonl"
    assert run(checkpoint, data, answers, "--sparse", "--budget", "ratio:0.9") == 0
    assert {line["metadata"]["kept"] for line in read(answers)} == {round(576 * 0.1)}
    meta = json.loads(answers.with_name("answers.jsonl.meta.json").read_text())
    assert meta["config"]["method"]["reduction_ratio"] == 0.9


def test_the_main_job_takes_every_convention():
    parser = argparse.ArgumentParser()
    demo_run.add_arguments(parser)
    assert parser.parse_args(["--budget", "64,avg:300,flops:0.6"]).budgets == ["64", "avg:300", "flops:0.6"]
    assert parser.parse_args([]).budgets == ["192", "128", "64"]
