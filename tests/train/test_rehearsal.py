"""A run refuses in its first minute what would come back from its folder as another model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmmblocks as lb
from lmmblocks.spec import LmmError
from lmmblocks.train.rehearsal import check_saved

LANGUAGE = "examples/llava15/weights/language"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lb.build("llava15-tiny", weights="random", tokenizer=LANGUAGE)


@pytest.mark.parametrize("format", ["hf", "native", "llava"])
def test_what_comes_back_the_same_is_accepted(model, tmp_path, format):
    model.save(tmp_path / "m", format=format)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_saved(model, tmp_path / "m")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_weights_are_refused(model, tmp_path):
    model.save(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["multi_modal_projector.linear_1.bias"] += 1
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LmmError, match="1 tensors have other values, such as multi_modal_projector.linear_1.bias"):
        check_saved(model, tmp_path / "m")


@pytest.mark.parametrize(
    "change, match",
    [({"template": "llava_v1"}, "ids of a prompt: .* before, .* after"), ({"preprocess": {"fit": "crop"}}, "the logits of the first token")],
)
def test_other_settings_are_refused(model, tmp_path, change, match):
    model.save(tmp_path / "m", format="native")
    path = tmp_path / "m" / "lmmblocks.json"
    values = json.loads(path.read_text())
    for key, value in change.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(values))
    with pytest.raises(LmmError, match=match):
        check_saved(model, tmp_path / "m")
