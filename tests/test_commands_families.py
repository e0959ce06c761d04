"""Every command that takes --model, on a saved checkpoint of every family, processor included."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from transformers.utils import is_torchvision_available

from llava.eval import model_vqa_loader
from tests import checkpoints, llava_tiny
from vlm_pruner import cli

HERE = [name for name in checkpoints.HF if name != "mistral3" or is_torchvision_available()]


@pytest.fixture(scope="module", params=HERE)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoints.write(tmp_path_factory.mktemp(request.param) / "model", request.param))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    llava_tiny.picture(3).resize((140, 100)).save(path)
    return str(path)


def test_ask_answers_dense_and_pruned(checkpoint: str, photo: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "answer.json"
    command = ["ask", photo, "--question", "What is there", "--model", checkpoint, "--keep", "5", "--layer", "1"]
    assert cli.main([*command, "--max-new-tokens", "2", "--json", str(out), "--out", str(tmp_path)]) == 0, capsys
    answers = json.loads(out.read_text())["answers"]
    assert answers["dense"]["visual_tokens"] == answers["pruned"]["visual_tokens"] > answers["pruned"]["kept"] > 0
    assert answers["pruned"]["images"] and (tmp_path / "kept.png").is_file()


def test_show_draws_what_was_kept(checkpoint: str, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "kept.png"
    command = [
        "show",
        photo,
        "--model",
        checkpoint,
        "--keep",
        "5",
        "--method",
        "vlm-pruner,random",
        "--out",
        str(out),
    ]
    assert cli.main(command) == 0 and out.is_file()


@pytest.mark.skipif(is_torchvision_available(), reason="the processor is complete here")
def test_a_processor_that_needs_torchvision_says_so_in_one_line(photo: str, tmp_path: Path, capsys) -> None:
    checkpoint = str(checkpoints.write(tmp_path / "model", "mistral3"))
    capsys.readouterr()
    assert cli.main(["ask", photo, "--question", "What", "--model", checkpoint]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert checkpoint in error and "requires the Torchvision library" in error and "pip install torchvision" in error


def test_compare_and_the_generators_load_what_transformers_5_saves(photo: str, tmp_path: Path, capsys) -> None:
    """The processor in processor_config.json alone."""
    checkpoint, data = checkpoints.write(tmp_path / "model", "llava"), tmp_path / "questions"
    assert (checkpoint / "processor_config.json").is_file() and not (checkpoint / "preprocessor_config.json").exists()
    (data / "images").mkdir(parents=True)
    (data / "images" / "photo.png").write_bytes(Path(photo).read_bytes())
    line = {"question_id": 1, "image": "photo.png", "text": "What is there", "kind": "any", "answer": "w1"}
    (data / "questions.jsonl").write_text(json.dumps(line) + "\n")
    command = ["compare", "--model", str(checkpoint), "--questions-file", str(data / "questions.jsonl")]
    command += ["--methods", "dense,vlm-pruner", "--budget", "6", "--resamples", "20", "--processes", "1"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    flags = ["--model-path", str(checkpoint), "--image-folder", str(data / "images"), "--max_new_tokens", "2"]
    flags += ["--question-file", str(data / "questions.jsonl"), "--answers-file", str(tmp_path / "answers.jsonl")]
    assert model_vqa_loader.main([*flags, "--sparse", "--keep_tokens", "6"]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "answers.jsonl").read_text())["metadata"]["kept"] == 6


def test_the_page_opens_it(checkpoint: str, photo: str) -> None:
    """Without the server: the session is what answers, and the page's methods are those that fit the model."""
    from vlm_pruner.asking import load
    from vlm_pruner.images import read_image
    from vlm_pruner.web import settings

    chat = load(checkpoint)
    names = settings.usable_methods(chat)
    assert names[0] == "vlm-pruner"
    method = settings.make(chat, names[0], 5, 1)
    assert chat.visual_tokens(read_image(photo)) > chat.ask(read_image(photo), "What", method, max_new_tokens=1).kept


def test_the_embedded_model_says_that_it_knows_only_its_own_world(photo: str, capsys) -> None:
    from vlm_pruner.commands import options
    from vlm_pruner.experiments.mini import CHECKPOINT

    own, other = Image.new("RGB", (336, 336)), Image.open(photo)
    here = os.path.relpath(CHECKPOINT)
    cases = ((CHECKPOINT, other, True), (here, other, True), (CHECKPOINT, own, False), ("elsewhere", other, False))
    for model, picture, warned in cases:
        options.warn_of_other_worlds(str(model), [picture])
        assert ("knows only the scenes of its own world" in capsys.readouterr().err) == warned
