"""LLaVA on Qwen2 asked about videos: run_llava, question files, and which frames and prompts they make."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from llava.eval import model_vqa_video, run_llava
from llava.eval.engine import LlavaEngine
from llava.eval.errors import ItemError, UsageError
from llava.eval.films import VideoSettings, read_film
from llava.eval.questions import Question
from llava.video_prompt import sample_frames, time_instruction
from tests import tiny_llava_qwen as tiny
from tests.llava_tiny import write_tokenizer
from vlm_pruner import CentrifugalPruner
from vlm_pruner.asking import load


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tiny.write(tmp_path_factory.mktemp("qwen"))
    write_tokenizer(folder)
    return folder


def frames(folder: Path, count: int) -> Path:
    """A folder of frames, each of one grey that says which it is."""
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 30), (number,) * 3).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (VideoSettings(), [0, 3, 6, 9, 12]),
        (VideoSettings(max_frames_num=4), [0, 4, 8, 13]),
        (VideoSettings(max_frames_num=3, force_sample=True), [0, 6, 13]),
        (VideoSettings(video_fps=3), list(range(14))),
    ],
)
def test_frames_of_a_folder_are_three_per_second(settings, expected, tmp_path):
    film = read_film(frames(tmp_path / "film", 14), settings)
    assert film.frames[:, 0, 0, 0].tolist() == expected
    assert film.seconds == pytest.approx(14 / 3)
    assert len(film.times) == len(expected)


def test_frames_of_short_videos_come_several_times_if_forced(tmp_path):
    film = read_film(frames(tmp_path / "film", 3), VideoSettings(max_frames_num=5, force_sample=True))
    assert film.frames[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2]


def test_the_time_instruction():
    _, times = sample_frames(90, 30.0)
    assert time_instruction(3.0, times) == (
        "The video lasts for 3.00 seconds, and 3 frames are uniformly sampled from it. "
        "These frames are located at 0.00s,1.00s,2.00s.Please answer the following questions related to this video."
    )


def test_videos_too_slow_to_sample_are_refused():
    with pytest.raises(ValueError, match=r"0.4 frames per second, too few to take 1"):
        sample_frames(10, 0.4)
    with pytest.raises(ItemError, match="does not exist"):
        read_film(Path("nowhere.mp4"), VideoSettings())
    with pytest.raises(UsageError, match="--max-frames-num 0"):
        VideoSettings(max_frames_num=0)


def test_run_llava_answers_about_a_video(checkpoint, tmp_path, capsys):
    film = frames(tmp_path / "film", 9)
    command = ["--model-path", str(checkpoint), "--conv-mode", "qwen_1_5", "--device", "cpu", "--max_new_tokens", "4"]
    question = ["--query", "w1 w2", "--video", str(film), "--add-time-instruction"]
    pruned = ["--sparse", "--reduction_ratio", "0.5"]
    assert run_llava.main([*command, *question, *pruned]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "vlm-pruner: 18 of 36 visual tokens kept"  # 3 frames of 3 x (3 + 1)
    assert run_llava.main([*command, *question, "--mm-newline-position", "no_token", *pruned]) == 0
    assert "of 27 visual tokens kept" in capsys.readouterr().err


def test_the_conversation_must_be_the_models(checkpoint, tmp_path, capsys):
    film = str(frames(tmp_path / "film", 3))
    assert run_llava.main(["--model-path", str(checkpoint), "--video", film, "--query", "w1", "--device", "cpu"]) == 2
    assert "--conv-mode vicuna_v1 is not the conversation" in capsys.readouterr().err
    assert run_llava.main(["--model-path", str(checkpoint), "--query", "w1"]) == 2
    assert "give --image-file PICTURE or --video FILE" in capsys.readouterr().err


def test_several_pictures_are_padded_and_one_is_tiled(checkpoint, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (100, 60)).save(tmp_path / name)
    command = ["--model-path", str(checkpoint), "--conv-mode", "qwen_1_5", "--device", "cpu", "--max_new_tokens", "2"]
    pruned = ["--query", "w1", "--sparse", "--reduction_ratio", "0"]
    assert run_llava.main([*command, *pruned, "--image-file", f"{tmp_path / 'a.png'},{tmp_path / 'b.png'}"]) == 0
    assert "of 74 visual tokens kept" in capsys.readouterr().err  # twice 6 x 6 and a newline
    assert run_llava.main([*command, *pruned, "--image-file", str(tmp_path / "a.png")]) == 0
    assert "of 102 visual tokens kept" in capsys.readouterr().err  # 36 and 6 x (10 + 1): bars cut off


def test_question_files(checkpoint, tmp_path):
    frames(tmp_path / "film", 6)
    lines = [
        {"question_id": 1, "video": "film", "question": "w1 ?", "options": ["w2", "w3"], "answer": "B"},
        {"question_id": 2, "video": "film", "question": "w4"},
        {"question_id": 3, "video": "../film", "question": "w4"},
        {"question_id": 4, "video": "film", "question": "w4", "options": "w2"},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    answers = tmp_path / "answers.jsonl"
    command = [
        *("--model-path", str(checkpoint), "--conv-mode", "qwen_1_5", "--device", "cpu", "--max_new_tokens", "3"),
        *("--question-file", str(tmp_path / "questions.jsonl"), "--video-folder", str(tmp_path)),
        *("--answers-file", str(answers), "--batch-size", "2", "--sparse", "--keep_tokens", "9"),
    ]
    assert model_vqa_video.main([*command, "--allow-errors", "2"]) == 0
    written = [json.loads(line) for line in answers.read_text().splitlines()]
    assert written[0]["prompt"] == (
        "w1 ?\nA. w2\nB. w3\nAnswer with the option's letter from the given choices directly."
    )
    assert written[0]["options"] == ["w2", "w3"] and written[0]["answer"] == "B"
    assert [line["metadata"].get("kept") for line in written] == [9, 9, None, None]
    assert "leaves the image folder" in written[2]["error"] and "'options' is text" in written[3]["error"]


def test_the_original_processing_of_frames_is_used(checkpoint):
    """Frames come as 8-bit arrays, and are scaled whatever their shape."""
    from llava.model.builder import load_model

    tower = load_model(checkpoint).get_vision_tower()
    frame = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
    found = tower.image_processor.preprocess(frame[None])["pixel_values"][0]
    scaled = np.asarray(Image.fromarray(frame).resize((tiny.TILE, tiny.TILE), Image.Resampling.BICUBIC))
    expected = torch.from_numpy(scaled / 127.5 - 1).permute(2, 0, 1).float()
    assert torch.allclose(found, expected, atol=1e-6)
    assert isinstance(VideoSettings.of(SimpleNamespace(max_frames_num=8)), VideoSettings)


@pytest.mark.parametrize(
    ("pictures", "video", "tokens"), [(1, False, 102), (2, False, 74), (0, True, 36), (1, True, 102 + 36)]
)
def test_ask_asks_as_the_generators_do(checkpoint, tmp_path, pictures, video, tokens):
    """`vlm-pruner ask`: the model's own conversation, pictures prepared alike, videos; the same answer."""
    film = frames(tmp_path / "film", 9)
    shown = [Image.new("RGB", (100, 60), (90 * number, 120, 40)) for number in range(pictures)]
    chat, method = load(checkpoint), CentrifugalPruner(keep_tokens=9)
    options = ["--model-path", str(checkpoint), "--conv-mode", "qwen_1_5", "--device", "cpu", "--max_new_tokens", "5"]
    args = run_llava.build_parser().parse_args([*options, "--query", "w1 w2"])
    engine = LlavaEngine(chat.checkpoint, method, args)
    item = engine.prepare(Question(0, 0, "w1 w2", "w1 w2", tuple(shown), videos=(film,) if video else ()))
    seen = [Image.open(path) for path in sorted(film.iterdir())[::3]] if video else ()  # three a second
    prompt = chat.prompt(shown, "w1 w2", seen)
    assert prompt.inputs["inputs"][0].tolist() == item.input_ids.tolist()
    torch.testing.assert_close(prompt.inputs["images"], list(item.pixels), atol=0, rtol=0)
    assert prompt.visual_tokens == engine.visual_tokens(item) == tokens
    answer = chat.ask(shown, "w1 w2", method, video=seen, max_new_tokens=5)
    assert answer.text == engine.generate([item])[0].text
    assert [image.n_after for image in answer.images] == [9] * (pictures + video)
