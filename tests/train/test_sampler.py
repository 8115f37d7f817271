"""The packed order is a seeded permutation; the grouped order is LLaVA-1.5's, index for index."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmmblocks.spec import LmmError
from lmmblocks.train.sampler import modality_length_grouped_indices, packed_batches

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "misc.json").read_text())["sampler"]
seeds = st.integers(0, 2**40)


@pytest.mark.parametrize("seed", list(GOLDEN))
def test_grouped_order_equals_the_recorded_one(seed):
    case = GOLDEN[seed]
    torch.manual_seed(int(seed))
    generator = torch.Generator().manual_seed(int(seed))
    found = modality_length_grouped_indices(case["lengths"], case["batch"], case["world"], generator=generator)
    assert found == case["indices"]


def test_grouped_order_with_its_own_generators_leaves_the_global_one_alone():
    case = GOLDEN["0"]
    state = torch.get_rng_state()
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    found = modality_length_grouped_indices(case["lengths"], case["batch"], case["world"], generator=generators[0], inner_generator=generators[1])
    assert found == case["indices"]
    assert torch.equal(torch.get_rng_state(), state)


lengths_of_both = st.lists(st.integers(-300, 300).filter(bool), min_size=0, max_size=200)


@given(lengths_of_both, st.integers(1, 4), st.integers(1, 5))
def test_grouped_order_has_every_index_once(lengths, batch_size, world_size):
    assert sorted(modality_length_grouped_indices(lengths, batch_size, world_size)) == list(range(len(lengths)))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.integers(1, 300).map(lambda n: n if n % 3 else -n), min_size=60, max_size=200))
def test_grouped_order_keeps_modalities_apart_except_in_the_remainder(lengths):
    megabatch = 2 * 3
    order = modality_length_grouped_indices(lengths, 2, 3)
    counts = [sum(n > 0 for n in lengths), sum(n < 0 for n in lengths)]
    if 0 in counts:
        return
    full = sum((count - 1) // megabatch for count in counts)
    for start in range(0, full * megabatch, megabatch):
        assert len({lengths[index] > 0 for index in order[start : start + megabatch]}) == 1
    assert order[full * megabatch :] == sorted(order[full * megabatch :])


def test_grouped_order_balances_ranks():
    """Consecutive runs of batch_size belong to ranks; their totals differ by less than the longest sample."""
    lengths = GOLDEN["0"]["lengths"]
    order = GOLDEN["0"]["indices"]
    totals = [sum(abs(lengths[index]) for index in order[start : start + 4]) for start in range(0, 32, 4)]
    assert max(totals) - min(totals) < max(abs(n) for n in lengths), totals


@given(st.integers(0, 200), st.integers(1, 40), seeds, st.integers(0, 50))
def test_packed_steps_hold_every_index_once(samples, batch_size, seed, epoch):
    steps = packed_batches([1] * samples, batch_size, seed, epoch)
    assert sorted(index for step in steps for index in step) == list(range(samples))
    assert all(len(step) == batch_size for step in steps[:-1])
    assert not steps or 1 <= len(steps[-1]) <= batch_size


@given(st.integers(1, 100), st.integers(1, 12), seeds, st.integers(0, 50))
def test_drop_last_leaves_out_the_incomplete_step_and_nothing_else(samples, batch_size, seed, epoch):
    kept = packed_batches([1] * samples, batch_size, seed, epoch)
    dropped = packed_batches([1] * samples, batch_size, seed, epoch, drop_last=True)
    assert dropped == [step for step in kept if len(step) == batch_size]


def test_packed_order_depends_on_seed_and_epoch_only():
    lengths = [3] * 100
    torch.manual_seed(1)
    first = packed_batches(lengths, 8, seed=5, epoch=2)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert packed_batches([7] * 100, 8, seed=5, epoch=2) == first
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    orders = {str(packed_batches(lengths, 8, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25, "no two (seed, epoch) share an order"


def test_packed_order_is_the_same_on_every_machine():
    """Recorded: a resumed run must find its place again after an upgrade."""
    assert packed_batches([1] * 8, 3, seed=0, epoch=0) == [[3, 2, 5], [1, 7, 4], [6, 0]]
    assert packed_batches([1] * 8, 3, seed=0, epoch=1) == [[5, 6, 4], [3, 1, 7], [2, 0]]


@pytest.mark.parametrize("arguments", [(0, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_impossible_packed_arguments_are_refused(arguments):
    with pytest.raises(LmmError):
        packed_batches([1, 2], *arguments)


def test_impossible_grouped_arguments_are_refused():
    with pytest.raises(LmmError, match="sample 1 has length 0"):
        modality_length_grouped_indices([3, 0, -2], 1, 1)
    with pytest.raises(LmmError, match="at least 1"):
        modality_length_grouped_indices([3, -2], 0, 1)
