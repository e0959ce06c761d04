"""Kept patches are bright and where they should be; everything else is dimmed."""

from __future__ import annotations

import pytest
from PIL import Image

from vlm_pruner.report.picture import PATCH, Example, Panel, draw_figure, draw_kept, order_colour, patch_box, wrap

GRID = (3, 5)  # height and width differ on purpose: swapped coordinates must show


def picture(colour: str = "#204080") -> Image.Image:
    return Image.new("RGB", (50, 30), colour)


def test_kept_patches_keep_their_pixels_and_the_others_are_dimmed() -> None:
    kept = [(4.0, 0.0), (1.0, 2.0)]
    drawn = draw_kept(picture(), kept, GRID)
    assert drawn.size == (5 * PATCH, 3 * PATCH)
    for x in range(5):
        for y in range(3):
            left, top, _, _ = patch_box(x, y)
            inside = drawn.getpixel((left + 3, top + 3))  # past the frame, outside of the number
            assert (inside == (0x20, 0x40, 0x80)) == ((x, y) in kept), (x, y, inside)


def test_frames_carry_the_order_of_selection() -> None:
    kept = [(2.0, 1.0), (0.0, 0.0), (3.0, 2.0)]
    drawn = draw_kept(picture(), kept, GRID)
    for index, (x, y) in enumerate(kept):
        left, top, right, bottom = patch_box(x, y)
        assert drawn.getpixel((left, top)) == order_colour(index, 3) == drawn.getpixel((right - 1, bottom - 1))
    assert len({order_colour(index, 3) for index in range(3)}) == 3


def test_without_a_selection_nothing_is_dimmed() -> None:
    assert draw_kept(picture(), None, GRID).getcolors() == [(3 * 5 * PATCH**2, (0x20, 0x40, 0x80))]


@pytest.mark.parametrize("token", [(5.0, 0.0), (0.0, 3.0), (-1.0, 0.0)])
def test_a_token_outside_of_the_grid_is_refused(token: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="outside of the grid of 5 x 3"):
        draw_kept(picture(), [token], GRID)


def test_the_figure_holds_every_panel_and_row() -> None:
    panels = [Panel("dense", "red", True), Panel("pruned", "", False, [(0.0, 0.0)])]
    one = draw_figure([Example(picture(), "What colour?", "red", panels)], GRID)
    two = draw_figure([Example(picture(), "What colour?", "red", panels)] * 2, GRID)
    assert one.width > 2 * 5 * PATCH
    assert two.width == one.width
    assert two.height > one.height + 3 * PATCH


def test_long_questions_are_wrapped_to_the_figure() -> None:
    class Fixed:
        def getlength(self, text: str) -> int:
            return 10 * len(text)

    lines = wrap("which letter is left of the other\nA. x\nB. y", Fixed(), 120)  # type: ignore[arg-type]
    assert all(len(line) <= 12 for line in lines)
    assert " ".join(lines) == "which letter is left of the other A. x B. y"
