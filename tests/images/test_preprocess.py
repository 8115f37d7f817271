"""Pixels equal what LLaVA-1.5 feeds its tower: recorded cases, transformers' processors, and PIL step by step."""

import json
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lmmblocks.images import CLIP_MEAN, CLIP_STD, ImageError, ImagePreprocess, clip_preprocess
from lmmblocks.images.kinds import preprocess_from_dict, preprocess_to_dict
from lmmblocks.images.native import NativePreprocess
from lmmblocks.spec import Grid, LmmError

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = json.loads((GOLDEN / "pixels.json").read_text())
MAKER = runpy.run_path(str(GOLDEN / "make.py"))
SHAPES = [
    (640, 480),
    (480, 640),
    (101, 37),
    (37, 101),
    (336, 336),
    (300, 336),
    (336, 301),
    (1, 1),
    (1000, 7),
    (7, 1000),
]


def picture(width, height, seed=0):
    """Noise over a gradient: every pixel matters, and there are edges for the filter to ring on."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[: height // 2] //= 4
    return Image.fromarray(noise)


def padded(image, colour=(122, 116, 104)):
    """LLaVA's expand2square, as the paper's code describes it: the whole padded picture first."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("case", RECORDED)
def test_pixels_equal_the_recorded_ones_to_the_last_bit_of_their_fp16(case, fit):
    ours = clip_preprocess(336, 14, fit)(MAKER["picture_of"](case))
    assert ours.dtype == torch.float32 and ours.shape == (3, 336, 336)
    assert MAKER["checksum"](ours.half().numpy()) == RECORDED[case][fit], "values differ after rounding to fp16"


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_pixels_equal_transformers_bitwise(width, height, fit, image_processor_class):
    side = {"height": 336, "width": 336}
    processor = image_processor_class("CLIP")(size={"shortest_edge": 336}, crop_size=side)
    image = picture(width, height)
    theirs = processor(padded(image) if fit == "pad" else image, input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]
    assert torch.equal(clip_preprocess(336, 14, fit)(image), theirs)


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_pixels_equal_pil_and_float64_arithmetic(width, height, fit):
    size, image = 56, picture(width, height)
    if fit == "pad":
        square = padded(image).resize((size, size), Image.Resampling.BICUBIC)
    else:
        short, long = min(width, height), int(size * max(width, height) / min(width, height))
        new = (size, long) if width == short else (long, size)
        corner = ((new[0] - size) // 2, (new[1] - size) // 2)
        square = image.resize(new, Image.Resampling.BICUBIC).crop((*corner, corner[0] + size, corner[1] + size))
    expected = ((np.asarray(square, np.float64) / 255 - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)
    error = np.abs(clip_preprocess(size, 14, fit)(image).numpy() - expected).max()
    assert error < 5e-7, f"{error=}: more than float32 rounding of values up to 2.7"


def test_a_tall_image_padded_in_strips_equals_padding_it_whole(monkeypatch):
    image = picture(150, 400)
    whole = clip_preprocess(112)(image)
    monkeypatch.setattr("lmmblocks.images.preprocess._STRIP_PIXELS", 400 * 17)
    assert torch.equal(clip_preprocess(112)(image), whole)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_hf_config_round_trip_and_same_pixels_in_transformers(resample, image_processor_class):
    families = {("pad", None): "Llava", ("crop", None): "CLIP", ("crop", 64): "CLIP", ("squash", None): "Siglip"}
    image = picture(97, 61)
    for (fit, resize_px), family in families.items():
        processor = image_processor_class(family)
        spec = ImagePreprocess(56, 14, fit, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), resample, resize_px)
        config = json.loads(json.dumps(spec.to_hf_processor_config()))
        assert ImagePreprocess.from_hf_processor_config(config, patch_px=14) == spec
        assert config.pop("image_processor_type") == processor.__name__.removesuffix("Pil")
        theirs = processor(**config)(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(spec(image), theirs), fit


def test_hf_configs_of_all_ages_are_read():
    openai = {"crop_size": 336, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 336,
              "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "feature_extractor_type": "CLIPFeatureExtractor"}  # fmt: skip
    hub = {
        **openai,
        "crop_size": {"height": 336, "width": 336},
        "size": {"shortest_edge": 336},
        "rescale_factor": 1 / 255,
    }
    read = ImagePreprocess.from_hf_processor_config
    assert read(openai, patch_px=14) == clip_preprocess(fit="crop")
    assert read(hub, patch_px=14, fit="pad") == clip_preprocess()
    assert read({"image_processor": {**hub, "do_pad": True}, "processor_class": "LlavaProcessor"}, patch_px=14) == clip_preprocess()


def test_hf_configs_with_other_steps_are_refused_and_all_named():
    config = {
        "size": {"shortest_edge": 300},
        "crop_size": 384,
        "do_center_crop": False,
        "resample": 0,
        "rescale_factor": 1 / 127.5,
    }
    with pytest.raises(LmmError, match=r"rescale_factor.*do_center_crop=false.*below crop_size.*resample=0"):
        ImagePreprocess.from_hf_processor_config(config, patch_px=14)
    cut = {"size": {"height": 384, "width": 384}, "crop_size": 336, "do_center_crop": True}
    with pytest.raises(LmmError, match="crop_size=336 cuts an image that was squashed"):
        ImagePreprocess.from_hf_processor_config(cut, patch_px=14)
    with pytest.raises(LmmError, match="side of a square in pixels, found"):
        ImagePreprocess.from_hf_processor_config({"crop_size": {"height": 3, "width": 4}}, patch_px=1)


UNKNOWN_STEPS = {
    "do_flip_channel_order": True,  # MobileViT: blue first
    "do_thumbnail": True,  # Donut
    "do_grayscale": True,
    "do_image_splitting": True,
    "do_a_step_of_tomorrow": True,
    "crop_pct": 0.875,  # ConvNeXT: another size before the cut
    "rescale_offset": True,  # EfficientNet: from -1 to 1
}
READERS = {
    "squares": lambda config: ImagePreprocess.from_hf_processor_config({"size": {"height": 28, "width": 28}, **config}, patch_px=14),
    "any shape": NativePreprocess.from_hf_processor_config,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("step", UNKNOWN_STEPS)
def test_a_step_that_is_not_computed_is_refused_by_name_and_one_that_is_off_is_not(reader, step):
    with pytest.raises(LmmError, match=f"{step}={UNKNOWN_STEPS[step]}.*isn't computed"):
        READERS[reader]({step: UNKNOWN_STEPS[step]})
    for off in (False, None):
        assert READERS[reader]({step: off, "do_reduce_labels": True, "do_convert_rgb": False}) == READERS[reader]({})


@pytest.mark.parametrize("reader", READERS)
def test_one_number_of_a_processor_is_that_of_every_channel_and_null_the_usual(reader):
    read = READERS[reader]
    assert read({"image_mean": 0.25, "image_std": 1}) == read({"image_mean": [0.25] * 3, "image_std": [1.0] * 3})
    assert read({"image_mean": None, "image_std": None}) == read({})
    with pytest.raises(LmmError, match="rescale_factor=None"):
        read({"rescale_factor": None})


NAN, INF = float("nan"), float("inf")
MADE = {
    "square": lambda **changes: ImagePreprocess(**{"size_px": 28, "patch_px": 14, "fit": "crop", "mean": (0.5,) * 3, "std": (0.5,) * 3, **changes}),
    "any shape": NativePreprocess,
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    "values", [(NAN, 0.5, 0.5), (INF, 0.5, 0.5), (-0.1, 0.5, 0.5), (True,) * 3, ("0.5",) * 3, 0.5, (0.5,) * 2, (123.7, 116.3, 103.5)]
)
def test_statistics_that_cannot_be_meant_are_refused(kind, name, values):
    with pytest.raises(LmmError, match=f"{name} must be three numbers .* to 1, found") as caught:
        MADE[kind](**{name: values})
    assert ("divide them by 255" in str(caught.value)) == (values[-1:] == (103.5,) if isinstance(values, tuple) else False)


@pytest.mark.parametrize(("kind", "name"), [("square", "size_px"), ("square", "patch_px"), ("square", "resize_px"), ("any shape", "max_patches")])
def test_sizes_are_whole_numbers_and_numbers_of_other_libraries_become_pythons_own(kind, name):
    for wrong in (28.0, True, "28", NAN, 0, -28):
        with pytest.raises(LmmError, match=f"{name} must be a whole number above 0( or None)?, found {wrong!r}"):
            MADE[kind](**{name: wrong})
    for number in (np.int64(28), torch.tensor(28)):
        made = MADE[kind](**{name: number, "mean": np.float32([0, 0.5, 1]), "std": torch.full((3,), 0.5)})
        assert made == MADE[kind](**{name: 28, "mean": (0, 0.5, 1), "std": (0.5,) * 3})
        assert preprocess_from_dict(json.loads(json.dumps(preprocess_to_dict(made)))) == made


def test_batch_stacks_single_images_and_an_empty_batch_has_no_pixels():
    preprocess = clip_preprocess(56)
    images = [picture(60, 40), picture(40, 60, seed=1)]
    pixels, grids = preprocess.batch(images)
    assert torch.equal(pixels, torch.stack([preprocess(image) for image in images]))
    assert grids == (Grid(4, 4), Grid(4, 4)) == tuple(preprocess.grid(*image.size) for image in images)
    empty, none = preprocess.batch([])
    assert empty.shape == (0, 3, 56, 56) and none == ()


def test_a_path_and_its_image_give_the_same_pixels(tmp_path):
    image = picture(50, 30)
    image.save(tmp_path / "a.png")
    preprocess = clip_preprocess(28)
    assert torch.equal(preprocess(tmp_path / "a.png"), preprocess(image))
    assert torch.equal(preprocess(str(tmp_path / "a.png")), preprocess(image))


def test_spec_survives_json_and_pickle_and_refuses_unknown_keys():
    spec = clip_preprocess(112, 14, "crop")
    assert preprocess_from_dict(json.loads(json.dumps(preprocess_to_dict(spec)))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(LmmError, match="'sizepx'; did you mean 'size_px'"):
        preprocess_from_dict({**preprocess_to_dict(spec), "sizepx": 3})
    with pytest.raises(LmmError, match="missing keys fit"):
        preprocess_from_dict({key: value for key, value in preprocess_to_dict(spec).items() if key != "fit"})


@pytest.mark.parametrize(
    "change",
    [
        {"fit": "stretch"},
        {"patch_px": 0},
        {"size_px": 7},
        {"std": (1, 0, 1)},
        {"mean": (0.5,)},
        {"resample": "box"},
        {"resize_px": 335},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(LmmError):
        ImagePreprocess(**{**preprocess_to_dict(clip_preprocess()), **change})


def test_an_image_nothing_would_be_seen_of_is_refused_before_it_fills_the_memory():
    with pytest.raises(ImageError, match="aspect ratio of at most 200") as caught:
        clip_preprocess(fit="crop")(Image.new("RGB", (1, 20_000)))
    assert caught.value.kind == "extreme"
