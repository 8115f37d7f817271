"""A value always becomes the same grey, whatever the picture's mode and whatever else is in it; what has no known range is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lmmblocks.data.check_images import check_images
from lmmblocks.images import ImageError, load_image
from lmmblocks.spec import LmmError

RAMP = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
GREY = (RAMP >> 8).astype(np.uint8)
COLOURS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def rgb(source):
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(samples, *, bits, tags=()):
    """A TIFF written by hand, little-endian, one strip: of depths that Pillow doesn't write."""
    entries = {
        256: 64,
        257: 64,
        258: bits,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: 64,
        279: len(samples),
        **dict(tags),
    }
    directory = struct.pack("<H", len(entries))
    for tag, value in sorted(entries.items()):
        directory += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + directory + b"\0\0\0\0"


def png(rows, size, bits, colour_type, key=None):
    """A PNG of a depth that Pillow doesn't write: packed rows, (width, height), bits of a sample, and the transparent colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0))
    transparent = b"" if key is None else chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + head + transparent + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png_of_16_bits(channels, colour_type):
    """A PNG of 16-bit samples (H, W, C)."""
    return png([row.astype(">u2").tobytes() for row in channels], channels.shape[1::-1], 16, colour_type)


def packed_12_bits(values):
    """Two samples of 12 bits in three bytes, the first in front."""
    pairs = values.reshape(-1, 2).astype(np.uint32)
    both = (pairs[:, 0] << 12) | pairs[:, 1]
    return np.stack([both >> 16, both >> 8, both], 1).astype(np.uint8).tobytes()


DEEP = {
    "grey PNG": lambda: encoded(Image.fromarray(RAMP), "PNG"),
    "grey TIFF": lambda: encoded(Image.fromarray(RAMP), "TIFF"),
    "big-endian TIFF": lambda: encoded(Image.frombytes("I;16B", (64, 64), RAMP.astype(">u2").tobytes()), "TIFF"),
    "RGB PNG": lambda: png_of_16_bits(RAMP[..., None].repeat(3, 2), 2),
    "grey and alpha PNG": lambda: png_of_16_bits(np.stack([RAMP, RAMP], 2), 4),
    "PGM": lambda: b"P5 64 64 65535\n" + RAMP.astype(">u2").tobytes(),
    "12-bit TIFF": lambda: tiff(packed_12_bits(RAMP >> 4), bits=12),
    "white-is-zero TIFF": lambda: tiff((65535 - RAMP).astype("<u2").tobytes(), bits=16, tags=[(262, 0)]),
    "several pages": lambda: encoded(Image.fromarray(RAMP), "TIFF", save_all=True, append_images=[Image.new("I;16", (64, 64))]),
    "picture I;16": lambda: Image.frombytes("I;16", (64, 64), RAMP.astype("<u2").tobytes()),
    "picture I;16L": lambda: Image.frombytes("I;16L", (64, 64), RAMP.astype("<u2").tobytes()),
    "picture I;16B": lambda: Image.frombytes("I;16B", (64, 64), RAMP.astype(">u2").tobytes()),
    "array": lambda: RAMP,
    "array of another byte order": lambda: RAMP.astype(">u2"),
    "array of three channels": lambda: RAMP[..., None].repeat(3, 2),
}


@pytest.mark.parametrize("source", DEEP)
def test_sixteen_bits_become_their_high_byte_in_every_container(source):
    found = rgb(DEEP[source]())
    assert 125 < found.mean() < 129
    np.testing.assert_array_equal(found, GREY[..., None].repeat(3, 2))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "array", "float TIFF", "float array"])
def test_a_value_has_the_same_grey_beside_any_other(form):
    """No rule looks at the largest value of the picture."""
    dark, bright = RAMP.copy(), RAMP.copy()
    dark[:, 32:] = 0
    bright[:, 32:] = 65535

    def source(values):
        if form.startswith("float"):
            unit = (values / 65535).astype(np.float32)
            return unit if form == "float array" else encoded(Image.fromarray(unit), "TIFF")
        return values if form == "array" else encoded(Image.fromarray(values), form)

    np.testing.assert_array_equal(rgb(source(dark))[:, :32], rgb(source(bright))[:, :32])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_taken_as_0_to_1(dtype):
    unit = (GREY / 255).astype(dtype)
    expected = GREY[..., None].repeat(3, 2).astype(int)
    assert abs(rgb(unit).astype(int) - expected).max() <= (1 if dtype == np.float16 else 0)
    if dtype == np.float32:
        np.testing.assert_array_equal(rgb(Image.fromarray(unit)), expected)
        np.testing.assert_array_equal(rgb(encoded(Image.fromarray(unit), "TIFF")), expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.float32([[0, 255]]), "floats from 0 to 255, expected 0 .black. to 1"),
        (np.float32([[-1, 1]]), "floats from -1 to 1, expected 0"),
        (np.float32([[0, np.nan]]), "NaN or infinity"),
        (np.float32([[np.inf, 0]]), "NaN or infinity"),
    ],
)
def test_other_floats_are_refused_in_words_from_every_source(values, words, tmp_path):
    Image.fromarray(values).save(tmp_path / "float.tif")
    for source in (
        values,
        Image.fromarray(values),
        tmp_path / "float.tif",
        (tmp_path / "float.tif").read_bytes(),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            load_image(source)
        assert caught.value.kind == "range"
    (problem,) = check_images([str(tmp_path / "float.tif")])[str(tmp_path / "float.tif")]
    assert problem.code == "range_image"


def test_integers_of_unknown_range_are_refused_in_words(tmp_path):
    for image in (Image.new("I", (4, 4), 70_000), Image.new("L", (4, 4), 9).convert("I")):
        image.save(tmp_path / "wide.tif")
        for source in (image, tmp_path / "wide.tif"):
            with pytest.raises(ImageError, match="nobody knows what is white") as caught:
                load_image(source)
            assert caught.value.kind == "range"


def alpha_at_half(mode):
    picture = Image.fromarray(COLOURS).convert("RGBA" if mode in ("RGBA", "RGBa") else "LA")
    picture.putalpha(128)
    return picture.convert(mode)


PICTURES = {
    **{
        mode: (lambda mode=mode: Image.fromarray(COLOURS).convert(mode))
        for mode in ("1", "L", "P", "LA", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr", "HSV")
    },
    **{mode: (lambda mode=mode: alpha_at_half(mode)) for mode in ("La", "RGBa")},
}


@pytest.mark.parametrize("mode", PICTURES)
def test_eight_bits_become_what_pillow_makes_of_them(mode):
    image = PICTURES[mode]()
    straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
    np.testing.assert_array_equal(rgb(image), np.asarray(straight.convert("RGB")))
    assert np.ptp(rgb(image)) > 100, "neither black nor white"


def keyed_png(bits, colour_type, key):
    """A row of eight pixels, of which every second has the key; the others differ from it by one step, or by a byte's highest bit."""
    other = tuple(value ^ (1 if bits < 16 else 0x8000) for value in key)
    samples = np.array([*key, *other] * 4)
    if bits == 16:
        row = samples.astype(">u2").tobytes()
    else:
        row = np.packbits(np.unpackbits(samples.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]).tobytes()
    return png([row], (8, 1), bits, colour_type, key)


