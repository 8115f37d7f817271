"""The contracts: boundaries, grids, moving a plan, and how a mistake is named."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import (
    Batch,
    Grid,
    LmmError,
    Sample,
    Segments,
    SplicePlan,
    boundaries,
    closest,
    image_count,
)

lengths = st.lists(st.integers(0, 20), max_size=6)


@given(lengths=lengths)
def test_boundaries_are_the_running_sum(lengths):
    cu = boundaries(lengths)
    assert cu.dtype == torch.int32
    assert cu.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]


@given(pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5))
def test_segments_hold_both_boundaries_and_their_host_lengths(pairs):
    q, k = [a for a, _ in pairs], [b for _, b in pairs]
    segments = Segments.of(q, k)
    assert segments.cu_q.tolist() == boundaries(q).tolist() and segments.cu_k.tolist() == boundaries(k).tolist()
    assert (segments.max_q, segments.max_k) == (max(q, default=0), max(k, default=0))
    assert (segments.lengths_q, segments.lengths_k) == (tuple(q), tuple(k))


def test_keys_default_to_the_queries():
    segments = Segments.of([2, 3])
    assert segments.cu_k is segments.cu_q and segments.lengths_k == (2, 3)


@given(count=st.integers(0, 5), length=st.integers(0, 5))
def test_uniform_segments_are_those_of_equal_lengths(count, length):
    for field in dataclasses.fields(Segments):
        a, b = (getattr(s, field.name) for s in (Segments.uniform(count, length), Segments.of([length] * count)))
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and a.tolist() == b.tolist()
        else:
            assert a == b, field.name


@pytest.mark.parametrize("q, k", [([1, 2], [1]), ([-1], None), ([1], [-2])])
def test_impossible_segments_are_refused(q, k):
    with pytest.raises(LmmError, match="one non-negative key length per query length"):
        Segments.of(q, k)


@pytest.mark.parametrize("lengths", [[3.5, 2], ["3", "2"], 5, [None], [float("nan")], [float("inf")]], ids=str)
def test_lengths_that_are_no_whole_numbers_are_refused(lengths):
    for arguments in ((lengths,), ([3, 2], lengths)):
        with pytest.raises(LmmError, match="whole numbers"):
            Segments.of(*arguments)


def test_lengths_may_be_numbers_of_numpy_and_torch():
    for lengths in (np.array([3, 0, 2]), torch.tensor([3, 0, 2]), (3, 0, 2), [np.int64(3), 0, True + 1]):
        assert Segments.of(lengths).lengths_q == (3, 0, 2)


def test_rows_of_a_grid_are_counted():
    assert Grid(3, 4).rows == image_count(Grid(3, 4)) == image_count(12) == 12
    assert str(Grid(24, 23)) == "24x23"


def test_a_moved_plan_has_every_tensor_there_and_the_rest_unchanged():
    plan = plan_splice([[1, -200, 5], [7, 8]], [[2], []], labels=[[-100, -100, 5], [7, 8]], bidirectional_images=True)
    moved = plan.to("meta")
    for field in dataclasses.fields(SplicePlan):
        before, after = getattr(plan, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert after.is_meta and after.shape == before.shape and after.dtype == before.dtype, field.name
        else:
            assert after == before, field.name
    assert plan.kv_end is not None and moved.segments.cu_q.is_meta and moved.segments.lengths_q == (4, 2)


def test_a_moved_batch_takes_pixels_and_plan_along():
    batch = Batch(torch.zeros(1, 3, 4, 4), (Grid(1, 2),), plan_splice([[1, -200]], [[2]]), ("a",))
    moved = batch.to("meta")
    assert moved.pixels.is_meta and moved.plan.source.is_meta
    assert moved.grids == batch.grids and moved.sample_ids == ("a",)


def test_samples_need_no_image_and_share_nothing():
    first, second = Sample([{"role": "user", "content": "a"}]), Sample([])
    assert first.images == [] and first.images is not second.images and first.id is None


@pytest.mark.parametrize(
    "name, known, expected",
    [
        ("projecter", ["encoder", "projector"], "; did you mean 'projector'?"),
        ("zzz", ["encoder", "projector"], ""),
        ("anything", [], ""),
    ],
)
def test_only_a_close_name_is_suggested(name, known, expected):
    assert closest(name, known) == expected


def test_user_errors_are_value_errors():
    assert issubclass(LmmError, ValueError)
