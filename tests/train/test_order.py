"""Which samples make up which step depends on the stage and the data alone."""

import json
from pathlib import Path

import pytest

import lmmblocks as lb
from lmmblocks.spec import LmmError
from lmmblocks.train.order import StepOrder, modality_lengths
from lmmblocks.train.stage import stage2

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "misc.json").read_text())["sampler"]


def worded(length):
    return lb.Sample([{"role": "user", "content": "word " * abs(length)}], ["picture"] if length > 0 else [])


@pytest.mark.parametrize("seed", list(GOLDEN))
def test_grouped_steps_are_the_recorded_order_of_llava(seed):
    case = GOLDEN[seed]
    samples = [worded(length) for length in case["lengths"]]
    assert modality_lengths(samples) == case["lengths"]
    batch, group = case["batch"] * case["world"], case["batch"]
    stage = stage2(sampler="modality_length_grouped", batch_size=batch, micro_batch_samples=group, seed=int(seed))
    steps = list(StepOrder(samples, stage))
    assert [index for step in steps for index in step] == case["indices"]
    assert {len(step) for step in steps[:-1]} == {batch}


@pytest.mark.parametrize("sampler", ["packed", "modality_length_grouped"])
def test_every_epoch_has_every_sample_once_in_an_order_of_its_own(samples, sampler):
    order = StepOrder(samples, stage2(batch_size=5, epochs=3, sampler=sampler))
    assert len(order) == 9
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in order[step]] for e in range(3)]
    assert all(sorted(epoch) == list(range(len(samples))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_step_can_be_asked_for_without_those_before_it(samples):
    stage = stage2(batch_size=5, epochs=4)
    whole = list(StepOrder(samples, stage))
    assert StepOrder(samples, stage)[7] == whole[7]
    with pytest.raises(IndexError):
        StepOrder(samples, stage)[len(whole)]


def test_max_steps_runs_over_as_many_epochs_as_it_takes(samples):
    order = StepOrder(samples, stage2(batch_size=5, max_steps=7))
    assert len(list(order)) == 7
    assert len(list(StepOrder(samples, stage2(batch_size=5, max_steps=2)))) == 2


def test_no_data_is_refused():
    with pytest.raises(LmmError, match="the data is empty"):
        StepOrder([], stage2())
