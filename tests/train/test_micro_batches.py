"""Cutting a step between conversations gives what collating each piece alone would give."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lmmblocks as lb
from lmmblocks.data.collate import read_samples
from lmmblocks.spec import LmmError
from lmmblocks.train.micro_batches import loss_weights, micro_batch_segments, step_input


def assert_equal_batches(found, expected):
    assert torch.equal(found.pixels, expected.pixels)
    assert (found.grids, found.sample_ids) == (expected.grids, expected.sample_ids)
    for field in dataclasses.fields(found.plan):
        ours, theirs = getattr(found.plan, field.name), getattr(expected.plan, field.name)
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype, field.name
        elif field.name not in ("kept", "truncated"):
            assert ours == theirs, field.name


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_segments_planned_alone_equal_their_own_collation(model_and_samples, data):
    model, samples = model_and_samples
    spec = dataclasses.replace(model.input_spec, attention=data.draw(st.sampled_from(["causal", "images"])))
    options = {
        "max_length": data.draw(st.sampled_from([None, 45, 50, 55])),
        "truncate": data.draw(st.sampled_from(["drop", "turn", "right"])),
    }
    batch = lb.collate(samples, spec, **options)
    segments = len(batch.plan.lengths)
    first = data.draw(st.integers(0, segments - 1))
    last = data.draw(st.integers(first + 1, segments))
    chosen = [samples[i] for i in batch.plan.kept[first:last]]
    assert_equal_batches(read_samples(samples, spec, **options).batch_of(first, last), lb.collate(chosen, spec, **options))


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(1, 60),
    st.integers(1, 5),
)
def test_cuts_cover_all_segments_in_order_within_the_budget(lengths, budget, group_size):
    groups = [i // group_size for i in range(len(lengths))]
    cuts = micro_batch_segments(lengths, groups, budget)
    assert [i for first, last in cuts for i in range(first, last)] == list(range(len(lengths)))
    for (first, last), following in zip(cuts, [*cuts[1:], None]):
        assert sum(lengths[first:last]) <= budget or last == first + 1
        assert len(set(groups[first:last])) == 1
        if following is not None and groups[last] == groups[first]:
            assert sum(lengths[first : last + 1]) > budget


def test_weights_are_the_global_mean_or_the_mean_of_group_means():
    assert loss_weights([2, 0, 6], [0, 0, 1]) == (1 / 8, 1 / 8, 1 / 8)
    assert loss_weights([2, 0, 6], [0, 0, 1], mean_of_means=True) == (1 / 4, 1 / 4, 1 / 12)
    assert loss_weights([2, 0], [0, 1], mean_of_means=True)[0] == 1 / 2
    assert loss_weights([0, 0], [0, 1]) == (1.0, 1.0)


def test_counts_of_a_step(model, samples, stage):
    stage = dataclasses.replace(stage, truncate="turn", max_length=50)
    inputs = step_input(3, samples, model.input_spec, stage)
    plan = lb.collate(samples, model, truncate="turn", max_length=50).plan
    assert inputs.step == 3
    assert inputs.rows == inputs.computed_rows == plan.total_rows
    assert inputs.supervised_tokens == len(plan.targets) == sum(len(b.plan.targets) for b in inputs.batches)
    assert inputs.dropped == len(samples) - len(plan.kept) > 0
    assert inputs.truncated == sum(1 for n in plan.truncated if n) > 0
    assert all(b.plan.total_rows <= 110 for b in inputs.batches) and len(inputs.batches) > 3


def test_unsupervised_samples_are_counted(model, samples, stage):
    inputs = step_input(0, samples, model.input_spec, dataclasses.replace(stage, truncate="right", max_length=25))
    assert inputs.unsupervised == len(samples) and inputs.supervised_tokens == 0


def test_unusable_samples_are_an_error_or_skipped_with_their_reason(model, samples, stage):
    bad = lb.Sample([{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "no image"}], [], "bad")
    gone = dataclasses.replace(samples[0], images=["/nowhere/x.png"], id="gone")
    mixed = [samples[0], bad, samples[1], gone]
    with pytest.raises(LmmError, match="sample '(bad|gone)'"):
        step_input(0, mixed, model.input_spec, stage)
    skipping = dataclasses.replace(stage, bad_samples="skip")
    inputs = step_input(0, mixed, model.input_spec, skipping)
    assert [name for name, _ in inputs.skipped] == ["bad", "gone"]
    assert "/nowhere/x.png" in inputs.skipped[1][1]
    assert inputs.sample_ids == ("s0", "s1")
    nothing = step_input(0, [bad], model.input_spec, skipping)
    assert nothing.batches == () and nothing.supervised_tokens == 0 and len(nothing.skipped) == 1
