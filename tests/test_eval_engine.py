"""The real engine behind the loaders' command lines, on the conformance kit's tiny checkpoint with a toy tokenizer."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conformance import llava_checkpoint
from PIL import Image

from llava.eval import evaluate, model_vqa_loader, model_vqa_science, options, run_llava
from llava.eval.checkpoint import Checkpoint, load_checkpoint
from llava.eval.engine import LlavaEngine
from llava.eval.errors import ItemError
from llava.eval.questions import Question
from tests.every_method import of_pictures

LAYERS, VISUAL_TOKENS = 4, 576


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_checkpoint(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions of three lengths over pictures of two shapes."""
    folder = tmp_path_factory.mktemp("data")
    for number, size in enumerate([(60, 40), (40, 60)]):
        Image.effect_noise(size, 80).convert("RGB").save(folder / f"{number}.png")
    texts = ["w1", "w1 w2", "w3 w4", "w5", "w1 w2 w3", "w6"]
    lines = [{"question_id": i, "image": f"{i % 2}.png", "text": text} for i, text in enumerate(texts)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(checkpoint: Path, data: Path, answers: Path, *more: str) -> int:
    paths = ["--model-path", str(checkpoint), "--image-folder", str(data), "--answers-file", str(answers)]
    fixed = ["--question-file", str(data / "questions.jsonl"), "--max_new_tokens", "4", "--device", "cpu"]
    return model_vqa_loader.main([*paths, *fixed, *more])


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ARMS = ["dense", *of_pictures()]


def flags_of(arm: str) -> list[str]:
    return [] if arm == "dense" else ["--sparse", "--method", arm, "--keep_tokens", "64"]


@pytest.fixture(scope="module")
def loaded(checkpoint: Path, data: Path) -> Checkpoint:
    return load_checkpoint(arguments(checkpoint, data, "unused"))


def arguments(checkpoint: Path, data: Path, answers: str, *more: str) -> argparse.Namespace:
    paths = ["--model-path", str(checkpoint), "--image-folder", str(data), "--answers-file", answers]
    fixed = ["--question-file", "unused", "--max_new_tokens", "4", "--device", "cpu"]
    return evaluate.build_parser(model_vqa_loader.TASK).parse_args([*paths, *fixed, *more])


def engine(loaded: Checkpoint, checkpoint: Path, data: Path, arm: str) -> LlavaEngine:
    args = arguments(checkpoint, data, "unused", *flags_of(arm))
    return LlavaEngine(loaded, options.build_method(args), args)


RAGGED = [
    Question(0, "a", "w1", "", ("0.png",)),
    Question(1, "b", "w1 w2 w3 w4 w5 w6 w7", "", ("1.png",)),
    Question(2, "text only", "w3 w4 w9", ""),
    Question(3, "two pictures", "w5 w6", "", ("1.png", "0.png")),
    Question(4, "c", "w3 w4", "", ("0.png",)),
]


@pytest.mark.parametrize("arm", ARMS)
def test_ragged_batches_give_the_answers_of_one_by_one(
    loaded: Checkpoint, checkpoint: Path, data: Path, arm: str
) -> None:
    """One left-padded call for different lengths, text-only questions and several pictures: the same tokens."""
    llava = engine(loaded, checkpoint, data, arm)
    items = [llava.prepare(question) for question in RAGGED]
    alone = [llava.generate([item])[0] for item in items]
    assert llava.generate(items) == alone
    assert len({reply.text for reply in alone}) > 1, "answers that do not differ would hide a mix-up"
    tokens = [VISUAL_TOKENS * len(question.images) for question in RAGGED]
    assert [reply.metadata["visual_tokens"] for reply in alone] == tokens
    if arm != "dense":
        kept = [reply.metadata["kept"] for reply in alone]
        assert 0 < kept[0] <= 64, "methods of several stages keep less than their mean in the last one"
        assert kept == [kept[0] * len(question.images) for question in RAGGED]


@pytest.mark.parametrize("arm", ["dense", "vlm-pruner", "random"])
def test_batched_runs_write_the_same_file(checkpoint: Path, data: Path, tmp_path: Path, arm: str) -> None:
    assert run(checkpoint, data, tmp_path / "one.jsonl", *flags_of(arm)) == 0
    assert run(checkpoint, data, tmp_path / "four.jsonl", *flags_of(arm), "--batch-size", "4") == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "four.jsonl").read_bytes()
    metadata = read(tmp_path / "one.jsonl")[0]["metadata"]
    assert metadata["method"] == arm and metadata["visual_tokens"] == VISUAL_TOKENS
    assert arm == "dense" or (metadata["kept"], metadata["layer"]) == (64, 2)
    if arm != "dense":  # 576 tokens in the first two layers, 64 from there on
        assert metadata["average_tokens"] == (2 * VISUAL_TOKENS + (LAYERS - 2) * 64) / LAYERS
        assert 0 < metadata["flops_share"] < 1 and metadata["kv_bytes"] > 0


def test_beam_search_in_batches(loaded: Checkpoint, checkpoint: Path, data: Path) -> None:
    llava = engine(loaded, checkpoint, data, "vlm-pruner")
    llava.args.num_beams = 2
    items = [llava.prepare(question) for question in RAGGED]
    assert llava.generate(items) == [llava.generate([item])[0] for item in items]


