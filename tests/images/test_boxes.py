"""Boxes agree with the pixels, and survive the way through the square and through text."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from lmmblocks.images import (
    Box,
    clip_preprocess,
    find_boxes,
    format_box,
    from_cropped,
    from_padded,
    parse_box,
    to_cropped,
    to_padded,
)
from lmmblocks.spec import LmmError


@st.composite
def pixel_boxes(draw, most_aspect=1e9, most_side=2000):
    """A box of at least one pixel, and the size of the image it is in."""
    width, height = draw(st.integers(1, most_side)), draw(st.integers(1, most_side))
    assume(max(width, height) <= most_aspect * min(width, height))
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return Box(x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))), width, height


def edges(box):
    return box.x1, box.y1, box.x2, box.y2


@given(pixel_boxes())
def test_padded_and_back_is_the_same_box(case):
    box, width, height = case
    there = to_padded(box, width, height)
    assert all(0 <= edge <= 1 for edge in edges(there))
    back = from_padded(there, width, height)
    assert max(abs(a - b) for a, b in zip(edges(box), edges(back))) < 1e-9 * max(width, height)


@given(pixel_boxes())
def test_text_moves_an_edge_by_at_most_its_rounding(case):
    box, width, height = case
    there = to_padded(box, width, height)
    read = parse_box(f"The region is {format_box(there)}.")
    for low, high, new_low, new_high in [
        (there.x1, there.x2, read.x1, read.x2),
        (there.y1, there.y2, read.y1, read.y2),
    ]:
        allowed = 0.005 if round(low, 2) < round(high, 2) else 0.01  # thinner than the rounding: moved apart
        assert abs(new_low - low) <= allowed + 1e-9 and abs(new_high - high) <= allowed + 1e-9


@given(pixel_boxes())
def test_both_text_styles_read_the_same(case):
    box = to_padded(*case)
    assert parse_box(format_box(box)) == parse_box(format_box(box, trailing_zeros=False))


def test_padded_formula_of_the_data_for_odd_offsets():
    # w > h: y' = (y + (w - h) // 2) / w, x' = x / w; and mirrored for h > w.
    assert edges(to_padded(Box(10, 20, 50, 37), 101, 37)) == (
        10 / 101,
        (20 + 32) / 101,
        50 / 101,
        (37 + 32) / 101,
    )
    assert edges(to_padded(Box(20, 10, 36, 50), 36, 101)) == (
        (20 + 32) / 101,
        10 / 101,
        (36 + 32) / 101,
        50 / 101,
    )


@pytest.mark.parametrize(("width", "height"), [(301, 200), (200, 301), (256, 256)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_box_lies_where_the_preprocessing_puts_its_pixels(width, height, fit):
    box = Box(90, 80, 150, 130)
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), (90, 80, 150, 130))
    seen = clip_preprocess(200, 10, fit).square(image).convert("L").point(lambda value: 255 * (value > 180))
    there = to_padded(box, width, height) if fit == "pad" else to_cropped(box, width, height, 200)
    for found, expected in zip(seen.getbbox(), edges(there)):
        assert abs(found / 200 - expected) <= 0.005, (seen.getbbox(), there)


@given(pixel_boxes(most_aspect=50), st.sampled_from([56, 112, 336]))
def test_cropped_and_back_is_the_visible_part(case, size):
    box, width, height = case
    try:
        there = to_cropped(box, width, height, size)
    except LmmError:
        short = min(width, height)
        middle = (box.x1 + box.x2) / 2 if width > height else (box.y1 + box.y2) / 2
        assert abs(middle - max(width, height) / 2) > short / 2 - 1 - short / size, "only boxes outside the crop are refused"
        return
    back = from_cropped(there, width, height, size)
    slack = 1e-6 * max(width, height)
    assert all(0 <= edge <= 1 for edge in edges(there))
    assert back.x1 >= box.x1 - slack and back.y1 >= box.y1 - slack and back.x2 <= box.x2 + slack and back.y2 <= box.y2 + slack
    if all(0 < edge < 1 for edge in edges(there)):
        assert max(abs(a - b) for a, b in zip(edges(box), edges(back))) < slack


@given(pixel_boxes(most_side=20), st.data())
def test_iou_counts_pixels(case, data):
    box, width, height = case
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    other = Box(x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)))

    def cells(b):
        return {(x, y) for x in range(b.x1, b.x2) for y in range(b.y1, b.y2)}

    expected = len(cells(box) & cells(other)) / len(cells(box) | cells(other))
    assert box.iou(other) == other.iou(box) == pytest.approx(expected)
    assert box.iou(box) == 1


@pytest.mark.parametrize("bad", [(0, 0, 0, 1), (0, 1, 1, 0), (0.5, 0, 0.4, 1), (math.nan, 0, 1, 1), (0, 0, math.inf, 1)])
def test_boxes_without_area_are_refused(bad):
    with pytest.raises(LmmError):
        Box(*bad)


def test_boxes_in_another_unit_are_refused():
    with pytest.raises(LmmError, match="reaches outside the 100x50 image"):
        to_padded(Box(0, 0, 100, 51), 100, 50)
    with pytest.raises(LmmError, match="convert pixels with to_padded"):
        format_box(Box(10, 20, 30, 40))
    with pytest.raises(LmmError, match="lies in the padding"):
        from_padded(Box(0, 0, 1, 0.1), 100, 50)
    with pytest.raises(LmmError, match="outside the centre crop"):
        to_cropped(Box(0, 0, 10, 50), 100, 50)
    with pytest.raises(LmmError, match="at least 1x1 px"):
        to_padded(Box(0, 0, 1, 1), 0, 50)


@pytest.mark.parametrize("text", ["", "[0.1, 0.2, 0.3]", "[1,2,3,4]", "0.1, 0.2, 0.3, 0.4", "[0.5, 0.5, 0.5, 0.9]", "[a, b, c, d]"])
def test_text_without_a_box_is_refused_and_gives_no_boxes(text):
    with pytest.raises(LmmError):
        parse_box(text)
    assert find_boxes(text) == []


def test_all_boxes_of_an_answer_are_found():
    text = "A [0.00,0.1,.5,1] and B [ 0.20, 0.3 , 0.4, 0.5 ], not [3, 4, 5, 6]."
    assert find_boxes(text) == [Box(0, 0.1, 0.5, 1), Box(0.2, 0.3, 0.4, 0.5)]
