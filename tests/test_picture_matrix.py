"""Every kind of picture through every door: check, loading, training and asking see the same one, or all of them refuse it."""

import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks.data.check import check_file
from lmmblocks.data.records import load_records
from lmmblocks.eval import answer_questions, read_questions
from lmmblocks.images import load_image
from lmmblocks.spec import LmmError, Sample
from lmmblocks.train import Stage
from lmmblocks.train.fingerprint import samples_hash
from lmmblocks.train.micro_batches import step_input

RANDOM = np.random.default_rng(0)
COLOURS = Image.fromarray(RANDOM.integers(0, 256, (32, 48, 3), dtype=np.uint8))
DEEP = RANDOM.integers(0, 65536, (32, 48)).astype(np.uint16)
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]


def encoded(image, form):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def tiff(array):
    """A TIFF of any number of channels and bits: those that Pillow doesn't write."""
    (height, width), channels = array.shape[:2], array.shape[2]
    data, bits = array.tobytes(), 8 * array.itemsize
    number = 3 if array.dtype.kind == "f" else 1
    photometric = 2 if channels == 3 else 1
    at = 8 + 2 + 12 * 10 + 4
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, at), (259, 3, 1, 1), (262, 3, 1, photometric)),
        *((273, 4, 1, at + 16), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data)), (339, 3, channels, at + 8)),
    ]
    if channels == 2:  # two values fit in the entry
        entries = [(tag, kind, n, {258: bits * 65537, 339: number * 65537}.get(tag, value)) for tag, kind, n, value in entries]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return head + bytes(4) + struct.pack("<4H4H", *[bits] * 4, *[number] * 4) + data


RGB16 = RANDOM.integers(0, 65536, (32, 48, 3)).astype("<u2")
WHOLE = encoded(COLOURS.resize((96, 64)), "JPEG")
FILES = {
    "1.png": COLOURS.convert("1"),
    "L.jpg": COLOURS.convert("L"),
    "P.png": COLOURS.convert("P"),
    "LA.png": COLOURS.convert("LA"),
    "RGBA.webp": COLOURS.convert("RGBA"),
    "CMYK.jpg": COLOURS.convert("CMYK"),
    "YCbCr.tif": COLOURS.convert("YCbCr"),
    "deep.png": Image.fromarray(DEEP),
    "deep.tif": Image.fromarray(DEEP),
    "float.tif": Image.fromarray((DEEP / 65535).astype(np.float32)),
    "rgb16.tif": tiff(RGB16),
    "trailer.jpg": WHOLE + bytes(100),
}
REFUSED = {
    "float255.tif": Image.fromarray(DEEP.astype(np.float32)),
    "nan.tif": Image.fromarray(np.full((8, 8), np.nan, np.float32)),
    "I.tif": Image.fromarray(DEEP.astype(np.int32)),
    "thin.png": Image.new("RGB", (1, 400)),
    "zeros.jpg": WHOLE[: len(WHOLE) // 2] + bytes(len(WHOLE) // 2),
    "grey16alpha.tif": tiff(RGB16[..., :2]),
    "floats.tif": tiff((RGB16 / 65535).astype("<f4")),
    "floats.pfm": b"PF\n48 32\n-1.0\n" + bytes(4 * 3 * 48 * 32),
}


def record_file(folder, name, image):
    if isinstance(image, bytes):
        (folder / name).write_bytes(image)
    else:
        image.save(folder / name)
    (folder / "data.json").write_text(json.dumps([{"id": "a", "image": name, "conversations": TURNS}]))
    return folder / "data.json"


@pytest.mark.parametrize("name", FILES)
def test_all_doors_see_the_same_picture(tiny_model, tmp_path, name):
    path = record_file(tmp_path, name, FILES[name])
    assert check_file(path, tmp_path).ok
    records = load_records(path, tmp_path, images="decode")
    seen = load_image(tmp_path / name)
    expected = lb.collate([Sample(records[0].messages, [seen])], tiny_model).pixels
    assert torch.equal(lb.collate(list(records), tiny_model).pixels, expected)
    stage = Stage(name="s", train={"projector": 1e-3}, batch_size=1)
    (batch,) = step_input(0, list(records), tiny_model.input_spec, stage).batches
    assert torch.equal(batch.pixels, expected)
    answer = tiny_model.generate("What?", images=seen, max_new_tokens=3)
    assert tiny_model.generate("What?", images=tmp_path / name, max_new_tokens=3) == answer
    assert answer_questions(tiny_model, read_questions(records), max_new_tokens=3) == [answer]


@pytest.mark.parametrize("name", REFUSED)
def test_all_doors_refuse_the_same_picture(tiny_model, tmp_path, name):
    path = record_file(tmp_path, name, REFUSED[name])
    assert not check_file(path, tmp_path).ok
    (sample,) = load_records(path, tmp_path)
    stage = Stage(name="s", train={"projector": 1e-3}, batch_size=1)
    doors = [
        lambda: load_records(path, tmp_path, images="decode"),
        lambda: lb.collate([sample], tiny_model),
        lambda: step_input(0, [sample], tiny_model.input_spec, stage),
        lambda: tiny_model.generate("What?", images=sample.images),
    ]
    for door in doors:
        with pytest.raises(LmmError, match=name):
            door()


def test_a_colour_of_16_bits_keeps_its_high_byte():
    assert np.array_equal(np.asarray(load_image(FILES["rgb16.tif"])), RGB16 >> 8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grey16alpha.tif", "a TIFF of 2 channels of 16 bits .whole numbers., which isn't read here: convert it"),
        ("floats.tif", "a TIFF of 3 channels of 32 bits .floats., which isn't read here"),
        ("floats.pfm", "PFM of three channels, which isn't read here"),
    ],
)
def test_pixels_that_are_rare_arent_called_damaged(name, words):
    with pytest.raises(LmmError, match=words):
        load_image(REFUSED[name])


def test_runs_tell_pictures_apart_however_they_are_given():
    """A resumed run compares its data with the one before."""
    other = COLOURS.rotate(180)
    for way in (lambda image: image, lambda image: encoded(image, "PNG"), np.asarray, lambda image: io.BytesIO(encoded(image, "PNG"))):
        first, again, different = (samples_hash([Sample([], [way(image)], 1)]) for image in (COLOURS, COLOURS, other))
        assert first == again != different