def test_pruning_of_other_tokens_than_the_pictures_is_a_defect(
    loaded: Checkpoint, checkpoint: Path, data: Path
) -> None:
    llava = engine(loaded, checkpoint, data, "random")
    item = llava.prepare(RAGGED[0])
    with pytest.raises(RuntimeError, match="but the pictures start at"):
        llava.generate([replace(item, positions=(item.positions[0] + 1,))])


def test_image_marks_in_a_question_are_refused(loaded: Checkpoint, checkpoint: Path, data: Path) -> None:
    llava = engine(loaded, checkpoint, data, "dense")
    with pytest.raises(ItemError, match="1 <image> marks of its own"):
        llava.prepare(Question(0, 0, "w1 <image> w2", "", ("0.png",)))


def test_scienceqa_with_and_without_pictures(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "w1 w2\n<image>"}]
    questions = [{"id": "1", "image": "0.png", "conversations": turns}, {"id": "2", "conversations": turns}]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    flags = ["--model-path", str(checkpoint), "--image-folder", str(data), "--device", "cpu", "--batch-size", "2"]
    files = ["--question-file", str(tmp_path / "questions.json"), "--answers-file", str(tmp_path / "answers.jsonl")]
    assert model_vqa_science.main([*flags, *files, "--single-pred-prompt", "--max_new_tokens", "2"]) == 0
    pictured, text_only = read(tmp_path / "answers.jsonl")
    assert pictured["prompt"] == "<image>\n" + text_only["prompt"]
    assert (pictured["metadata"]["visual_tokens"], text_only["metadata"]["visual_tokens"]) == (VISUAL_TOKENS, 0)


@pytest.mark.parametrize("pictures", [["0.png"], ["0.png", "1.png"]])
def test_run_llava_prints_the_answer(
    checkpoint: Path, data: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = ",".join(str(data / name) for name in pictures)
    flags = ["--model-path", str(checkpoint), "--device", "cpu", "--max_new_tokens", "3", "--query", "w1 w2"]
    assert run_llava.main([*flags, "--image-file", files, "--sparse", "--keep_tokens", "64"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip()
    assert f"{64 * len(pictures)} of {576 * len(pictures)} visual tokens kept" in shown.err
    assert run_llava.main([*flags, "--image-file", str(data / "missing.png")]) == 2
    assert "missing.png does not exist" in capsys.readouterr().err


def test_device_map_auto(checkpoint: Path, data: Path, loaded: Checkpoint) -> None:
    pytest.importorskip("accelerate")
    args = arguments(checkpoint, data, "unused", *flags_of("vlm-pruner"), "--device-map", "auto")
    args.device = None
    spread = LlavaEngine.from_arguments(args, options.build_method(args))
    plain = engine(loaded, checkpoint, data, "vlm-pruner")
    assert spread.generate([spread.prepare(RAGGED[0])]) == plain.generate([plain.prepare(RAGGED[0])])


def test_true_statements_about_the_image_pass(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    start = find_image_start(checkpoint)
    stated = ["--image_token_start_index", str(start), "--image_token_length", str(VISUAL_TOKENS), "--limit", "1"]
    assert run(checkpoint, data, tmp_path / "a.jsonl", *stated) == 0


def find_image_start(checkpoint: Path) -> int:
    from transformers import AutoTokenizer

    from llava.eval.prompts import build_prompt

    before = build_prompt("?", "vicuna_v1").partition("<image>")[0]
    return len(AutoTokenizer.from_pretrained(checkpoint)(before).input_ids)


WRONG = [
    (["--image_token_start_index", "35"], "--image_token_start_index 35 was given, but"),
    (["--image_token_length", "2880"], f"2880 was given, but llava-tiny makes {VISUAL_TOKENS} visual tokens"),
    (["--sparse", "--keep_tokens", "64", "--pruned_layer", "4"], f"llava-tiny has {LAYERS} layers"),
    (["--sparse", "--keep_tokens", "577"], "has only 576 visual tokens"),
    (["--model-path", "nowhere"], "nowhere"),
    (["--device-map", "auto"], "--device cpu and --device-map auto: give one of them"),
    (["--device", "gpu"], "--device gpu is not a device"),
    (["--device", "cuda:99"], "--device cuda:99 is not here"),
]


@pytest.mark.parametrize(("more", "expected"), WRONG, ids=[" ".join(more) for more, _ in WRONG])
def test_flags_that_do_not_fit_the_model_are_one_line(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    assert run(checkpoint, data, tmp_path / "a.jsonl", *more) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert expected in error[-1] and "Traceback" not in "".join(error)
    assert not (tmp_path / "a.jsonl").exists() or read(tmp_path / "a.jsonl") == []


def test_running_out_of_memory_names_the_batch_size(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: object) -> None:
        raise torch.OutOfMemoryError("device memory")

    monkeypatch.setattr(LlavaEngine, "generate_ids", exhausted)
    assert run(checkpoint, data, tmp_path / "a.jsonl", "--batch-size", "3") == 2
    assert "out of memory with --batch-size 3" in capsys.readouterr().err


def test_an_over_long_prompt_is_recorded(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    long = {"question_id": 9, "image": "0.png", "text": "w1 " * 1600}
    questions = (data / "questions.jsonl").read_text().splitlines()[:1]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "0.png").symlink_to(data / "0.png")
    (folder / "questions.jsonl").write_text("\n".join([json.dumps(long), *questions]) + "\n")
    assert run(checkpoint, folder, tmp_path / "a.jsonl") == 1
    lines = read(tmp_path / "a.jsonl")
    assert "tokens with its picture" in lines[0]["error"] and "error" not in lines[1]
