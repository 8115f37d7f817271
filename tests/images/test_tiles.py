"""Pictures are cut as transformers' LLaVA-NeXT cuts them: the same resolution, the same rows counted, the same pixels."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lmmblocks.encoders.tile_arrangement import TileArrangement
from lmmblocks.images.fit import with_fit
from lmmblocks.images.kinds import preprocess_from_dict, preprocess_to_dict
from lmmblocks.images.pixels import TiledPixels, join_pixels
from lmmblocks.images.preprocess import ImagePreprocess, clip_preprocess
from lmmblocks.images.tiles import (
    LLAVA_NEXT_RESOLUTIONS,
    TilePreprocess,
    best_resolution,
    resolutions_up_to,
    scaled_into,
)
from lmmblocks.spec import Grid, LmmError, TileGrid

SIDES = st.integers(1, 2000)
LADDERS = {
    "llava-next": (LLAVA_NEXT_RESOLUTIONS, 336, 14),
    "hd": (resolutions_up_to(6, 224), 224, 14),
    "small odd": (resolutions_up_to(5, 21), 21, 7),
}


def picture(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def preprocess_of(ladder, **changes):
    resolutions, side, patch = LADDERS[ladder]
    return TilePreprocess(clip_preprocess(side, patch), resolutions, **changes)


def hf_count(width, height, resolutions, side, patch):
    """transformers' own counting, which looks at nothing of the processor but these."""
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    pinpoints = [list(entry) for entry in resolutions]
    known = SimpleNamespace(image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints), patch_size=patch)
    known.num_additional_image_tokens = 1
    known._get_unpadded_features = lambda *a: LlavaNextProcessor._get_unpadded_features(known, *a)
    return LlavaNextProcessor._get_number_of_features(known, height, width, side, side) - 1


@pytest.mark.parametrize("ladder", LADDERS)
@settings(max_examples=100, deadline=None)
@given(width=SIDES, height=SIDES)
@example(width=1, height=2000)
@example(width=2000, height=1)
@example(width=1, height=1)
@example(width=336, height=336)
@example(width=1000, height=667)
def test_resolution_and_rows_of_any_size_equal_transformers(ladder, width, height):
    from transformers.image_processing_utils import select_best_resolution

    resolutions, side, patch = LADDERS[ladder]
    expected = select_best_resolution((height, width), [list(entry) for entry in resolutions])
    assert best_resolution(width, height, resolutions) == expected
    layout = preprocess_of(ladder).grid(width, height)
    assert (layout.tiles.h * side, layout.tiles.w * side) == expected
    rows = TileArrangement().rows_of(layout, lambda grid: grid)
    assert rows == hf_count(width, height, resolutions, side, patch)


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES)
def test_scaled_size_equals_transformers_and_touches_two_sides(width, height):
    from transformers.image_processing_utils import get_patch_output_size

    for resolution in LLAVA_NEXT_RESOLUTIONS:
        got = scaled_into(width, height, resolution)
        blank = np.broadcast_to(np.uint8(0), (3, height, width))
        assert got[::-1] == get_patch_output_size(blank, resolution, "channels_first")
        assert got[0] == resolution[1] or got[1] == resolution[0]


@pytest.mark.parametrize("size", [(640, 480), (100, 300), (1, 1), (2, 90), (91, 4), (42, 42), (21, 21), (43, 61)])
@pytest.mark.parametrize("ladder", ["small odd", "two by one"])
def test_pixels_equal_transformers(ladder, size, record_parity, image_processor_class):
    resolutions = resolutions_up_to(5, 21) if ladder == "small odd" else ((42, 21), (21, 42))
    ours = TilePreprocess(clip_preprocess(21, 7), resolutions)
    side = {"height": 21, "width": 21}
    theirs = image_processor_class("LlavaNext")(
        size={"shortest_edge": 21},
        crop_size=side,
        image_grid_pinpoints=[list(entry) for entry in resolutions],
    )
    image = picture(*size)
    expected = theirs(image, input_data_format="channels_last", return_tensors="pt")
    pixels, (layout,) = ours.batch([image])
    assert pixels.tiles.shape == expected["pixel_values"][0].shape
    assert expected["image_sizes"][0].tolist() == [layout.height_px, layout.width_px]
    difference = (pixels.tiles - expected["pixel_values"][0]).abs().max().item()
    record_parity("images.TilePreprocess", "LlavaNextImageProcessorPil", "pixels", difference)
    assert difference == 0


