"""Whatever dtypes the parts are stored in, what is loaded has one, says so, and answers."""

import json
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import lmmblocks as lb
from lmmblocks.cli.inspect import text
from lmmblocks.lmm import LMM
from lmmblocks.spec import LmmError
from lmmblocks.weights.inspect import inspect

PARTS = {"encoder": "vision_tower.", "projector": "multi_modal_projector.", "decoder": "language_model."}
FORMATS = ["hf", "native", "llava"]


class Statistics(torch.nn.Module):
    """A projector with a buffer that files hold and one that they don't."""

    requires = frozenset({"patches"})

    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.linear = torch.nn.Linear(in_dim, out_dim)
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def out_grid(self, grid):
        return grid

    def forward(self, features):
        return self.linear(features.patches - self.mean) * self.scale


def stored(folder, change):
    """Rewrite a folder's weights, each by ``change(name, tensor)``."""
    path = folder / "model.safetensors"
    tensors = {name: change(name, value) for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def dtypes(model):
    return {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}


def answer(model):
    return model.generate("what is in the picture ?", images=[Image.new("RGB", (9, 9), "red")], max_new_tokens=3)


@pytest.mark.parametrize("odd", PARTS)
@pytest.mark.parametrize("others", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("format", ["hf", "native"])
def test_a_mixture_is_loaded_in_the_decoders_dtype_and_says_so(make_model, tmp_path, format, others, odd):
    own = torch.float32 if others != torch.float32 else torch.bfloat16
    make_model().save(tmp_path / "m", format=format)
    stored(tmp_path / "m", lambda name, value: value.to(own if name.startswith(PARTS[odd]) else others))
    expected = own if odd == "decoder" else others
    said = str(expected).removeprefix("torch.")
    with pytest.warns(UserWarning, match=f"several dtypes .*all are loaded in {said}, that of most of the decoder's weights"):
        model = lb.load(tmp_path / "m")
    assert dtypes(model) == {expected}
    assert answer(model) == answer(lb.load(tmp_path / "m", dtype=expected))
    report = inspect(tmp_path / "m")
    assert report.settings["dtype"].startswith(f"{said} once loaded") and not report.problems
    assert f"dtype {said} once loaded" in " ".join(text(report).split())


def test_a_few_norms_in_fp32_do_not_make_the_decoder_fp32(make_model, tmp_path):
    make_model().save(tmp_path / "m")
    stored(tmp_path / "m", lambda name, value: value if "norm" in name else value.bfloat16())
    with pytest.warns(UserWarning, match="decoder bfloat16 and float32, encoder bfloat16 and float32.*loaded in bfloat16"):
        assert dtypes(lb.load(tmp_path / "m")) == {torch.bfloat16}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_one_dtype_is_kept_without_a_word(make_model, tmp_path, format, dtype):
    make_model().save(tmp_path / "m", format=format, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = lb.load(tmp_path / "m")
    assert dtypes(model) == {dtype or torch.float32}
    assert isinstance(answer(model), str)
    assert "dtype" not in inspect(tmp_path / "m").settings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_buffers_get_the_dtype_too_as_build_gives_it_to_them(make_model, tmp_path, dtype):
    model = make_model(projector=Statistics, dtype=dtype)
    model.save(tmp_path / "m", format="native")
    again = lb.load(tmp_path / "m")
    assert dtypes(model) == dtypes(again) == {dtype}
    assert answer(model) == answer(again)


def test_eight_bit_floats_need_a_dtype_to_compute_in(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "m")
    stored(tmp_path / "m", lambda name, value: value.to(torch.float8_e4m3fn))
    with pytest.raises(LmmError, match=r"stored as float8_e4m3fn, in which nothing here computes: .*dtype=torch.bfloat16"):
        lb.load(tmp_path / "m")
    assert any("float8_e4m3fn" in problem for problem in inspect(tmp_path / "m").problems)
    assert dtypes(lb.load(tmp_path / "m", dtype=torch.bfloat16)) == {torch.bfloat16}
    for call in (
        lambda: model.save(tmp_path / "n", dtype=torch.float8_e4m3fn),
        lambda: lb.load(tmp_path / "m", dtype=torch.float8_e4m3fn),
        lambda: lb.build("llava15-tiny", weights="random", dtype=torch.float8_e4m3fn),
    ):
        with pytest.raises(LmmError, match="dtype=torch.float8_e4m3fn: expected a floating-point torch dtype"):
            call()
    assert not (tmp_path / "n").exists()


def test_integers_in_the_place_of_weights_are_refused(make_model, tmp_path):
    make_model().save(tmp_path / "m")
    stored(tmp_path / "m", lambda name, value: value.to(torch.int32) if "mlp.up_proj" in name else value)
    with pytest.raises(LmmError, match="2 of integers, expected floating-point numbers: .*up_proj.weight is int32"):
        lb.load(tmp_path / "m")


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_several_dtypes_are_not_put_together_nor_asked(make_model, part):
    model = make_model()
    model.parts[part].half()
    with pytest.raises(LmmError, match=f"several dtypes, .*{part} .*float16.*: convert all of them with model.to"):
        LMM(model.encoder, model.projector, model.decoder, tokenizer=model.tokenizer)
    with pytest.raises(LmmError, match="the weights are of several dtypes"):
        answer(model)
    assert isinstance(answer(model.to(torch.float32)), str)


def test_parts_on_several_devices_are_not_put_together(make_model):
    model = make_model()
    with pytest.raises(LmmError, match="several devices, .*projector 'MLP' meta.*: move all of them with model.to"):
        LMM(model.encoder, model.projector.to("meta"), model.decoder)


def test_build_gives_modules_of_any_dtype_the_one_asked_for(make_model):
    model = make_model()
    swaps = {"encoder": model.encoder.half(), "projector": model.projector.bfloat16(), "decoder": model.decoder.double()}
    built = lb.build(model.config, tokenizer=model.tokenizer, weights="random", **swaps)
    assert dtypes(built) == {torch.float32} and isinstance(answer(built), str)


def test_the_exported_dtype_is_what_the_weights_have(make_model, tmp_path):
    make_model().save(tmp_path / "m", dtype=torch.bfloat16)
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    assert values.get("dtype", values.get("torch_dtype")) == "bfloat16"
    assert {value.dtype for value in load_file(tmp_path / "m" / "model.safetensors").values()} == {torch.bfloat16}
