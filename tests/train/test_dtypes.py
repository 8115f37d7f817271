"""Whatever dtype a model has, whatever a run computes in and trains: the model has its own again after it, answers, and is what is loaded."""

import warnings

import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks.compose.dtypes import dtypes_kept, widen
from lmmblocks.spec import LmmError
from lmmblocks.train.loop import train
from lmmblocks.train.stage import Stage

PICTURE = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
TRAINED = [("projector",), ("decoder",), ("encoder", "projector"), ("encoder", "projector", "decoder")]


def stage(parts, **changes):
    return Stage(**{"name": "test", "train": dict.fromkeys(parts, 1e-2), "batch_size": 2, "max_steps": 2, "warmup_ratio": 0.0, **changes})


def dtypes(model):
    return {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_floating_point()}


def logits(model, samples):
    with torch.inference_mode():
        return model.logits(lb.collate(samples[:2], model))


@pytest.mark.parametrize("parts", TRAINED, ids="+".join)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_training_returns_answers_and_is_what_is_loaded(model, samples, tmp_path, dtype, precision, parts):
    model.to(dtype)
    before, weights = dtypes(model), {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, stage(parts, precision=precision), samples[:2], tmp_path / "run")
        assert dtypes(model) == before and set(before.values()) == {dtype}
        answer = model.generate("What colour is it?", images=[PICTURE], max_new_tokens=4)
        for format in ("native", "hf"):
            model.save(tmp_path / format, format=format)
            loaded = lb.load(tmp_path / format)
            assert dtypes(loaded) == before
            assert torch.equal(logits(loaded, samples), logits(model, samples)), format
            assert loaded.generate("What colour is it?", images=[PICTURE], max_new_tokens=4) == answer
    names = {"encoder": "vision_tower", "projector": "multi_modal_projector", "decoder": "language_model"}
    for part, prefix in names.items():
        moved = [name for name, value in model.state_dict().items() if name.startswith(prefix) and not torch.equal(value, weights[name])]
        assert bool(moved) == (part in parts), (part, moved)


def test_the_checkpoint_keeps_what_the_model_rounds_and_a_resumed_run_goes_on_from_it(make_model, tokenizer, samples, tmp_path):
    whole, halves = (make_model(tokenizer).to(torch.bfloat16) for _ in range(2))
    asked = {"parts": ("projector",), "precision": "bf16", "max_steps": 4, "checkpoint_every_steps": 2, "keep_checkpoints": 9}
    through = train(whole, stage(**asked), samples, tmp_path / "whole")

    def stop(row):
        if row.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(halves, stage(**asked), samples, tmp_path / "halves", on_step=stop)
    assert set(dtypes(halves).values()) == {torch.bfloat16}, "an interrupted run gives the dtypes back too"
    assert train(halves, stage(**asked), samples, tmp_path / "halves").losses == through.losses
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole.state_dict().values(), halves.state_dict().values()))
    from safetensors.torch import load_file

    held = load_file(through.checkpoint / "trainable.safetensors")
    ours = whole.state_dict()
    assert {value.dtype for value in held.values()} == {torch.float32}
    assert all(torch.equal(value.bfloat16(), ours[name]) for name, value in held.items())
    assert any(not torch.equal(value, ours[name].float()) for name, value in held.items()), "rounding lost nothing: the test can't tell"


def test_a_run_says_what_is_rounded(model, samples, tmp_path, capsys):
    train(model, stage(("projector",)), samples, tmp_path / "fp32")
    assert "rounded" not in capsys.readouterr().out
    result = train(model.to(torch.bfloat16), stage(("projector",)), samples, tmp_path / "bf16")
    said = capsys.readouterr().out
    assert f"the model is bfloat16 again, to which trained weights are rounded; {result.checkpoint} has them in float32" in said


def test_a_refused_or_finished_run_gives_buffers_their_dtype_back(model, samples, tmp_path):
    model.projector.register_buffer("mean", torch.zeros(3))
    model.to(torch.bfloat16)
    before = dtypes(model)
    train(model, stage(("projector",)), samples, tmp_path / "run")
    with pytest.raises(LmmError, match="belongs to another run"):  # found out after the conversion to fp32
        train(model, stage(("projector",), seed=7), samples, tmp_path / "run")
    assert dtypes(model) == before and before["multi_modal_projector.mean"] == torch.bfloat16


def test_weights_beyond_a_dtype_leave_the_whole_model_in_fp32_and_say_so():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).to(torch.float16)
    with pytest.warns(UserWarning, match="beyond float16's largest number: the model stays in float32"), dtypes_kept(model):
        widen(model)
        model[0].weight.data[0, 0] = 7e4
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert model[0].weight[0, 0] == 7e4


def test_parameters_stay_the_objects_that_others_know_and_tied_ones_tied():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)}).to(torch.bfloat16)
    model["b"].weight = model["a"].weight
    known = list(model.parameters())
    with dtypes_kept(model):
        widen(model)
        assert {p.dtype for p in known} == {torch.float32}
    assert all(ours is theirs for ours, theirs in zip(known, model.parameters())) and model["a"].weight is model["b"].weight
    assert {p.dtype for p in known} == {torch.bfloat16}