def test_pixels_at_the_original_size_equal_transformers(image_processor_class):
    image = picture(701, 480)
    theirs = image_processor_class("LlavaNext")(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    expected = theirs(image, return_tensors="pt")["pixel_values"][0]
    pixels, (layout,) = preprocess_of("llava-next").batch([image])
    assert layout == TileGrid(Grid(2, 2), Grid(24, 24), 701, 480)
    torch.testing.assert_close(pixels.tiles, expected, atol=0, rtol=0)


def test_hd_offers_every_grid_of_up_to_six_tiles():
    grids = {(h // 224, w // 224) for h, w in resolutions_up_to(6, 224)}
    assert grids == {(h, w) for h in range(1, 7) for w in range(1, 7) if h * w <= 6}
    # Scaled to 224 px in height it is 747 px wide: a fifth tile would keep no more.
    assert preprocess_of("hd").grid(1000, 300).tiles == Grid(1, 4)


def test_tiles_show_the_scaled_picture_between_black_bars():
    image = Image.new("RGB", (40, 10), (255, 0, 0))
    squares = preprocess_of("small odd").squares(image)
    overview, tiles = squares[0], squares[1:]
    assert all(square.size == (21, 21) for square in squares) and len(tiles) == 2
    assert np.asarray(overview).reshape(-1, 3).tolist() == [[255, 0, 0]] * 441
    joined = np.concatenate([np.asarray(tile) for tile in tiles], 1)
    red = (joined == [255, 0, 0]).all(-1)
    lines = red.any(1)
    assert (red.all(1) == lines).all() and not joined[~red].any()
    assert lines.sum() == scaled_into(40, 10, (21, 42))[1] and np.flatnonzero(lines)[0] == (21 - lines.sum()) // 2


def test_without_a_global_view_there_are_only_tiles():
    pixels, (layout,) = preprocess_of("small odd", global_view=False).batch([picture(40, 10)])
    with_view, _ = preprocess_of("small odd").batch([picture(40, 10)])
    assert layout.count == len(pixels.tiles) == 2
    assert torch.equal(with_view.tiles[1:], pixels.tiles)


def test_fit_of_the_tower_changes_no_tile():
    image = picture(60, 33)
    expected = preprocess_of("small odd").batch([image])[0].tiles
    for fit, resize in (("crop", 24), ("pad", None), ("squash", None)):
        tower = ImagePreprocess(**{**vars(clip_preprocess(21, 7)), "fit": fit, "resize_px": resize})
        assert torch.equal(TilePreprocess(tower, resolutions_up_to(5, 21)).batch([image])[0].tiles, expected)


def test_pixels_are_cut_and_joined_by_image():
    preprocess = preprocess_of("small odd")
    images = [picture(40, 10, 1), picture(10, 40, 2), picture(90, 90, 3)]
    pixels, grids = preprocess.batch(images)
    alone = [preprocess.batch([image])[0] for image in images]
    assert len(pixels) == 3 and pixels.grids == grids and len({grid.count for grid in grids}) > 1
    for index, one in enumerate(alone):
        part = pixels[index : index + 1]
        assert torch.equal(part.tiles, one.tiles) and part.grids == one.grids
    assert torch.equal(join_pixels(alone).tiles, pixels.tiles) and join_pixels(alone).grids == grids
    assert torch.equal(pixels[torch.tensor([2, 0])].tiles, join_pixels([alone[2], alone[0]]).tiles)
    assert pixels[1:].tiles.data_ptr() == pixels.tiles[grids[0].count :].data_ptr()
    none = pixels[torch.tensor([], dtype=torch.int64)]
    assert len(none) == len(preprocess.batch([])[0]) == 0 and none.tiles.shape == (0, 3, 21, 21)
    assert pixels.to("meta").tiles.is_meta and pixels.to("meta").grids == grids


def test_preprocessing_survives_pickle_and_plain_values():
    preprocess = preprocess_of("hd", global_view=False)
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess
    assert preprocess_from_dict(preprocess_to_dict(preprocess)) == preprocess


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: TilePreprocess(clip_preprocess(21, 7), ((42, 40),)),
            r"\(42, 40\).*21 px.*resolutions_up_to\(4, 21\)",
        ),
        (lambda: TilePreprocess(clip_preprocess(21, 7), ()), r"\(height, width\) pairs.*found \(\)"),
        (lambda: with_fit(preprocess_of("hd"), "crop"), "cuts pictures into tiles"),
        (
            lambda: TiledPixels(torch.zeros(2, 3, 2, 2), (TileGrid(Grid(1, 2), Grid(1, 1), 4, 2),)),
            r"2 tiles.*\[3\]",
        ),
        (lambda: preprocess_from_dict({"kind": "tile"}), "'tile'; did you mean 'tiles'"),
        (
            lambda: preprocess_from_dict({"kind": "tiles", "towr": {}}),
            "unknown keys 'towr'; did you mean 'tower'.; missing keys tower; expected tower, resolutions, global_view",
        ),
    ],
)
def test_mistakes_say_what_to_change(make, message):
    with pytest.raises(LmmError, match=message):
        make()
