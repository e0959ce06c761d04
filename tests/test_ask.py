"""`vlm-pruner ask` and `vlm-pruner show`, with tiny models of random weights, and their errors for bad input."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny_original, tiny_qwen
from vlm_pruner.asking.answer import Answer, in_a_sentence
from vlm_pruner.asking.original import OriginalChat
from vlm_pruner.asking.processed import ProcessedChat
from vlm_pruner.cli import main
from vlm_pruner.commands import options
from vlm_pruner.drawing.terminal import draw_cells, wants_ascii, wants_colour
from vlm_pruner.frames import end_to_end, evenly, read_film, read_frames
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.receipts import Kept

QUESTION = ["--question", "is there a red circle?"]


@pytest.fixture(scope="module")
def llava() -> OriginalChat:
    from llava.eval.checkpoint import Checkpoint

    return OriginalChat(Checkpoint("tiny", *tiny_original.parts(image_aspect_ratio="pad")))


class QwenProcessor:
    """Makes of every picture 3 x 4 tokens and of every video three steps of 2 x 2, whatever is on them."""

    chat_template = "there is one"
    video_processor: Any = "there is one"
    tokenizer = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> str:
        return ",".join(part["type"] for part in messages[0]["content"])

    def __call__(self, text: list[str], images: Any = (), videos: Any = (), **_: Any) -> Any:
        from transformers import BatchFeature

        kinds = text[0].split(",")
        assert (len(images), len(videos)) == (kinds.count("image"), kinds.count("video"))
        assert all(np.asarray(video).ndim == 4 for video in videos)
        visual = {"image": tiny_qwen.image(3, 4, 0), "video": tiny_qwen.video(3, 2, 2, 1)}
        prompt = [visual.get(kind, 3) for kind in kinds]
        return BatchFeature(tiny_qwen.inputs("qwen2_vl", prompt))


@pytest.fixture
def qwen() -> ProcessedChat:
    return ProcessedChat(tiny_qwen.build("qwen2_vl"), QwenProcessor(), "tiny-qwen")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def use(chat: Any) -> None:
        monkeypatch.setattr(options, "load_chat", lambda args: chat)

    return use


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    return str(path)


def ask(*arguments: str) -> int:
    return main(["ask", *arguments])


def test_one_question_dense_and_pruned(llava: Any, use: Any, photo: str, tmp_path: Path, capsys: Any) -> None:
    use(llava)
    out, results = tmp_path / "out", tmp_path / "results.json"
    assert ask(photo, *QUESTION, "--keep", "6", "--out", str(out), "--json", str(results)) == 0
    said = capsys.readouterr().out
    assert "6 of 16" in said and "dense:" in said and "after one untimed call of each" in said
    assert re.search(
        r"^(Same|Different) answer, first token \d+\.\d times as (fast|slow), KV cache -\d+ %$", said, re.M
    )
    assert f"{out / 'kept.png'}" in said and f"{out / 'kept.svg'}" in said
    assert "\x1b" not in said  # not a terminal
    values = json.loads(results.read_text())
    assert values["method"]["keep_tokens"] == 6 and values["warm_up"] is True
    pruned, dense = values["answers"]["pruned"], values["answers"]["dense"]
    full = f"dense: {dense['text']} vlm-pruner: {pruned['text']}"
    assert " ".join(said.split()).startswith(" ".join(full.split())), "the answers in full, wrapped"
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80
    assert len(pruned["images"][0]["order"]) == pruned["kept"] == 6
    assert dense["kept"] == dense["visual_tokens"] == 16 and dense["images"] == []
    assert Image.open(out / "kept.png").width > 700
    assert (out / "kept.svg").read_text().count('class="kept"') == 6


def test_two_answers_in_a_sentence() -> None:
    dense = Answer("Blue ", False, 3, 0.48, 0.6, 1000, 5, 16, 16)
    fast, slow = replace(dense, text="blue", first_token_seconds=0.15, kv_bytes=350), replace(dense, text="red")
    assert in_a_sentence(dense, fast) == "Same answer, first token 3.2 times as fast, KV cache -65 %"
    slow = replace(slow, first_token_seconds=0.96)
    assert in_a_sentence(dense, slow) == "Different answer, first token 2.0 times as slow, KV cache +0 %"


def test_several_pictures_have_a_picture_each(llava: Any, use: Any, photo: str, tmp_path: Path, capsys: Any) -> None:
    use(llava)
    assert ask(photo, photo, *QUESTION, "--keep", "6", "--out", str(tmp_path)) == 0
    assert "12 of 32" in capsys.readouterr().out
    assert (tmp_path / "kept.svg").read_text().count('class="kept"') == 12


def test_dense_alone_and_pruned_alone(llava: Any, use: Any, photo: str, tmp_path: Path, capsys: Any) -> None:
    use(llava)
    assert ask(photo, *QUESTION, "--method", "dense", "--out", str(tmp_path / "none")) == 0
    said = capsys.readouterr().out
    assert "of 16" not in said and "KV cache" not in said and not (tmp_path / "none").exists()
    assert ask(photo, *QUESTION, "--no-dense", "--no-warm-up", "--keep", "6", "--out", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "dense:" not in said and "cold first call" in said


def test_a_video_with_a_family_that_reads_them(qwen: Any, use: Any, photo: str, tmp_path: Path, capsys: Any) -> None:
    use(qwen)
    film = tmp_path / "film.gif"
    frames = [Image.new("RGB", (40, 40), (25 * n, 80, 0)) for n in range(9)]
    frames[0].save(film, save_all=True, append_images=frames[1:])
    asked = [photo, "--video", str(film), "--frames", "6", *QUESTION, "--keep", "5", "--set", "channels=8"]
    assert ask(*asked, "--out", str(tmp_path), "--max-new-tokens", "3") == 0
    assert "10 of 24" in capsys.readouterr().out
    svg = (tmp_path / "kept.svg").read_text()
    assert svg.count('class="kept"') == 10 and "frame 3:" in svg
    assert ask(*asked, "--set", "per_frame=True", "--out", str(tmp_path), "--max-new-tokens", "3", "--keep", "4") == 0


def test_no_video_for_llava_and_none_without_the_processors_half(
    llava: Any, qwen: Any, use: Any, tmp_path: Path, capsys: Any
) -> None:
    use(llava)
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "frames" / "1.png")
    assert ask("--video", str(tmp_path / "frames"), *QUESTION, "--keep", "6") == 2
    assert "reads no video; ask about single frames" in capsys.readouterr().err
    qwen.processor.video_processor = None
    use(qwen)
    assert ask("--video", str(tmp_path / "frames"), *QUESTION, "--keep", "4", "--set", "channels=8") == 2
    assert "pip install torchvision" in capsys.readouterr().err


def test_bad_input_is_one_line(llava: Any, use: Any, photo: str, tmp_path: Path, capsys: Any) -> None:
    use(llava)
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    cases = {
        (str(tmp_path / "gone.png"), *QUESTION): "gone.png does not exist",
        (str(tmp_path / "words.png"), *QUESTION): "not a picture in a known format",
        (photo, "--question", "  "): "the question is empty",
        tuple(QUESTION): "nothing to ask about",
        (photo, *QUESTION, "--method", "fastvv"): "unknown method 'fastvv'; known methods: dart, divprune",
        (photo, *QUESTION, "--keep", "many"): "budget 'many' is not understood",
        (photo, *QUESTION, "--keep", "17"): "keep_tokens=17, but the image has only 16",
        (
            photo,
            *QUESTION,
            "--set",
            "lambda=1",
        ): "lambda=1: lambda means nothing to method 'vlm-pruner'; leave it out, or give",
        (photo, *QUESTION, "--layer", "9"): "layer=9, but the decoder's last layer is 2",
        (photo, *QUESTION, "--max-new-tokens", "0"): "--max-new-tokens is 0",
        (photo, *QUESTION, "--no-dense", "--method", "dense"): "leave nothing to run",
        ("--video", str(tmp_path / "gone.mp4"), *QUESTION): "gone.mp4 does not exist",
        ("--video", str(tmp_path / "empty"), *QUESTION): "holds no pictures",
    }
    for arguments, message in cases.items():
        assert ask(*arguments, "--out", str(tmp_path / "out")) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, (arguments, error)


def test_pictures_are_upright_flat_and_still(tmp_path: Path, capsys: Any) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (80, 40), "red").save(turned, exif=exif)
    clear, moving = tmp_path / "clear.png", tmp_path / "moving.gif"
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(clear)
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("blue", "red")]
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    pictures = options.read_pictures([str(turned), str(clear), str(moving)])
    assert pictures[0].size == (40, 80)
    assert pictures[1].getpixel((5, 5)) == (255, 255, 255)
    assert pictures[2].getpixel((5, 5)) == (0, 0, 255)
    assert "moving.gif is animated: the first of its 2 frames is taken" in capsys.readouterr().err


def test_show_lays_methods_and_budgets_side_by_side(
    llava: Any, use: Any, photo: str, tmp_path: Path, capsys: Any
) -> None:
    use(llava)
    out = tmp_path / "kept.svg"
    more = ["--keep", "6,8", "--folds", "hue", "--side", "200", "--out", str(out)]
    assert main(["show", photo, "--method", "vlm-pruner,random", *more]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    svg = out.read_text()
    assert svg.count('class="kept"') == 2 * (6 + 8)
    assert all(title in svg for title in ("vlm-pruner, 6 tokens", "random, 8 tokens"))
    for arguments, message in (
        (["--out", "kept.gif"], "ends in '.gif'; use a name that ends in .png or .svg"),
        (["--focus", "1,2"], "give --folds hue"),
        (["--folds", "hue", "--focus", "one"], "not a list of numbers"),
        (["--columns", "0"], "--columns is 0"),
        (["--first", "9", "--keep", "6"], "first=9, but 6 tokens were kept"),
    ):
        assert main(["show", photo, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_frames_are_spread_evenly() -> None:
    assert evenly(8, 4) == [1, 3, 5, 7]
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(100, 1) == [50]
    assert end_to_end(9, 4.0, 5, None).tolist() == [0, 2, 4, 6, 8]
    assert end_to_end(3, 4.0, 32, None).tolist() == [0, 1, 2]
    assert len(end_to_end(12, 4.0, 32, 2.0)) == 6
    assert end_to_end(12, 4.0, 32, 0.01).tolist() == [0]


def test_frames_of_a_folder_come_in_natural_order(tmp_path: Path) -> None:
    for number in range(1, 13):
        Image.new("RGB", (10, 10), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert [frame.getpixel((0, 0)) for frame in read_frames(tmp_path, 12)] == [(n, 0, 0) for n in range(1, 13)]
    Image.new("RGB", (10, 11)).save(tmp_path / "frame13.png")
    with pytest.raises(ValueError, match="of different sizes"):
        read_frames(tmp_path, 13)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_of_a_video_file(tmp_path: Path, ending: str) -> None:
    """The header of a Matroska file does not say how many frames follow."""
    av = pytest.importorskip("av", reason="needs PyAV: pip install 'vlm-pruner[video]'")
    path = tmp_path / f"film.{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (12 * number,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_frames(path, 4)
    assert [frame.size for frame in frames] == [(64, 48)] * 4
    brightness = [frame.convert("L").getpixel((30, 20)) for frame in frames]
    assert brightness == pytest.approx([12 * number for number in evenly(20, 4)], abs=10)
    film, metadata = read_film(path, 4, None)
    assert film.shape == (4, 48, 64, 3) and film[:, 20, 30, 0] == pytest.approx([0, 72, 156, 228], abs=10)
    assert (metadata.total_num_frames, metadata.duration) == (20, 2.0)
    assert list(metadata.frames_indices) == [0, 6, 13, 19]
    assert len(read_film(path, 4, 3.0)[0]) == 6 and len(read_film(path, 99, None)[0]) == 20
    path.write_bytes(b"no video at all")
    for read in (read_frames, lambda path: read_film(path, 4, None)):
        with pytest.raises(ValueError, match=rf"film\.{ending} cannot be read as a video"):
            read(path)


def test_without_a_decoder_a_video_file_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("vlm_pruner.frames.find_spec", lambda name: None)
    (tmp_path / "film.mp4").write_bytes(b"video")
    with pytest.raises(ValueError, match=r"pip install 'vlm-pruner\[video\]'"):
        read_frames(tmp_path / "film.mp4")


def cells(kept: Kept, **more: Any) -> list[str]:
    return draw_cells(Image.new("RGB", (60, 40), "red"), kept, **more).splitlines()


def test_the_terminals_picture_has_the_order_in_place() -> None:
    kept = Kept(Fit("stretch", 2, 3), [4, 0], pivots=[4])
    assert cells(kept)[:2] == [" 2 · ·", " · 1 ·"]
    assert cells(kept, ascii_only=True)[0] == " 2 . ."
    assert "pivots: 1" in cells(kept)[-1]


@pytest.mark.parametrize("columns", [24, 40, 70, 300])
def test_the_terminals_picture_fits_80_columns(columns: int) -> None:
    kept = Kept(Fit("stretch", 5, columns), list(range(0, 5 * columns, 3)))
    for line in cells(kept):
        assert len(line) <= 80
    assert len(cells(kept)) <= 6


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colour(Terminal()) and not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal()) and wants_colour(Terminal(), "always")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(Terminal())
    assert wants_ascii(SimpleNamespace(encoding="ascii")) and not wants_ascii(Terminal())  # type: ignore[arg-type]


@pytest.mark.parametrize("deep", [True, False])
def test_with_colours_every_cell_is_painted(deep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor" if deep else "")
    lines = cells(Kept(Fit("stretch", 2, 3), [4, 0]), colour=True)[:2]
    for line in lines:
        assert line.count("\x1b[48;2;" if deep else "\x1b[48;5;") == 3
        assert line.endswith("\x1b[0m")


def test_an_overview_and_tiles_are_both_there() -> None:
    fit = Fit("tiles", 2, 2, tiles=3)  # two tiles beside each other, and the whole
    lines = cells(Kept(fit, [0, 4, 9]))
    assert lines[:3] == ["tiles", " 1 · 2 ·", " · · · ·"]
    assert lines[3:6] == ["overview", " · 3", " · ·"]
