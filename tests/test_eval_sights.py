"""Answer generators with a smaller picture (--method resize) and without one (--method blind)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llava.eval import options, run_llava
from llava.eval.checkpoint import Checkpoint
from llava.eval.engine import LlavaEngine
from llava.eval.questions import Question
from tests.test_eval_engine import RAGGED, arguments, checkpoint, data, engine, loaded, read, run  # noqa: F401
from vlm_pruner.commands.reproduce import arms_of
from vlm_pruner.errors import PruningError
from vlm_pruner.llava.sights import Sight, largest_grid
from vlm_pruner.report.paper_results import read_results, rows_of

RESIZE = ["--sparse", "--method", "resize"]


@pytest.mark.parametrize("side", [1, 2, 7, 24])
def test_the_largest_grid_is_the_largest(side: int) -> None:
    allowed = [(n, m) for n in range(1, side + 1) for m in (n, n + 1) if m <= side]
    for tokens in range(1, side**2 + 1):
        rows, columns = largest_grid(tokens, side)
        assert (rows, columns) in allowed
        assert rows * columns == max(n * m for n, m in allowed if n * m <= tokens)


def test_a_budget_is_a_share_or_a_number() -> None:
    assert Sight("resize", reduction_ratio=0.889).grid(24) == (8, 8) == Sight("resize", keep_tokens=64).grid(24)
    assert Sight("resize", reduction_ratio=0.0).grid(24) == (24, 24) and Sight("resize", keep_tokens=1).grid(24) == (
        1,
        1,
    )
    for given in ({}, {"reduction_ratio": 0.5, "keep_tokens": 4}, {"reduction_ratio": 1.0}, {"keep_tokens": 0}):
        with pytest.raises(PruningError):
            Sight("resize", **given)
    with pytest.raises(PruningError, match="576 visual tokens"):
        Sight("resize", keep_tokens=577).grid(24)


def sighted(loaded: Checkpoint, checkpoint: Path, data: Path, *flags: str) -> LlavaEngine:  # noqa: F811
    args = arguments(checkpoint, data, "unused", *flags)
    return LlavaEngine(loaded, options.build_method(args), args)


def test_ragged_batches_give_the_answers_of_one_by_one(loaded, checkpoint, data) -> None:  # noqa: F811
    for flags in ([*RESIZE, "--keep_tokens", "130"], ["--sparse", "--method", "blind"]):
        llava = sighted(loaded, checkpoint, data, *flags)
        items = [llava.prepare(question) for question in RAGGED]
        alone = [llava.generate([item])[0] for item in items]
        assert llava.generate(items) == alone
        each = 11 * 11 if flags[2] == "resize" else 0
        assert [reply.metadata["visual_tokens"] for reply in alone] == [each * len(q.images) for q in RAGGED]
        assert {reply.metadata["method"] for reply in alone} == {flags[2]}


def test_blind_is_the_question_without_its_picture(loaded, checkpoint, data) -> None:  # noqa: F811
    blind, dense = (
        sighted(loaded, checkpoint, data, "--sparse", "--method", "blind"),
        engine(loaded, checkpoint, data, "dense"),
    )
    for question in RAGGED:
        text = Question(question.index, "x", question.asked, "")
        asked, alone = blind.prepare(question), dense.prepare(text)
        assert torch.equal(asked.input_ids, alone.input_ids) and asked.pixels == ()
        assert blind.generate([asked])[0].text == dense.generate([alone])[0].text


def test_the_whole_picture_resized_is_the_whole_picture(loaded, checkpoint, data) -> None:  # noqa: F811
    whole, dense = (
        sighted(loaded, checkpoint, data, *RESIZE, "--reduction_ratio", "0"),
        engine(loaded, checkpoint, data, "dense"),
    )
    torch.testing.assert_close(whole.prepare(RAGGED[0]).pixels[0], dense.prepare(RAGGED[0]).pixels[0])
    assert whole.generate([whole.prepare(RAGGED[0])])[0].text == dense.generate([dense.prepare(RAGGED[0])])[0].text


def test_the_file_says_what_was_shown(checkpoint, data, tmp_path) -> None:  # noqa: F811
    """And another budget is another run."""
    answers = tmp_path / "answers.jsonl"
    assert run(checkpoint, data, answers, *RESIZE, "--reduction_ratio", "0.889") == 0
    assert all(
        line["metadata"] == {"index": i, "method": "resize", "visual_tokens": 64}
        for i, line in enumerate(read(answers))
    )
    meta = json.loads(answers.with_name("answers.jsonl.meta.json").read_text())["config"]["method"]
    assert meta == {"name": "resize", "reduction_ratio": 0.889, "keep_tokens": None}
    assert run(checkpoint, data, answers, *RESIZE, "--reduction_ratio", "0.7") == 2
    assert (
        run(checkpoint, data, tmp_path / "blind.jsonl", "--sparse", "--method", "blind", "--reduction_ratio", "0.9")
        == 0
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--keep_tokens", "64", "--threshold", "0.8"], "--threshold 0.8 means nothing to --method resize"),
        ([], "resize needs a budget"),
        (["--keep_tokens", "6.5"], "--keep_tokens"),
        (["--keep_tokens", "577"], "576 visual tokens"),
        (["--budget", "flops:0.3"], "--method resize takes tokens or ratio"),
    ],
)
def test_flags_that_do_not_fit(flags: list[str], said: str, checkpoint, data, tmp_path, capsys) -> None:  # noqa: F811
    assert run(checkpoint, data, tmp_path / "a.jsonl", *RESIZE, *flags) == 2
    assert said in capsys.readouterr().err


def test_one_question_too(checkpoint, data, capsys) -> None:  # noqa: F811
    """`run_llava` shows the smaller picture as well."""
    flags = ["--model-path", str(checkpoint), "--image-file", str(data / "0.png"), "--query", "w1", "--device", "cpu"]
    flags += ["--max_new_tokens", "4"]
    assert run_llava.main([*flags, *RESIZE, "--budget", "16"]) == 0
    small = capsys.readouterr().out
    assert run_llava.main(flags) == 0 and capsys.readouterr().out != small


def test_the_whole_table_takes_them() -> None:
    arms = list(arms_of("resize blind", "0.667 0.889"))
    assert [arm.label for arm in arms] == ["dense", "resize 0.667", "resize 0.889", "blind 0.667"]


def test_their_scores_are_rows(tmp_path) -> None:
    for name, ratio, keep in (("resize", 0.889, None), ("blind", None, 0)):
        run_of = {
            "config": {
                "model_path": "llava-v1.5-7b",
                "method": {"name": name, "reduction_ratio": ratio, "keep_tokens": keep},
            }
        }
        result = {"benchmark": "pope", "headline": {"value": 50.0, "stderr": 1.0}, "n": 10, "failed": 0, "run": run_of}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    rows = {row.label: row.budget.kept for row in rows_of(read_results([tmp_path]))}
    assert rows == {"resize": 11.1, "blind": 0.0}
