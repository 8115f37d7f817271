"""Choosing the next token: greedy, temperature, top-k, top-p, seeds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmmblocks.generate import Options, Sampling
from lmmblocks.generate.sampling import candidates, choose
from lmmblocks.spec import LmmError

LOGITS = st.lists(st.integers(-200, 200).map(lambda n: n / 32), min_size=1, max_size=30)


def reference_candidates(logits, temperature, top_k, top_p):
    """The ids that may be drawn and their probabilities, by the definition, in float64 and one token at a time."""
    scaled = np.asarray(logits, np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[: top_k or None]
    total = sum(weights[token] for token in order)
    kept, mass, nearest = [], 0.0, math.inf
    for token in order:
        nearest = min(nearest, abs(mass - top_p)) if kept else nearest
        if kept and mass >= top_p:
            break
        kept.append(token)
        mass += weights[token] / total
    kept_total = sum(weights[token] for token in kept)
    return {token: weights[token] / kept_total for token in kept}, nearest


@settings(max_examples=200, deadline=None)
@given(LOGITS, st.floats(0.2, 3), st.integers(0, 12), st.floats(0.05, 1))
def test_candidates_are_the_definition_of_top_k_and_top_p(logits, temperature, top_k, top_p):
    expected, nearest = reference_candidates(logits, temperature, top_k, top_p)
    assume(nearest > 1e-4 or top_p == 1)  # at the boundary itself float32 may decide either way
    row = torch.tensor([logits])
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    probabilities, ids = candidates(row - row.max(), sampling)
    probabilities = probabilities[0] / probabilities.sum()
    found = {int(i): float(p) for i, p in zip(ids[0], probabilities) if p > 0}
    expected = {token: p for token, p in expected.items() if p > 1e-30}
    assert set(found) >= set(expected) and all(p < 1e-6 for token, p in found.items() if token not in expected)
    assert max(abs(found[token] - p) for token, p in expected.items()) < 1e-5


@settings(max_examples=100, deadline=None)
@given(LOGITS)
def test_greedy_takes_the_lowest_id_among_equals(logits):
    assert choose(torch.tensor([logits]), Sampling(), []) == [logits.index(max(logits))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_temperature(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.0])
    draws, sampling = 20_000, Sampling(temperature=temperature, seed=1)
    chosen = choose(logits.expand(draws, -1), sampling, [sampling.generator()] * draws)
    expected = (logits.double() / temperature).softmax(0)
    found = torch.bincount(torch.tensor(chosen), minlength=5) / draws
    sigma = (expected * (1 - expected) / draws).sqrt()
    assert ((found - expected).abs() < 4 * sigma).all(), (found, expected)


def test_draws_follow_top_p_renormalised():
    draws, sampling = 20_000, Sampling(temperature=1.0, top_p=0.7, seed=2)
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    chosen = choose(logits.expand(draws, -1), sampling, [sampling.generator()] * draws)
    found = torch.bincount(torch.tensor(chosen), minlength=4) / draws
    assert found[2:].sum() == 0 and abs(float(found[0]) - 0.5 / 0.8) < 0.015, found


def test_a_row_is_drawn_the_same_whatever_is_beside_it():
    sampling = Sampling(temperature=1.5, top_p=0.9, top_k=40, seed=3)
    rows = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    together, alone = [sampling.generator() for _ in rows], [sampling.generator() for _ in rows]
    for _ in range(20):
        assert choose(rows, sampling, together) == [choose(row[None], sampling, [g])[0] for row, g in zip(rows, alone)]


def test_seeds_repeat_and_no_seed_follows_the_global_state():
    row = torch.zeros(1, 1000)

    def draws(seed):
        sampling = Sampling(temperature=1.0, seed=seed)
        generator = sampling.generator()
        return [choose(row, sampling, [generator])[0] for _ in range(8)]

    assert draws(5) == draws(5) != draws(6)
    torch.manual_seed(0)
    first, second = draws(None), draws(None)
    torch.manual_seed(0)
    assert first == draws(None) != second


def test_greedy_and_seeded_answers_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    Sampling().generator()
    sampling = Sampling(temperature=1.0, seed=1)
    choose(torch.zeros(1, 9), sampling, [sampling.generator()])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30, 1e-6])
def test_a_temperature_near_zero_is_greedy_and_does_not_overflow(temperature):
    rows = torch.tensor([[1e30, -1e30, 3.0], [1.0, 2.0, 3.0]])
    sampling = Sampling(temperature=temperature, seed=0)
    assert choose(rows, sampling, [sampling.generator()] * 2) == [0, 2]


@pytest.mark.parametrize("top_p", [1e-300, 1e-45, 0.01])
def test_a_tiny_top_p_keeps_the_most_likely_token(top_p):
    sampling = Sampling(temperature=5.0, top_p=top_p, seed=0)
    assert choose(torch.tensor([[0.0, 0.1, 0.0]]), sampling, [sampling.generator()]) == [1]


def test_the_largest_draw_stays_among_the_candidates(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([1 - 2**-24]))
    sampling = Sampling(temperature=1.0, top_k=3, seed=0)
    row = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1))
    assert choose(row, sampling, [sampling.generator()])[0] in row.topk(3).indices


def test_forbidden_tokens_are_never_drawn():
    sampling = Sampling(temperature=100.0, seed=0)
    row = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0]]).expand(500, -1)
    assert set(choose(row, sampling, [sampling.generator()] * 500)) == {1, 3}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=0)])
@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_logits_that_are_not_finite_are_refused(sampling, bad):
    with pytest.raises(LmmError, match="not finite"):
        choose(torch.tensor([[0.0, 1.0], bad]), sampling, [sampling.generator()] * 2)


def test_bfloat16_logits_are_taken_as_they_are():
    row = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.bfloat16)
    sampling = Sampling(temperature=0.01, seed=0)
    assert choose(row, Sampling(), []) == choose(row, sampling, [sampling.generator()]) == [1]


def test_all_wrong_options_are_reported_at_once():
    with pytest.raises(LmmError) as error:
        Options(temperature=-1, top_p=0, top_k=1.5, seed="x", max_new_tokens=0, stop=["ok", ""])
    for name in (
        "temperature must be a number of at least 0 (0 = greedy), found -1",
        "top_p must be a number above 0 and at most 1 (1 = all tokens), found 0",
        "top_k must be a whole number of at least 0 (0 = all tokens), found 1.5",
        "seed must be a whole number from 0 to 9223372036854775807 or None, found 'x'",
        "max_new_tokens must be a whole number above 0, found 0",
        "stop must be strings that aren't empty",
    ):
        assert name in str(error.value), error.value


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "0.2"},
        {"temperature": None},
        {"temperature": True},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"max_new_tokens": 2.0},
        {"max_new_tokens": None},
        {"stop": None},
        {"stop": ""},
        {"stop": [3]},
    ],
)
def test_each_wrong_option_is_refused(wrong):
    with pytest.raises(LmmError, match=f"^generation options: {next(iter(wrong))} must be "):
        Options(**wrong)


def test_an_unknown_option_is_refused_with_the_closest_name():
    with pytest.raises(LmmError, match="'temprature'; did you mean 'temperature'"):
        Options.of({"temprature": 0.2})


def test_numpy_numbers_are_numbers():
    options = Options(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.int64(1), max_new_tokens=np.int32(4))
    assert choose(torch.tensor([[0.0, 90.0]]), options, [options.generator()]) == [1]
