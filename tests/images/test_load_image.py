"""Every way an image file can be broken is one clear error; what LLaVA does to sound files is done, nothing else."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lmmblocks.images import ImageError, load_image
from lmmblocks.spec import LmmError


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def kind_of(source):
    with pytest.raises(ImageError) as caught:
        load_image(source)
    assert str(source) in str(caught.value), "the message names the file"
    return caught.value.kind


def png_header(width, height):
    """A PNG that promises a picture and holds next to nothing."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_missing_folder_and_empty_files(tmp_path):
    assert kind_of(tmp_path / "no.jpg") == "missing"
    assert kind_of(tmp_path) == "missing"
    assert kind_of("https://example.org/cat.jpg") == "missing"
    (tmp_path / "zero.jpg").touch()
    assert kind_of(tmp_path / "zero.jpg") == "zero_byte"


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("sub\\cat.jpg", "sub/cat.jpg"),
        ("my%20cat.jpg", "my cat.jpg"),
        ("cat.JPG", "cat.jpg"),
        ("cat.jpeg", "cat.jpg"),
        (" cat.jpg", "cat.jpg"),
        ("cat.jpg\n", "cat.jpg"),
        ("file://cat.jpg", "cat.jpg"),
        ("caf\u00e9.png", "cafe\u0301.png"),
    ],
)
def test_a_missing_picture_names_the_file_that_is_written_otherwise(picture, tmp_path, written, there):
    (tmp_path / "sub").mkdir()
    picture.save(tmp_path / there)
    path = f"{tmp_path}/{written}"
    with pytest.raises(ImageError) as error:
        load_image(path)
    assert error.value.kind == "missing"
    shown = ascii(str(tmp_path / there))
    assert f"; {shown} is there: write the path as the file is called" in str(error.value)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_rest_is_zeros_is_truncated(picture, tmp_path, progressive):
    buffer = io.BytesIO()
    picture.resize((160, 120)).save(buffer, "JPEG", progressive=progressive, comment=b"\xff\xd9 of a thumbnail")
    whole = buffer.getvalue()
    assert load_image(whole + bytes(50)).size == (160, 120), "what follows the end does no harm"
    for cut in (len(whole) - 2, len(whole) * 3 // 4):
        for source in (broken := whole[:cut] + bytes(len(whole) - cut), Image.open(io.BytesIO(broken))):
            with pytest.raises(ImageError, match="a JPEG without an end") as error:
                load_image(source)
            assert error.value.kind == "truncated"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.webp", "a.tiff"])
def test_a_file_cut_in_half_is_truncated(picture, tmp_path, name):
    picture.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert kind_of(tmp_path / name) == "truncated"


def test_what_is_not_an_image_says_what_it_is(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404 not found</html>")
    assert kind_of(tmp_path / "page.jpg") == "corrupt"
    with pytest.raises(ImageError, match="starts with '<html>404 not fo'"):
        load_image(tmp_path / "page.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(12_000, 12_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path, width, height):
    (tmp_path / "bomb.png").write_bytes(png_header(width, height))
    assert kind_of(tmp_path / "bomb.png") == "bomb"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # PIL's own remarks on the damage
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.webp", "a.tiff", "a.tga"])
def test_damaged_bytes_never_raise_anything_but_an_image_error(picture, tmp_path, name):
    picture.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(0, min(len(whole), 200), 6)] = random.integers(0, 256, 6)
        (tmp_path / name).write_bytes(damaged.tobytes())
        try:
            load_image(tmp_path / name)
        except ImageError:
            refused += 1
    assert refused > 0


def test_like_llava_orientation_is_not_applied_and_the_first_frame_is_taken(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").size == picture.size
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "two.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_of_8_bits_becomes_rgb_as_pil_converts_it(picture, mode):
    image = picture.convert(mode)
    assert load_image(image).tobytes() == image.convert("RGB").tobytes()


def test_other_types_are_refused_and_errors_cross_processes():
    with pytest.raises(LmmError, match="an image is a path, a PIL image, .* or a numpy array .*, found int$"):
        load_image(3)
    error = ImageError("bomb", "too big")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.kind, str(copy)) == ("bomb", "too big")


@pytest.mark.parametrize("loaded", [False, True])
def test_a_closed_picture_is_refused_in_words(picture, tmp_path, loaded):
    picture.save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    if loaded:
        image.load()
    image.close()
    with pytest.raises(LmmError, match="a.png was closed before it was used: give it inside its `with` block"):
        load_image(image)
    with Image.open(tmp_path / "a.png") as left:
        pass
    with pytest.raises(LmmError, match="was closed before it was used"):
        load_image(left)
    with open(tmp_path / "a.png", "rb") as file:
        under_it = Image.open(file)
    with pytest.raises(LmmError, match="was closed before it was used"):
        load_image(under_it)
    with Image.open(tmp_path / "a.png") as read:
        read.load()
    assert load_image(read).tobytes() == picture.tobytes(), "what was read stays usable"


FOREIGN = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "JPEG XL": b"\xff\x0a\xfa\x7f",
    "SVG": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "PDF": b"%PDF-1.7\n",
    "a video": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2",
    "gzip": b"\x1f\x8b\x08\0",
    "DICOM": bytes(128) + b"DICM",
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a numpy array": b"\x93NUMPY\1\0",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_kinds_of_files_are_named_with_what_reads_them(tmp_path, kind):
    (tmp_path / "photo.jpg").write_bytes(FOREIGN[kind] + bytes(64))
    assert kind_of(tmp_path / "photo.jpg") == "format"
    with pytest.raises(ImageError, match=f"is {kind}, which isn't read here: "):
        load_image(FOREIGN[kind] + bytes(64))


@pytest.mark.parametrize("url", ["https://example.org/cat.jpg", "data:image/png;base64,iVBORw0KGgo="])
def test_a_url_is_no_path(url):
    with pytest.raises(ImageError, match="URLs aren't read: download it"):
        load_image(url)
