"""How EXIF orientations and transparency are read is one setting of a model's preprocessing: obeyed by every kind, saved, and asked with."""

import io
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import lmmblocks as lb
from lmmblocks.data.check_images import check_images
from lmmblocks.images import clip_preprocess, load_image
from lmmblocks.images.fit import with_reading
from lmmblocks.images.fused import FusedPreprocess
from lmmblocks.images.native import NativePreprocess
from lmmblocks.images.tiles import TilePreprocess
from lmmblocks.spec import LmmError, Sample

COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
SQUARE = clip_preprocess(28, 14)
KINDS = {
    "square": SQUARE,
    "native": NativePreprocess(14, 16),
    "tiles": TilePreprocess(SQUARE, ((28, 56), (56, 28))),
    "fused": FusedPreprocess((SQUARE, replace(SQUARE, size_px=42))),
}


def turned(orientation, form="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    COLOURS.save(buffer, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
    return buffer.getvalue()


def half_transparent(mode="RGBA"):
    """Red on the left, and on the right blue that nobody is to see."""
    values = np.zeros((8, 8, 4), np.uint8)
    values[:, :4] = 255, 0, 0, 255
    values[:, 4:] = 0, 0, 255, 0
    image = Image.fromarray(values)
    if mode in ("RGBA", "RGBa", "LA", "La"):
        return image.convert({"La": "LA"}.get(mode, mode)).convert(mode)
    indexed = Image.fromarray(np.repeat([[0, 1]], 8, 0).repeat(4, 1).astype(np.uint8)).convert("P")
    indexed.putpalette([255, 0, 0, 0, 0, 255])
    indexed.info["transparency"] = 1
    return indexed


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_as_exif_says_only_if_asked(orientation, form):
    data = turned(orientation, form)
    stored = Image.open(io.BytesIO(data))
    assert load_image(data).tobytes() == stored.convert("RGB").tobytes()
    upright = load_image(data, exif="rotate")
    assert upright.tobytes() == ImageOps.exif_transpose(stored).convert("RGB").tobytes()
    assert load_image(upright, exif="rotate").tobytes() == upright.tobytes(), "what stands isn't turned again"


def test_deep_pictures_keep_their_values_when_they_are_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = Image.fromarray(np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 68)
    buffer = io.BytesIO()
    ramp.save(buffer, "PNG", exif=exif)
    upright = np.asarray(load_image(buffer.getvalue(), exif="rotate"))
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(load_image(ramp)), -1))


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "P", "LA", "La"])
@pytest.mark.parametrize(("background", "expected"), [("white", 255), ("black", 0)])
def test_a_background_shows_through_only_if_asked(mode, background, expected):
    image = half_transparent(mode)
    assert (np.asarray(load_image(image, transparent=background))[:, 4:] == expected).all()
    on_top = np.asarray(load_image(image, transparent=background))[:, :4]
    np.testing.assert_array_equal(on_top, np.asarray(load_image(image))[:, :4])
    if mode in ("RGBA", "P"):
        assert (np.asarray(load_image(image))[:, 4:] == (0, 0, 255)).all(), "dropped, the stored colours are seen"


@pytest.mark.parametrize(("mode", "hidden"), [("RGB", (9, 8, 7)), ("L", 9), ("1", 0)])
def test_one_colour_that_a_png_calls_transparent_is_transparent(mode, hidden):
    buffer = io.BytesIO()
    Image.new(mode, (4, 4), hidden).save(buffer, "PNG", transparency=hidden)
    assert load_image(buffer.getvalue(), transparent="white").getpixel((0, 0)) == (255, 255, 255)


def test_an_alpha_in_between_is_mixed():
    image = Image.new("RGBA", (4, 4), (100, 0, 0, 51))
    assert load_image(image, transparent="white").getpixel((0, 0)) == (224, 204, 204)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [{"exif": "rotate"}, {"transparent": "white"}, {"exif": "rotate", "transparent": "black"}])
def test_every_kind_of_preprocessing_obeys(kind, way):
    preprocess = with_reading(KINDS[kind], **way)
    for source in (turned(6), half_transparent()):
        found, grids = preprocess.batch([source])
        expected, expected_grids = KINDS[kind].batch([load_image(source, **way)])
        assert grids == expected_grids
        for left, right in zip(tensors(found), tensors(expected), strict=True):
            assert torch.equal(left, right)


def tensors(pixels):
    """All tensors of what a preprocessing gives: one, or a dataclass of them."""
    if isinstance(pixels, torch.Tensor):
        return [pixels]
    values = [getattr(pixels, field.name) for field in fields(pixels)]
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return [part for part in parts if isinstance(part, torch.Tensor)]


def test_unknown_ways_are_refused():
    with pytest.raises(LmmError, match="exif must be one of ignore, rotate, found 'rotated'; did you mean 'rotate'"):
        with_reading(SQUARE, exif="rotated")
    with pytest.raises(LmmError, match="transparent must be one of drop, black, white, found 'grey'"):
        with_reading(KINDS["tiles"], transparent="grey")
    with pytest.raises(LmmError, match="towers read a picture in different ways"):
        FusedPreprocess((SQUARE, replace(SQUARE, exif="rotate")))
    with pytest.raises(LmmError, match="preprocessing, object, has no exif"):
        with_reading(object(), exif="rotate")


def test_the_choice_is_saved_trained_and_asked_with(tiny_model, tmp_path):
    tiny_model.set_inputs(exif="rotate", transparent="white")
    tiny_model.save(tmp_path / "model", format="native")
    again = lb.load(tmp_path / "model")
    assert again.encoder.preprocess == tiny_model.encoder.preprocess
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Red"}]
    for source in (turned(6), half_transparent()):
        upright = load_image(source, exif="rotate", transparent="white")
        expected = lb.collate([Sample(turns, [upright])], again).pixels
        assert torch.equal(lb.collate([Sample(turns, [source])], again).pixels, expected)
        assert again.generate("What?", source, max_new_tokens=3) == again.generate("What?", upright, max_new_tokens=3)


@pytest.mark.parametrize("format", ["hf", "llava"])
def test_a_format_that_cannot_say_it_refuses(tiny_model, tmp_path, format):
    tiny_model.encoder.preprocess = with_reading(tiny_model.encoder.preprocess, exif="rotate")
    with pytest.raises(LmmError, match="exif='rotate'.*format='native'"):
        tiny_model.save(tmp_path / "model", format=format)


def test_the_check_notes_both_and_nothing_of_sound_ones(tmp_path):
    (tmp_path / "phone.jpg").write_bytes(turned(8))
    (tmp_path / "upright.jpg").write_bytes(turned(1))
    half_transparent().save(tmp_path / "icon.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "opaque.png")
    found = check_images([str(path) for path in sorted(tmp_path.iterdir())])
    assert {path.rpartition("/")[2]: [problem.code for problem in problems] for path, problems in found.items()} == {
        "phone.jpg": ["turned_image"],
        "icon.png": ["transparent_image"],
    }
