"""Batches come in order and are the same, however they are prepared; errors arrive as they were raised."""

import dataclasses

import pytest
import torch

from lmmblocks.spec import LmmError
from lmmblocks.train.loader import StepDataset, StepLoader, stage_inputs
from lmmblocks.train.order import StepOrder
from lmmblocks.train.stage_inputs import set_stage_inputs


def dataset(model, samples, stage):
    return StepDataset(samples, StepOrder(samples, stage), model.input_spec, stage)


def assert_equal_steps(found, expected):
    assert (found.step, found.sample_ids, found.weights) == (
        expected.step,
        expected.sample_ids,
        expected.weights,
    )
    for ours, theirs in zip(found.batches, expected.batches, strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.plan.source, theirs.plan.source)
        assert torch.equal(ours.plan.targets, theirs.plan.targets)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 4])
def test_background_steps_equal_those_made_in_the_foreground(model, samples, stage, workers, start):
    stage = dataclasses.replace(stage, workers=workers)
    data = dataset(model, samples, stage)
    loader = StepLoader(data, start)
    found = list(loader)
    assert [inputs.step for inputs in found] == list(range(start, len(data)))
    for inputs in found:
        assert_equal_steps(inputs, data[inputs.step])
    assert loader.waited_s > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_ends_the_steps_with_its_own_message(model, samples, stage, workers):
    samples[7] = dataclasses.replace(samples[7], images=["/nowhere/x.png"])
    samples[7].messages[0]["content"] = "<image>\nWhat?"
    data = dataset(model, samples, dataclasses.replace(stage, workers=workers))
    with pytest.raises(LmmError) as error:
        list(StepLoader(data))
    assert "/nowhere/x.png" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_sample_without_an_id_is_named_by_its_place_in_the_data(model, samples, stage):
    samples[9] = dataclasses.replace(samples[9], id=None)
    data = dataset(model, samples, stage)
    names = {name for step in range(3) for name in data[step].sample_ids}
    assert names == {*(f"s{i}" for i in range(12) if i != 9), 9}


def test_batches_are_made_as_the_model_says_and_a_stage_that_says_otherwise_is_refused(model, samples, stage):
    named = dataclasses.replace(stage, template="plain", image_fit="crop")
    for changes in ({"template": "plain"}, {"image_fit": "crop"}, {"exif": "rotate"}, {"transparent": "white"}):
        with pytest.raises(LmmError, match=f"names {next(iter(changes))}=.*the model has another"):
            dataset(model, samples, dataclasses.replace(stage, **changes))
    set_stage_inputs(model, named)
    found = stage_inputs(model.input_spec, named)
    assert (found.template.name, found.preprocess.fit) == ("plain", "crop") and found.template is model.template
