"""The lines that reproduce an answer: the tests run them."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

import vlm_pruner as vp
from vlm_pruner.asking import load
from vlm_pruner.commands import ask
from vlm_pruner.experiments.mini import CHECKPOINT
from vlm_pruner.web.recipe import Recipe
from vlm_pruner.web.samples import samples

QUESTION = 'What\'s "written" in $HOME?\nAnswer.'


def test_the_shell_line_is_understood_by_the_command():
    method = vp.methods.get("fastv")(keep_tokens=32, layer=3)
    recipe = Recipe("models/a b", "it's mine.png", QUESTION, method, 8, "cuda", "bfloat16")
    program, command, *words = shlex.split(recipe.shell())
    parser = argparse.ArgumentParser()
    ask.add_arguments(parser)
    args = parser.parse_args(words)
    assert (program, command) == ("vlm-pruner", "ask")
    assert (args.images, args.question, args.method, args.layer) == (["it's mine.png"], QUESTION, "fastv", 3)
    assert (str(args.model), args.device, args.dtype, args.max_new_tokens) == ("models/a b", "cuda", "bfloat16", 8)
    assert str(args.keep) == "32"


def test_an_examples_path_can_be_typed_where_the_page_was_started(tmp_path, monkeypatch):
    (tmp_path / "mini" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "mini" / "images" / "0.png")
    question = {"question_id": 0, "image": "0.png", "kind": "existence", "answer": "no", "text": "Is there?"}
    (tmp_path / "mini" / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("vlm_pruner.console.ROOT", tmp_path)
    for here, known in ((tmp_path, "mini/images/0.png"), (tmp_path / "elsewhere", str(tmp_path / "mini/images/0.png"))):
        monkeypatch.chdir(here)
        (sample,) = samples(tmp_path)
        assert sample.upload.path == known and Path(known).is_file()


def test_the_python_lines_give_the_answers_again(tmp_path, capsys):
    if not (CHECKPOINT / "config.json").is_file():
        pytest.skip("the embedded model is not here")
    picture = Image.linear_gradient("L").convert("RGB")
    picture.save(tmp_path / "it's.png")
    method = vp.CentrifugalPruner(keep_tokens=16, layer=1)
    exec(Recipe(str(CHECKPOINT), str(tmp_path / "it's.png"), QUESTION, method, 4).python(), {})
    printed = capsys.readouterr().out
    chat = load(CHECKPOINT)
    dense, pruned = (chat.ask(picture, QUESTION, how, max_new_tokens=4) for how in (None, method))
    assert f"dense:  {dense.text}\npruned: {pruned.text}\n" in printed
    assert str(pruned.images[0].order) in printed
