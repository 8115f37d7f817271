"""What is saved can be loaded and is the same model; what could not be is refused before anything is written."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks import registry
from lmmblocks.config import Block
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.siglip2_naflex import NaFlexConfig
from lmmblocks.encoders.tiled import TiledConfig
from lmmblocks.images import clip_preprocess
from lmmblocks.images.kinds import preprocess_from_dict, preprocess_to_dict
from lmmblocks.spec import LmmError

sys.path.append(str(Path(__file__).parent))
import own_blocks

FORMATS = ("hf", "native", "llava")
PICTURES = [Image.linear_gradient("L").convert("RGB").resize(size) for size in ((40, 30), (30, 50))]


def answers(model):
    return model.generate(["what is in the picture ?"] * 2, images=[[picture] for picture in PICTURES], max_new_tokens=4)


def rows_of(model):
    pixels, _ = model.encoder.preprocess.batch(PICTURES)
    with torch.no_grad():
        return model.encode(pixels)


def come_back(model, folder, format="native"):
    model.save(folder, format=format)
    again = lb.load(folder)
    assert type(again.encoder.preprocess) is type(model.encoder.preprocess)
    (ours, our_counts), (theirs, their_counts) = rows_of(model), rows_of(again)
    assert torch.equal(ours, theirs) and our_counts == their_counts
    assert answers(again) == answers(model)
    return again


def refused(model, folder, match, formats=FORMATS):
    for format in formats:
        with pytest.raises(LmmError, match=match):
            model.save(folder, format=format)
        assert not Path(folder).exists() and not list(Path(folder).parent.glob(".*.partial"))


def pixels_of(kind):
    square = clip_preprocess(28, 14)
    return {
        "subclass": own_blocks.Grey(28, 14, "pad", square.mean, square.std),
        "own field": own_blocks.Bright(28, 14, "crop", square.mean, square.std, gain=1.5),
        "own dict": own_blocks.Written(square, 0.5),
    }[kind]


@pytest.mark.parametrize("kind", ["subclass", "own field", "own dict"])
def test_own_preprocessing_comes_back_as_its_exact_class(make_model, tmp_path, kind):
    model = make_model()
    plain = rows_of(model)[0]
    model.encoder.preprocess = pixels_of(kind)
    assert not torch.equal(rows_of(model)[0], plain)
    come_back(model, tmp_path / "m")
    refused(model, tmp_path / "other", f"no place for image preprocessing '{type(pixels_of(kind)).__name__}'", formats=("hf", "llava"))


def test_a_subclass_of_native_preprocessing_keeps_its_grids(make_model, tmp_path):
    shape = NaFlexConfig(dim=16, layers=1, heads=2, mlp_dim=16, patch=14, max_patches=12)
    model = make_model(encoder=shape)
    grids = [model.encoder.preprocess.grid(*picture.size) for picture in PICTURES]
    model.encoder.preprocess = own_blocks.Even(14, 12)
    assert [model.encoder.preprocess.grid(*picture.size) for picture in PICTURES] != grids
    come_back(model, tmp_path / "m")


def test_own_preprocessing_inside_tiles_comes_back(make_model, tmp_path):
    tower = CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14)
    model = make_model(encoder=TiledConfig(tower, ((28, 56), (56, 28))))
    model.encoder.preprocess = replace(model.encoder.preprocess, tower=pixels_of("own field"))
    again = come_back(model, tmp_path / "m")
    assert again.encoder.preprocess == model.encoder.preprocess


def test_preprocessing_by_a_registered_name(monkeypatch):
    monkeypatch.setitem(registry._REGISTERED["preprocess"], "bright", own_blocks.Bright)
    values = preprocess_to_dict(pixels_of("own field"))
    assert (values["kind"], values["gain"]) == ("bright", 1.5)
    assert preprocess_from_dict(values) == pixels_of("own field")
    with pytest.raises(LmmError, match="kind 'brigt'; did you mean 'bright'.; known: bright, fused, native, square, tiles, or 'package"):
        preprocess_from_dict({**values, "kind": "brigt"})


def test_preprocessing_that_cannot_be_written_down(make_model, tmp_path):
    model = make_model(encoder=own_blocks.OwnPixelsConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14))
    come_back(model, tmp_path / "m")  # the encoder's config makes it
    model.encoder.preprocess = own_blocks.Unwritten(clip_preprocess(28, 14, "crop"))
    refused(model, tmp_path / "n", "preprocessing 'Unwritten' can't be written down: make it a dataclass of plain values, or give it to_dict")


@pytest.mark.parametrize("format", FORMATS)
def test_subclasses_of_what_transformers_has_are_not_exported_as_their_base(make_model, tmp_path, format):
    model = make_model(projector=own_blocks.HalfRows)
    if format == "native":
        come_back(model, tmp_path / "m")
    else:
        refused(model, tmp_path / "m", "no place for projector '.*HalfRows' .expected", formats=[format])


def test_pixel_shuffle_is_called_by_its_own_name(make_model, tmp_path):
    shape = CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14)
    model = make_model(encoder=shape, projector=Block("pixel_shuffle", {"factor": 2}))
    refused(model, tmp_path / "m", "no place for projector 'PixelShuffle' .expected 'MLP'", formats=["hf"])


def test_an_encoder_that_its_config_does_not_make_is_refused(make_model, tmp_path):
    shape = CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14)
    model = make_model(encoder=own_blocks.NoisyCLIP(shape))
    said = "vision_tower is a .*NoisyCLIP, the model's config makes a lmmblocks.encoders.clip:CLIP"
    refused(model, tmp_path / "m", said, formats=["native", "llava"])
    refused(model, tmp_path / "m", "no place for encoder 'NoisyCLIP'", formats=["hf"])


def test_a_projector_assigned_after_build_is_refused(make_model, tmp_path):
    model = make_model()
    model.multi_modal_projector = own_blocks.HalfRows(16, 24)
    said = "multi_modal_projector is a .*HalfRows, the model's config makes a lmmblocks.projectors.mlp:MLP"
    refused(model, tmp_path / "m", said, formats=["native", "llava"])
    model.multi_modal_projector = lb.build(model.config, projector=Block("mlp", {"depth": 3}), weights="random").projector
    refused(model, tmp_path / "m", "tensors that the model's config doesn't tell of: multi_modal_projector.linear_3", formats=["native", "llava"])


@pytest.mark.parametrize("format", FORMATS)
def test_a_module_of_the_models_own_is_refused_and_a_hook_comes_back(make_model, tmp_path, format):
    model = make_model()
    model.mask_head = torch.nn.Linear(24, 1)
    refused(model, tmp_path / "m", "2 tensors that the model's config doesn't tell of: mask_head.weight, mask_head.bias", formats=[format])
    if format == "native":
        come_back(make_model(hooks=[own_blocks.MaskHead]), tmp_path / "hooked")


@pytest.mark.parametrize("format", FORMATS)
def test_adapters_are_refused_until_they_are_merged(make_model, tmp_path, format):
    model = make_model()
    for layer in model.decoder.model.layers:
        layer.self_attn.q_proj = own_blocks.Adapted(layer.self_attn.q_proj)
    refused(model, tmp_path / "m", "(?s)q_proj is a own_blocks:Adapted.*merge adapters into the weights.*q_proj.base_layer.weight", formats=[format])
    for layer in model.decoder.model.layers:
        layer.self_attn.q_proj = layer.self_attn.q_proj.merged()
    come_back(model, tmp_path / "m", format)


def test_a_projector_whose_rows_depend_on_the_data_comes_back(make_model, tmp_path):
    come_back(make_model(projector=own_blocks.Routed), tmp_path / "m")


def test_classes_that_no_other_program_can_import_are_refused(make_model, tmp_path, monkeypatch):
    class Local(own_blocks.Routed):
        pass

    refused(make_model(projector=Local), tmp_path / "m", "'Local' is defined inside a function .*: move it to a file of its own", formats=["native"])
    monkeypatch.setattr(own_blocks.HalfRows, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "HalfRows", own_blocks.HalfRows, raising=False)
    refused(make_model(projector=own_blocks.HalfRows), tmp_path / "m", "'HalfRows' is defined in the script that runs", formats=["native"])
    monkeypatch.setitem(registry._REGISTERED["projector"], "half_rows", own_blocks.HalfRows)
    come_back(make_model(projector="half_rows"), tmp_path / "named")


def test_another_program_loads_what_was_saved(make_model, tmp_path):
    model = make_model(projector=own_blocks.HalfRows)
    model.encoder.preprocess = pixels_of("own field")
    model.save(tmp_path / "m", format="native")
    code = f"import lmmblocks as lb; m = lb.load({str(tmp_path / 'm')!r}); print(type(m.projector), m.encoder.preprocess)"
    paths = os.pathsep.join([str(Path(own_blocks.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert "own_blocks.HalfRows" in done.stdout and "Bright(" in done.stdout and "gain=1.5" in done.stdout


def test_changes_of_the_parts_configs_are_saved(make_model, tmp_path):
    model = make_model()
    model.decoder.config = replace(model.decoder.config, recompute=True)
    model.save(tmp_path / "m")
    assert lb.load(tmp_path / "m").decoder.config.recompute
