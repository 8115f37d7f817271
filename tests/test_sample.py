"""A sample holds lists, whatever it was given for one picture; what can't be told or read twice is refused in words."""

import io
import pickle
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lmmblocks as lb
from lmmblocks.generate.conversation import Conversation
from lmmblocks.generate.prompts import as_images
from lmmblocks.spec import LmmError, Sample, as_sample

TURNS = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "Red"}]
RED = Image.new("RGB", (16, 16), "red")


def png():
    buffer = io.BytesIO()
    RED.save(buffer, "PNG")
    return buffer.getvalue()


ONE = {
    "picture": lambda path: RED,
    "path": lambda path: path,
    "path string": lambda path: str(path),
    "numpy string": lambda path: np.str_(path),
    "array": lambda path: np.asarray(RED),
    "grey array": lambda path: np.zeros((16, 16), np.uint8),
    "bytes": lambda path: png(),
    "file object": lambda path: io.BytesIO(png()),
}


@pytest.fixture
def path(tmp_path):
    RED.save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.mark.parametrize("way", ONE)
def test_one_picture_is_a_list_of_one_in_every_entry(path, way):
    picture = ONE[way](path)
    for images in (
        Sample(TURNS, picture).images,
        as_images(picture),
        replace(Sample(TURNS), images=picture).images,
    ):
        assert isinstance(images, list) and len(images) == 1 and images[0] is picture


def test_lists_tuples_and_no_images_stay_what_they_are(path):
    pair = [RED, str(path)]
    for given in (pair, tuple(pair)):
        assert Sample(TURNS, given).images == pair == as_images(given)
    assert Sample(TURNS).images == Sample(TURNS, ()).images == as_images(None) == []
    assert Sample(tuple(TURNS)).messages == TURNS
    copy = pickle.loads(pickle.dumps(Sample(TURNS, str(path), 7)))
    assert copy == Sample(TURNS, [str(path)], 7)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "sample 'x' has images=None: give .. for no image"),
        ((image for image in [RED]), "a generator as images, which can be read only once: give list"),
        (iter([RED]), "which can be read only once"),
        ({"image": RED}, "dict as images: give a list of pictures"),
        ({RED.tobytes()}, "set as images: give a list of pictures"),
        (np.zeros((2, 4, 4, 3), np.uint8), "array of shape .2, 4, 4, 3. as images: give list.array."),
        (3, "int 3 as images"),
    ],
)
def test_other_images_are_refused_where_the_sample_is_made(images, words):
    with pytest.raises(LmmError, match=words):
        Sample(TURNS, images, "x")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("What?", "str 'What.' as messages, expected a list such as .*role"),
        (TURNS[0], "dict as messages.*; one message is given as .message."),
        (None, "NoneType as messages"),
        (iter(TURNS), "as messages.*; a list_iterator can be read only once"),
    ],
)
def test_other_messages_are_refused_where_the_sample_is_made(messages, words):
    with pytest.raises(LmmError, match=words):
        Sample(messages, [RED])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            {"messages": TURNS, "images": []},
            "samples.3. is dict, expected lmmblocks.Sample.*: lmmblocks.Sample.record.'messages'.",
        ),
        ({"conversations": [], "image": "a.png"}, "is dict.*load_records makes them of LLaVA's records"),
        ((TURNS, [RED]), "is tuple, expected lmmblocks.Sample"),
        (None, "is NoneType, expected"),
    ],
)
def test_what_is_no_sample_is_refused_with_the_way_to_make_one(found, words):
    with pytest.raises(LmmError, match=words):
        as_sample(found, "samples[3]")


def test_a_class_of_ones_own_is_held_to_the_same_rules():
    Theirs = namedtuple("Theirs", "messages images id")
    assert as_sample(Theirs(TURNS, RED, 1), "it") == Sample(TURNS, [RED], 1)
    with pytest.raises(LmmError, match="sample 1 has images=None"):
        as_sample(Theirs(TURNS, None, 1), "it")


@pytest.mark.parametrize("way", ["picture", "path", "path string", "array", "bytes", "file object"])
def test_training_and_asking_see_the_same_picture_however_it_is_given(tiny_model, path, way):
    expected = lb.collate([Sample(TURNS, [Path(path)])], tiny_model).pixels
    given = ONE[way](path)
    assert (lb.collate([Sample(TURNS, given)], tiny_model).pixels == expected).all()
    answer = tiny_model.generate("What?", images=[path], max_new_tokens=3)
    assert tiny_model.generate("What?", images=given, max_new_tokens=3) == answer
    assert Conversation(tiny_model).ask("What?", given, max_new_tokens=3) == answer
