"""Limits on the pixels of video frames: sizes, choice of frames, and the way from an argument to the model's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_qwen_checkpoint
import torch
from PIL import Image
from versions import skip_before

import vlm_pruner as vp
from vlm_pruner.asking import load
from vlm_pruner.asking.frame_processor import FrameProcessor
from vlm_pruner.asking.processors import load_processor
from vlm_pruner.cli import main
from vlm_pruner.errors import PruningError
from vlm_pruner.frames import Clip, even_end_to_end, read_film, read_frames
from vlm_pruner.geometry.frame_sizes import PixelLimits, VideoLimits, within

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SIDE = 8  # pixels of a token's side in the tiny checkpoints

# Frames, height, width, pixels of a token's side, limits, and the size that qwen-vl-utils 0.0.14 makes of the frames.
SIZES = [
    (256, 1091, 1350, 32, {}, (768, 960)),
    (768, 176, 297, 28, {}, (252, 420)),
    (768, 662, 1360, 32, {}, (384, 768)),
    (4, 1410, 1704, 28, {}, (700, 840)),
    (16, 1480, 1022, 32, {"min_pixels": 200704}, (1056, 736)),
    (500, 1889, 1717, 32, {"min_pixels": 200704}, (704, 640)),
    (768, 1980, 373, 32, {"min_pixels": 3136, "max_pixels": 1605632}, (1248, 224)),
    (32, 1820, 522, 28, {"min_pixels": 3136, "max_pixels": 300000}, (1008, 280)),
    (2, 63, 851, 28, {"min_pixels": 200704, "max_pixels": 1003520}, (140, 1652)),
    (768, 380, 21, 28, {"min_pixels": 50000, "max_pixels": 300000}, (952, 56)),
    (8, 1642, 393, 28, {"max_pixels": 300000}, (1092, 252)),
    (16, 1110, 101, 32, {"total_pixels": 20480000}, (1216, 128)),
    (64, 620, 1970, 32, {"min_pixels": 3136, "total_pixels": 18816000}, (416, 1344)),
    (256, 1288, 640, 28, {"min_pixels": 200704, "total_pixels": 18816000}, (644, 308)),
    (4, 280, 825, 32, {"min_pixels": 50000, "max_pixels": 1605632, "total_pixels": 20480000}, (288, 832)),
]


@pytest.mark.parametrize(("frames", "height", "width", "side", "limits", "size"), SIZES)
def test_sizes_are_those_of_the_fields_tool(
    frames: int, height: int, width: int, side: int, limits: dict[str, int], size: tuple[int, int]
) -> None:
    assert VideoLimits(**limits).size(frames, height, width, side) == size


@pytest.mark.parametrize("side", [8, 28, 32])
def test_sizes_keep_within_their_limits(side: int) -> None:
    rng = np.random.default_rng(side)
    for _ in range(300):
        height, width = (int(length) for length in rng.integers(side, 60 * side, 2))
        least, most = sorted(int(pixels) for pixels in rng.integers(side**2, 2000 * side**2, 2))
        tall, wide = within(height, width, side, least, most)
        assert tall % side == wide % side == 0
        near = round(height / side) * round(width / side) * side**2
        if least <= near <= most:
            assert tall * wide == near
        elif near > most:
            assert tall * wide <= most or min(tall, wide) == side  # a thin frame always has one row of tokens
        else:
            assert tall * wide >= least  # rounded up, and so above `most` where there is no room between the two
        assert abs(tall / wide * width / height - 1) < 1.5 * side * (1 / tall + 1 / wide)


def test_a_frame_of_200_to_1_is_refused() -> None:
    with pytest.raises(PruningError, match="4020 x 20 pixels is more than 200 times as long as wide"):
        VideoLimits().size(2, 20, 4020, 28)


@pytest.mark.parametrize(
    ("given", "video"),
    [
        ({}, None),
        ({"min_pixels": 100, "max_pixels": 900}, (100, 900, None)),
        ({"max_pixels": 900}, (None, 900, None)),
        ({"max_pixels": 900, "video_max_pixels": 400}, (None, 400, None)),
        ({"min_pixels": 500, "video_max_pixels": 400}, (400, 400, None)),
        ({"max_pixels": 300, "video_min_pixels": 400}, (400, 400, None)),
        ({"min_pixels": 100, "max_pixels": 900, "total_pixels": 5000}, (100, None, 5000)),
        ({"max_pixels": 900, "video_max_pixels": 400, "total_pixels": 5000}, (None, 400, 5000)),
    ],
)
def test_frames_have_pictures_limits_unless_they_have_their_own(given: dict[str, int], video: Any) -> None:
    assert PixelLimits(**given).video == (None if video is None else VideoLimits(*video))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_pixels": 9, "max_pixels": 4}, "^min_pixels=9 is more than max_pixels=4"),
        ({"video_min_pixels": 9, "video_max_pixels": 4}, "video_min_pixels=9 is more than video_max_pixels=4"),
        ({"total_pixels": 0}, "total_pixels=0 must be at least 1"),
    ],
)
def test_limits_that_cannot_be(given: dict[str, int], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        PixelLimits(**given)


@pytest.mark.parametrize(
    ("total", "own_fps", "frames", "fps", "indices"),
    [
        (90, 30.0, 4, None, [0, 30, 59, 89]),
        (90, 30.0, 5, None, [0, 30, 59, 89]),
        (5, 30.0, 32, None, [0, 1, 3, 4]),
        (7, 30.0, 32, None, [0, 1, 2, 4, 5, 6]),
        (1, 30.0, 32, None, [0]),
        (90, 30.0, 32, 2.0, [0, 18, 36, 53, 71, 89]),
        (90, 30.0, 4, 2.0, [0, 30, 59, 89]),
        (90, 30.0, 32, 0.1, [0, 30, 59, 89]),
        (3, 30.0, 32, 2.0, [0, 2]),
    ],
)
def test_an_even_number_of_frames(
    total: int, own_fps: float, frames: int, fps: float | None, indices: list[int]
) -> None:
    assert even_end_to_end(total, own_fps, frames, fps).tolist() == indices


def film(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def clip(frames: int, height: int, width: int, step: int = 6, fps: float = 12.0) -> Clip:
    pictures = [Image.fromarray(frame) for frame in film(frames, height, width)]
    return Clip(pictures, range(0, step * frames, step), step * frames, fps)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    skip_before("5.18", "its Qwen processors need torchvision")
    return tiny_qwen_checkpoint.write(tmp_path_factory.mktemp(request.param), request.param)


def frame_processor(checkpoint: Path) -> FrameProcessor:
    """The one that stands in where torchvision is missing, or one like it."""
    own = load_processor(str(checkpoint))
    if isinstance(own.video_processor, FrameProcessor):
        return own.video_processor
    video = own.video_processor
    colours = {"image_mean": video.image_mean, "image_std": video.image_std}
    size = (video.size["shortest_edge"], video.size["longest_edge"])
    return FrameProcessor(own.image_processor, size, checkpoint.name.startswith("qwen3"), colours)


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_patches_of_a_video_one_by_one(checkpoint: Path, frames: int) -> None:
    """Each number of the input is the normalised colour that the model's order of patches puts there."""
    processor, pixels = frame_processor(checkpoint), film(frames, 16, 24)
    made = processor([pixels], do_sample_frames=False)
    steps, rows, columns = made["video_grid_thw"][0].tolist()
    assert (steps, rows, columns) == (-(-frames // 2), 4, 6)
    mean = processor.colours.get("image_mean", processor.images.image_mean)
    std = processor.colours.get("image_std", processor.images.image_std)
    expected = []
    for step in range(steps):
        for block_y, block_x in np.ndindex(rows // 2, columns // 2):  # 2 x 2 patches become one token
            for y, x in np.ndindex(2, 2):
                top, left = 4 * (2 * block_y + y), 4 * (2 * block_x + x)
                for channel in range(3):
                    for frame in (2 * step, 2 * step + 1):
                        patch = pixels[min(frame, frames - 1), top : top + 4, left : left + 4, channel] / 255
                        expected.append((patch.ravel() - mean[channel]) / std[channel])
    assert made["pixel_values_videos"].numpy().ravel() == pytest.approx(np.concatenate(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(4, 30, 50), (5, 64, 64), (2, 90, 33), (6, 8, 200), (3, 12, 12)]
)
def test_frames_are_processed_as_transformers_does(checkpoint: Path, frames: int, height: int, width: int) -> None:
    pytest.importorskip("torchvision", reason="compares with transformers' processors, which need it")
    theirs, small = load_processor(str(checkpoint)).video_processor, film(2, 5, 7)
    smooth = np.stack([np.asarray(Image.fromarray(small[k % 2]).resize((width, height))) for k in range(frames)])
    expected = theirs([smooth], do_sample_frames=False, return_tensors="pt")
    made = frame_processor(checkpoint)([smooth], do_sample_frames=False)
    assert torch.equal(made["video_grid_thw"], expected["video_grid_thw"])
    level = 1 / 255 / min(theirs.image_std)  # of 8-bit colours
    assert torch.allclose(made["pixel_values_videos"], expected["pixel_values_videos"], atol=2.01 * level, rtol=0)


def test_frames_must_have_been_chosen(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="pass do_sample_frames=False"):
        frame_processor(checkpoint)([film(4, 16, 16)])


def test_a_limit_decides_the_tokens_of_a_video(checkpoint: Path) -> None:
    """From `load` to the receipt: the tokens are those of the arithmetic, and a picture beside has its own."""
    picture = Image.fromarray(film(1, 40, 40)[0])
    for given, size in (
        ({"video_max_pixels": 12 * SIDE**2, "video_min_pixels": 1}, (16, 32)),
        ({"video_min_pixels": 40 * SIDE**2}, (48, 64)),
        ({"total_pixels": 24 * SIDE**2, "video_min_pixels": 1}, (16, 32)),
        ({"max_pixels": 12 * SIDE**2, "min_pixels": 1}, (16, 32)),
    ):
        limits = PixelLimits(**given).video
        assert limits is not None and limits.size(4, 30, 44, SIDE) == size, given
        chat = load(checkpoint, pixels=PixelLimits(**given))
        method = vp.CentrifugalPruner(keep_tokens=4, channels=8)
        answer = chat.ask([picture], "red star", method, video=clip(4, 30, 44), max_new_tokens=2)
        tokens = 2 * size[0] * size[1] // SIDE**2
        beside = 9 if "max_pixels" in given else 25
        assert sorted(image.n_before for image in answer.images) == sorted([tokens, beside]), given


def test_models_are_told_when_frames_were_shown(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames 0, 6, 12, 18 of a video of 12 per second: pairs in the middle of 0 and 0.5 s, of 1 and 1.5 s."""
    chat = load(checkpoint, pixels=PixelLimits(video_min_pixels=1, video_max_pixels=12 * SIDE**2))
    times: list[float] = []
    if checkpoint.name.startswith("qwen3"):
        kind = type(chat.processor)  # type: ignore[attr-defined]
        own = kind._calculate_timestamps
        monkeypatch.setattr(kind, "_calculate_timestamps", lambda *given: times.extend(own(*given)) or own(*given))
    inputs = chat.prompt([], "red star", clip(4, 30, 44)).inputs
    if checkpoint.name.startswith("qwen3"):
        assert times == [0.25, 1.25]
    elif checkpoint.name.startswith("qwen2_5"):
        assert inputs["second_per_grid_ts"].tolist() == [1.0]


def test_ask_says_which_frames_it_took(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "film"
    folder.mkdir()
    for number, frame in enumerate(film(9, 30, 44)):
        Image.fromarray(frame).save(folder / f"{number}.png")
    command = ["ask", "--video", str(folder), "--question", "red star", "--model", str(checkpoint), "--keep", "4"]
    command += ["--set", "channels=8", "--max-new-tokens", "2", "--no-warm-up", "--no-dense", "--no-cells"]
    command += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "ask.json")]
    assert main([*command, "--fps", "1", "--video-min-pixels", "1", "--video-max-pixels", "768"]) == 0
    said = capsys.readouterr().out
    assert "video: 3 of 9 frames (1, 4, 7), 3 per second" in said and "4 of 16" in said
    assert main([*command, "--frames", "2", "--min-pixels", "9", "--max-pixels", "4"]) == 2
    assert "min_pixels=9 is more than max_pixels=4" in capsys.readouterr().err
    assert main([*command, "--fps", "0"]) == 2
    assert "cannot take 0 frames per second" in capsys.readouterr().err


def test_llava_refuses_limits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert main(["ask", str(tmp_path / "a.png"), "--question", "?", "--max-pixels", "9000"]) == 2
    assert "scales pictures to fixed sizes; leave limits on pixels out" in capsys.readouterr().err


def test_clips_know_their_places(tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in film(9, 12, 16)]
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=250)
    of_gif, of_folder = read_frames(tmp_path / "film.gif", 4), read_frames(tmp_path, 3)
    assert (of_gif.indices, of_gif.total, of_gif.fps) == ([1, 3, 5, 7], 9, 4.0)
    assert (
        len(of_folder) == 3
        and of_folder.fps == 3.0
        and read_frames(tmp_path / "film.gif", 64, 2.0).indices == [1, 3, 5, 7]
    )
    (tmp_path / "film.gif").unlink()
    shown, metadata = read_film(tmp_path, 4, None)
    assert shown.shape == (4, 12, 16, 3) and metadata.frames_indices == [0, 3, 5, 8] and metadata.fps == 3.0
    assert np.array_equal(shown[1], np.asarray(frames[3]))