KEYS = {
    **{f"grey of {bits} bits, {key}": (bits, 0, (key,)) for bits, keys in ((1, (0, 1)), (2, (1, 2)), (4, (5, 14)), (8, (100,))) for key in keys},
    "grey of 16 bits": (16, 0, (0x1234,)),
    "grey of 16 bits, black": (16, 0, (0,)),
    "colours of 8 bits": (8, 2, (10, 20, 30)),
    "colours of 16 bits": (16, 2, (0x1012, 0x2034, 0x3056)),
    "colours of 16 bits, dark": (16, 2, (16, 32, 48)),
}


@pytest.mark.parametrize("case", KEYS)
def test_the_transparent_colour_of_a_png_counts_at_every_depth(case, tmp_path):
    data, path = keyed_png(*KEYS[case]), tmp_path / "keyed.png"
    path.write_bytes(data)
    dropped, opened = rgb(data), Image.open(path)
    for source in (data, path, opened, opened):  # the second time it is decoded already
        for colour, value in (("white", 255), ("black", 0)):
            found = np.asarray(load_image(source, transparent=colour))
            assert (found[:, ::2] == value).all(), (source, colour, found[0, :2].tolist())
            np.testing.assert_array_equal(found[:, 1::2], dropped[:, 1::2])
    assert "transparent_image" in [note.code for note in check_images([str(path)])[str(path)]]


