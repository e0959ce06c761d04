"""The real engine behind the loader's command line, on the conformance kit's tiny checkpoint with a toy tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conformance import conformance
from PIL import Image

from llava.eval import model_vqa_loader
from llava.eval.engine import LlavaEngine

LAYERS, VISUAL_TOKENS = 4, 576


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit's checkpoint holds no tokenizer; this one knows the prompt's words."""
    source = conformance("llava")
    root = tmp_path_factory.mktemp("checkpoints")
    (root / "clip-tiny-336").symlink_to(source / "clip-tiny-336")
    folder = root / "llava-tiny"
    folder.mkdir()
    for file in (source / "llava-tiny").iterdir():
        (folder / file.name).symlink_to(file)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """One token per word, 512 in all: `<s>`, `</s>`, `<unk>`, a few words of prompts, and fillers to be generated."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "A", "chat", "between", "a", "curious", "user", "and", "an", "artificial", "USER"]
    vocabulary = {word: index for index, word in enumerate([*words, *(f"w{i}" for i in range(512 - len(words)))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    fast.save_pretrained(folder)


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


ARMS = {
    "dense": [],
    "vlm-pruner": ["--sparse", "--reduction_ratio", "0.889", "--threshold", "0.8", "--token_batch", "16"],
    "random": ["--sparse", "--method", "random", "--keep_tokens", "64"],
}


@pytest.mark.parametrize("arm", ARMS)
def test_batches_give_the_answers_of_one_by_one(checkpoint: Path, data: Path, tmp_path: Path, arm: str) -> None:
    assert run(checkpoint, data, tmp_path / "one.jsonl", *ARMS[arm]) == 0
    assert run(checkpoint, data, tmp_path / "four.jsonl", *ARMS[arm], "--batch-size", "4") == 0
    one, four = read(tmp_path / "one.jsonl"), read(tmp_path / "four.jsonl")
    assert [line["text"] for line in one] == [line["text"] for line in four]
    assert one == four and all(len(line["text"].split()) > 0 for line in one)
    metadata = one[0]["metadata"]
    assert metadata["method"] == arm and metadata["visual_tokens"] == VISUAL_TOKENS
    assert arm == "dense" or (metadata["kept"], metadata["layer"]) == (64, 2)


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
    assert read(tmp_path / "a.jsonl") == []


def test_running_out_of_memory_names_the_batch_size(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: object) -> None:
        raise torch.OutOfMemoryError("device memory")

    monkeypatch.setattr(LlavaEngine, "_call", exhausted)
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
