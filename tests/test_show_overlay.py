"""Kept tokens on the picture: in place, in order, in raster and in vector form."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
import torch
from PIL import Image, ImageChops

from tests.families import FAMILIES
from vlm_pruner import CentrifugalPruner, prune
from vlm_pruner.drawing import Style, overlay, overlay_svg
from vlm_pruner.drawing.colours import order_colour, ramp, rgb
from vlm_pruner.drawing.sheet import plain, sheet
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.receipts import ImageReceipt, Kept

BLUE = (0x20, 0x40, 0x80)
SVG = "{http://www.w3.org/2000/svg}"


def blue(width: int = 300, height: int = 200) -> Image.Image:
    return Image.new("RGB", (width, height), BLUE)


def grid(order: list[int], **more: object) -> Kept:
    """Of a 300 x 200 picture stretched over 4 x 6 tokens: patches of 50 x 50."""
    return Kept(Fit("stretch", 4, 6), order, **more)  # type: ignore[arg-type]


def at(image: Image.Image, x: float, y: float) -> tuple[int, ...]:
    value = image.getpixel((round(x), round(y)))
    assert isinstance(value, tuple)
    return value


def test_kept_patches_keep_their_pixels_and_the_others_are_veiled() -> None:
    kept = [7, 0, 23]
    drawn = overlay(blue(), grid(kept), Style(side=600))
    assert drawn.size == (600, 400)
    for token in range(24):
        row, column = divmod(token, 6)
        middle = at(drawn, 100 * column + 50, 100 * row + 50)
        assert (middle == BLUE) == (token in kept), (token, middle)


def test_frames_carry_the_order_of_selection() -> None:
    drawn = overlay(blue(), grid([7, 0, 23]), Style(side=600))
    for number, token in enumerate([7, 0, 23]):
        row, column = divmod(token, 6)
        assert at(drawn, 100 * column + 3, 100 * row + 50) == rgb(order_colour(number, 3))


def test_the_first_of_the_order_alone_keep_their_colours() -> None:
    whole, part = (overlay(blue(), grid([7, 0, 23]), Style(side=600, first=first)) for first in (None, 2))
    assert at(part, 3, 50) == at(whole, 3, 50)  # token 0, the second
    assert at(part, 550, 350) != BLUE == at(whole, 550, 350)  # token 23, the third
    none = overlay(blue(), grid([7, 0, 23]), Style(side=600, first=0))
    assert at(none, 150, 150) != BLUE


def test_padding_that_the_model_saw_is_part_of_the_drawing() -> None:
    kept = Kept(Fit("pad", 4, 4), [0, 6])  # the first lies above the picture
    drawn = overlay(blue(400, 200), kept, Style(side=400))
    assert drawn.size == (400, 400)
    assert at(drawn, 250, 150) == BLUE
    assert at(drawn, 50, 50) != at(drawn, 150, 50)  # kept padding stands out from dropped padding


def test_pivots_are_marked() -> None:
    plain, marked = (overlay(blue(), grid([7, 0], pivots=pivots), Style(side=600)) for pivots in ([], [7]))
    box = ImageChops.difference(plain, marked).getbbox()
    assert box is not None
    left, top, right, bottom = box
    assert left >= 100 and top >= 100 and right <= 200 and bottom <= 200


def test_numbers_are_left_out_where_they_could_not_be_read() -> None:
    def texts(side: int, numbers: bool = True) -> int:
        return overlay_svg(blue(), grid([7, 0, 23]), Style(side=side, numbers=numbers)).count("<text")

    assert (texts(600), texts(600, numbers=False), texts(90)) == (3, 0, 0)


def test_a_dropped_token_takes_the_hue_of_the_one_it_was_folded_into() -> None:
    keeper = [7 if token % 2 else 0 for token in range(24)]
    keeper[7], keeper[0] = 7, 0
    drawn = overlay(blue(), grid([7, 0], keeper=keeper), Style(side=600, folds="hue", numbers=False))
    odd, even = at(drawn, 350, 350), at(drawn, 450, 350)
    for shown, number in ((odd, 0), (even, 1)):
        mixed = [0.55 * a + 0.45 * b for a, b in zip(rgb(order_colour(number, 2)), BLUE, strict=True)]
        assert list(shown) == pytest.approx(mixed, abs=2)
    only = overlay(blue(), grid([7, 0], keeper=keeper), Style(side=600, folds="hue", focus=(1,)))
    assert at(only, 350, 350) == odd
    assert at(only, 450, 350) == at(overlay(blue(), grid([7, 0]), Style(side=600)), 450, 350)


def test_arrows_end_at_the_keeper() -> None:
    keeper = [0] * 24
    svg = overlay_svg(blue(), grid([0], keeper=keeper), Style(side=600, folds="arrows"))
    ends = re.findall(r'<polyline points="[\d.]+,[\d.]+ ([\d.]+),([\d.]+)"', svg)
    assert len(ends) == 2 * 23  # a line and its seam for every dropped token
    assert set(ends) == {("50", "50")}


def test_any_resolution_pictures_are_drawn_twice_and_row_ends_counted() -> None:
    fit = Fit("anyres", 4, 8, base=4, pixels=56, canvases=((112, 56), (112, 112)))
    kept = Kept(fit, [0, 16, 24, 20])  # 24 ends the first row of tiles
    svg = overlay_svg(blue(200, 100), kept, Style(side=400))
    assert "overview: 1 of 16 kept" in svg
    assert "tiles: 2 of 32 kept, and 1 row ends" in svg
    assert svg.count('class="kept"') == 3
    drawn = overlay(blue(200, 100), kept, Style(side=400))
    assert drawn.width == 2 * 400 + 16
    assert at(drawn, 50, 25) == BLUE and at(drawn, 416 + 25, 25) == BLUE


def test_a_video_is_drawn_frame_by_frame() -> None:
    frames = [Image.new("RGB", (40, 40), (60 * number, 0, 0)) for number in range(4)]
    kept = Kept(Fit("stretch", 2, 2, frames=2), [3, 4])  # two frames of the file are one step of the tower
    drawn = overlay(frames, kept, Style(side=100, numbers=False))
    assert at(drawn, 75, 75) == (0, 0, 0)
    assert at(drawn, 116 + 25, 25) == (120, 0, 0)


def test_the_svg_is_well_formed_describes_itself_and_loads_nothing() -> None:
    root = ET.fromstring(overlay_svg(blue(), grid([7, 0, 23], pivots=[7], method="a<b"), Style(title='"quoted" & <b>')))
    kept = [element for element in root.iter(f"{SVG}g") if element.get("class") == "kept"]
    assert [element.get("data-token") for element in kept] == ["7", "0", "23"]
    assert [element.get("data-order") for element in kept] == ["1", "2", "3"]
    assert kept[0].findtext(f"{SVG}title") == "number 1 of 3: token 7, a pivot"
    assert "3 visual tokens kept by a<b, from 1 pivots on" in (root.findtext(f"{SVG}title") or "")
    images = [element.get("href") or "" for element in root.iter(f"{SVG}image")]
    assert len(images) == 1 and images[0].startswith("data:image/")
    stored = Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2])))
    assert stored.size == (300, 200)


def test_receipts_draw_themselves_and_survive_json() -> None:
    family = next(family for family in FAMILIES if family.name == "qwen2_vl")
    inputs = family.inputs(family.prompts["two"])
    with prune(family.model, CentrifugalPruner(keep_tokens=5, channels=8)) as pruning, torch.no_grad():
        family.model(**inputs)
    receipt = pruning.receipts[-1]
    image = receipt.images[0]
    assert overlay_svg(blue(), image.kept()).count('class="kept"') == 5
    again = ImageReceipt.from_dict(json.loads(json.dumps(receipt.to_dict()))["images"][0]).kept()
    assert overlay_svg(blue(), again) == overlay_svg(blue(), image.kept())
    assert list(image.overlay(blue(), side=240).tobytes()) == list(overlay(blue(), again, Style(side=240)).tobytes())
    both = receipt.overlay(blue(), blue(200, 300), side=240)
    assert both.width > 2 * 160
    with pytest.raises(ValueError, match="1 pictures were given, but the receipt is of 2 images"):
        receipt.overlay(blue())


def test_what_cannot_be_drawn_says_why() -> None:
    receipt = ImageReceipt(0, (0, 4), 2, "fastv", 4, 1, [2], [2], [[0.0, 1.0]])
    with pytest.raises(ValueError, match="receipt of fastv does not say where its 4 tokens are"):
        receipt.overlay(blue())
    assert receipt.kept(Fit("stretch", 2, 2)).order == [2]
    with pytest.raises(ValueError, match="first=4, but 3 tokens were kept; use 0 to 3"):
        overlay(blue(), grid([7, 0, 23]), Style(first=4))
    with pytest.raises(ValueError, match="folds='hues' must be"):
        Style(folds="hues")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="side=5 must be between 32 and 8192"):
        Style(side=5)
    with pytest.raises(ValueError, match="no picture was given"):
        overlay([], grid([1]))


def test_a_sheet_has_every_picture_and_a_key() -> None:
    drawn = plain(blue(), 300)
    alone, row, column = (
        sheet([("one", drawn)]),
        sheet([("one", drawn), ("two", drawn)]),
        sheet([("one", drawn), ("two", drawn)], columns=1),
    )
    assert row.width > 1.9 * alone.width and row.height == alone.height
    assert column.width == alone.width and column.height > 1.8 * alone.height
    assert sheet([("one", drawn)], key=False).height < alone.height
    with pytest.raises(ValueError, match="nothing to lay side by side"):
        sheet([])


def test_the_ramp_gets_darker_all_the_way() -> None:
    def lightness(share: float) -> float:
        red, green, blue = rgb(ramp(share))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    values = [lightness(step / 40) for step in range(41)]
    assert all(a > b for a, b in pairwise(values))
    assert order_colour(0, 1) == ramp(0)