@pytest.mark.parametrize("case", KEYS)
def test_a_transparent_colour_that_no_pixel_has_hides_none(case):
    bits, colour_type, key = KEYS[case]
    if bits == 1:
        data = png([b"\0" if key[0] else b"\xff"], (8, 1), 1, colour_type, key)
    else:
        data = keyed_png(*KEYS[case])
        unused = struct.pack(f">{len(key)}H", *(value ^ (2 if bits < 16 else 0x4000) for value in key))
        at = data.index(b"tRNS")
        chunk = b"tRNS" + unused
        data = data[:at] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at + len(chunk) + 4 :]
    np.testing.assert_array_equal(np.asarray(load_image(data, transparent="white")), rgb(data))


def test_a_mode_that_pillow_cannot_convert_is_named(monkeypatch):
    image = Image.new("RGB", (4, 4))

    def refuse(mode):
        raise ValueError("conversion from XYZ to RGB not supported")

    monkeypatch.setattr(image, "convert", refuse)
    with pytest.raises(ImageError, match="Pillow can't turn into RGB .conversion from XYZ"):
        load_image(image)


@pytest.mark.parametrize(
    "array",
    [
        COLOURS,
        COLOURS[..., 0],
        COLOURS[..., :1],
        COLOURS[..., :2],
        np.dstack([COLOURS, COLOURS[..., :1]]),
        COLOURS[::-1, ::2],
    ],
    ids=["RGB", "grey", "one channel", "grey and alpha", "RGBA", "a view"],
)
def test_arrays_of_bytes_are_height_width_channels(array):
    channels = array if array.ndim == 3 else array[..., None]
    colour = channels[..., :3] if channels.shape[2] > 2 else channels[..., :1].repeat(3, 2)
    np.testing.assert_array_equal(rgb(array), colour)


def test_arrays_of_bool_are_black_and_white():
    np.testing.assert_array_equal(rgb(COLOURS[..., 0] > 99)[..., 1], (COLOURS[..., 0] > 99) * 255)


def test_bytes_and_file_objects_are_read_as_the_file_is(tmp_path):
    data = encoded(Image.fromarray(COLOURS), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    consumed = io.BytesIO(data)
    consumed.read()
    with open(tmp_path / "a.png", "rb") as file:
        for source in (
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            consumed,
            consumed,
            file,
            file,
        ):
            np.testing.assert_array_equal(rgb(source), rgb(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (COLOURS.transpose(2, 0, 1), "array.transpose.1, 2, 0."),
        (COLOURS[None], "give one picture at a time"),
        (COLOURS.astype(np.int64), "uint8, uint16, float in .0, 1. or bool, found a int64 array"),
        (np.zeros((0, 4, 3), np.uint8), "found a uint8 array of shape .0, 4, 3."),
        (COLOURS[..., 0].astype(str), "found a .*array of shape .40, 60."),
        (None, "found None: leave it out"),
        ([COLOURS], "found a list of 1: give its pictures one by one"),
        (3, "found int"),
        (b"", "is empty .0 bytes"),
        (b"<html>404", "not an image .it starts with '<html>404'"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_way_to_make_one(source, words):
    with pytest.raises(LmmError, match=words):
        load_image(source)


def test_a_tensor_is_refused_with_the_way_to_an_array():
    import torch

    tensor = torch.from_numpy(COLOURS).permute(2, 0, 1)
    with pytest.raises(
        LmmError,
        match=r"torch tensor of shape \(3, 40, 60\): give tensor.permute\(1, 2, 0\).cpu\(\).numpy\(\)",
    ):
        load_image(tensor)
    np.testing.assert_array_equal(rgb(tensor.permute(1, 2, 0).cpu().numpy()), COLOURS)


def test_the_check_notes_deep_pictures_with_their_values(tmp_path):
    Image.fromarray(RAMP >> 4).save(tmp_path / "xray.png")
    (tmp_path / "xray.tif").write_bytes(DEEP["big-endian TIFF"]())
    for name, words in (
        ("xray.png", "values 0 to 4095"),
        ("xray.tif", "values 0 to 65535"),
    ):
        (note,) = check_images([str(tmp_path / name)])[str(tmp_path / name)]
        mode = Image.open(tmp_path / name).mode  # Pillow 10 calls a PNG's I
        assert note.code == "deep_image" and f"mode {mode}, {words}" in note.detail
