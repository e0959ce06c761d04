"""The evaluation of a LLaVA-NeXT checkpoint: its budget flag, and answers about pictures of different shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import evaluate, model_vqa_loader, options
from llava.eval.errors import UsageError
from tests import llava_tiny
from tests.tiny_llava_next import EXTREME, SIZES, original_config, tiny_llava_next, write_original


def flags(model_path: object, *more: str) -> list[str]:
    needed = ["--model-path", str(model_path), "--question-file", "q", "--answers-file", "a", "--sparse"]
    return [*needed, "--retain_token_num_for_llava_next", "320", *more]


def budget(model_path: object, *more: str) -> tuple[float | None, int | None]:
    method = options.build_method(evaluate.build_parser(model_vqa_loader.TASK).parse_args(flags(model_path, *more)))
    assert method is not None
    return method.reduction_ratio, method.keep_tokens


@pytest.mark.parametrize("config", [original_config(), {"model_type": "llava_next"}])
def test_the_flag_is_the_budget_of_llava_next(tmp_path, config):
    llava_tiny.write_json(tmp_path / "config.json", config)
    assert budget(tmp_path) == (None, 320)
    assert budget(tmp_path, "--reduction_ratio", "0.889") == (None, 320)
    assert budget(tmp_path, "--keep_tokens", "320") == (None, 320)
    with pytest.raises(UsageError, match="--keep_tokens 64 and --retain_token_num_for_llava_next 320 disagree"):
        budget(tmp_path, "--keep_tokens", "64")


def test_the_flag_means_nothing_to_other_models(tmp_path):
    llava_tiny.write_json(tmp_path / "llava-v1.6" / "config.json", llava_tiny.CONFIG)
    assert budget(tmp_path / "llava-v1.6", "--reduction_ratio", "0.889") == (0.889, None)
    with pytest.raises(UsageError, match="needs a budget"):
        budget(tmp_path / "llava-v1.6")


def test_without_a_configuration_the_name_tells(tmp_path):
    assert budget(tmp_path / "llava-v1.6-vicuna-7b") == (None, 320)
    assert budget(tmp_path / "llava-v1.5-7b", "--reduction_ratio", "0.5") == (0.5, None)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A checkpoint, and a question about a picture of each shape."""
    root = tmp_path_factory.mktemp("next")
    llava_tiny.write_tokenizer(write_original(tiny_llava_next(), root))
    questions = []
    for index, size in enumerate([*SIZES, EXTREME[0]]):
        llava_tiny.picture(index, size).save(root / f"{index}.png")
        questions.append(json.dumps({"question_id": index, "image": f"{index}.png", "text": f"w{index} w3"}))
    (root / "questions.jsonl").write_text("\n".join(questions))
    return root


def answers(world: Path, name: str, *more: str, code: int = 0) -> list[dict]:
    arguments = ["--model-path", world / "llava", "--question-file", world / "questions.jsonl"]
    arguments += ["--answers-file", world / name, "--image-folder", world, "--max_new_tokens", "3", "--device", "cpu"]
    assert model_vqa_loader.main([*map(str, arguments), *more]) == code
    return [json.loads(line) for line in (world / name).read_text().splitlines()]


def test_answers_about_every_shape(world):
    dense = answers(world, "dense.jsonl")
    assert len({line["text"] for line in dense}) > 1 and not any("error" in line for line in dense)
    pruned = answers(world, "pruned.jsonl", "--sparse", "--retain_token_num_for_llava_next", "20")
    assert [line["metadata"]["kept"] for line in pruned] == [20] * 6
    assert len({line["metadata"]["visual_tokens"] for line in pruned}) > 3
    share = answers(world, "share.jsonl", "--sparse", "--reduction_ratio", "0.8")
    assert [line["metadata"]["kept"] for line in share] == [
        round(0.2 * line["metadata"]["visual_tokens"]) for line in share
    ]  # fmt: skip


def test_batches_of_different_shapes_give_the_same(world):
    one = answers(world, "one.jsonl", "--sparse", "--reduction_ratio", "0.8")
    four = answers(world, "four.jsonl", "--sparse", "--reduction_ratio", "0.8", "--batch-size", "4")
    assert one == four


def test_what_does_not_fit_is_an_error_of_the_item(world):
    """The flat picture has 36 tokens; the others have more."""
    pruned = answers(world, "many.jsonl", "--sparse", "--keep_tokens", "50", code=1)
    assert [line["question_id"] for line in pruned if "error" in line] == [5]
    assert "only 36 visual tokens" in pruned[5]["error"]
    config = json.loads((world / "llava" / "config.json").read_text())
    llava_tiny.write_json(world / "llava" / "config.json", {**config, "tokenizer_model_max_length": 200})
    dense = answers(world, "short.jsonl", code=1)
    llava_tiny.write_json(world / "llava" / "config.json", config)
    tokens = [line["metadata"]["visual_tokens"] for line in answers(world, "dense.jsonl")]
    assert ["error" in line for line in dense] == [count + 35 > 200 for count in tokens]
