"""Stretched rotary frequencies: against the formulas of their papers, per sequence, in configs, and with a cache."""

import json
import math
from dataclasses import replace

import pytest
import torch

from lmmblocks.config import LMMConfig
from lmmblocks.decoders.rotary import LinearRope, Llama3Rope, LongRope, Rotary, rope_scaling
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.spec import LmmError, Segments

TOLERANCE = 1e-5
LONG = LongRope(short=(1.0, 1.5), long=(2.0, 6.0), original=6, magnitude=1.25)
SHAPE = dict(dim=16, layers=2, heads=4, kv_heads=2, ffn_dim=24, vocab=9)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    made = TransformerConfig(**SHAPE, rope_scaling=LONG).build()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_linear_divides_positions():
    positions = torch.tensor([0, 4, 12])
    stretched = Rotary(8, 100.0, LinearRope(4.0)).table(positions, Segments.of([3]))
    torch.testing.assert_close(stretched, Rotary(8, 100.0).table(positions // 4, Segments.of([3])))


def test_llama3_stretches_long_waves_keeps_short_ones_and_blends_between():
    scaling = Llama3Rope(factor=8.0, low=1.0, high=4.0, original=64)
    found = scaling.frequencies(16, 10000.0).tolist()
    seen = set()
    for i, frequency in enumerate(found):
        plain = 10000.0 ** (-2 * i / 16)
        fit = 64 * plain / (2 * math.pi)
        part = "long" if fit < 1 else "short" if fit > 4 else "between"
        kept = (fit - 1) / 3
        expected = {"long": plain / 8, "short": plain, "between": (1 - kept) * plain / 8 + kept * plain}[part]
        assert math.isclose(frequency, expected, rel_tol=1e-5)
        seen.add(part)
    assert seen == {"long", "short", "between"}


def test_longrope_divides_by_the_set_of_each_sequence_whatever_lies_beside_it():
    rotary, lengths = Rotary(4, 100.0, LONG), (6, 7, 1, 9)
    positions = torch.cat([torch.arange(n) for n in lengths])
    packed = rotary.table(torch.cat([positions, positions.new_zeros(2)]), Segments.of(lengths))  # with two slack rows
    at = 0
    for length in lengths:
        alone = rotary.table(torch.arange(length), Segments.of([length]))
        divisors = torch.tensor(LONG.long if length > 6 else LONG.short)
        expected = torch.arange(length)[:, None] / (divisors * 100.0 ** torch.tensor([0.0, 0.5]))
        for own, one in zip(packed, alone):
            assert torch.equal(own[at : at + length], one)
        magnitude = (alone[0] ** 2 + alone[1] ** 2).sqrt()
        torch.testing.assert_close(magnitude, torch.full_like(magnitude, 1.25))
        torch.testing.assert_close(alone[0][:, :2] / 1.25, expected.cos(), atol=1e-6, rtol=0)
        at += length


@pytest.mark.parametrize("scaling", [None, LinearRope(2.0), Llama3Rope(8.0, 1.0, 4.0, 64), LONG], ids=str)
def test_scaling_survives_the_config_file(scaling, tiny_config):
    decoder = TransformerConfig(**SHAPE, rope_scaling=scaling, window=4, window_layers=(1,), window_theta=50.0)
    config = replace(tiny_config, decoder=decoder)
    assert LMMConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["decoder"]["window_layers"] == [1]


@torch.no_grad()
def read(decoder, sequences, steps):
    """Hidden states of each step of each sequence, side by side after one cache; a step says how many rows each brings."""
    cache, found = decoder.new_cache(len(sequences)), [[] for _ in sequences]
    for new in steps:
        rows = [x[done : done + n] for x, done, n in zip(sequences, cache.lengths, new)]
        positions = torch.cat([torch.arange(n) + done for n, done in zip(new, cache.lengths)])
        hidden = decoder(torch.cat(rows), positions=positions, segments=Segments.of(new), cache=cache)
        for own, part in zip(found, hidden.split(new)):
            own.append(part)
    return cache, found


@torch.no_grad()
def whole(decoder, x):
    return decoder(x, positions=torch.arange(len(x)), segments=Segments.of([len(x)]))


def test_a_sequence_that_outgrows_its_divisors_is_read_again(decoder):
    sequences = [torch.randn(n, 16, generator=torch.Generator().manual_seed(n)) for n in (9, 5, 8)]
    steps = [(5, 2, 7), (2, 0, 1), (1, 3, 0), (1, 0, 0)]
    cache, found = read(decoder, sequences, steps)
    done = [0, 0, 0]
    for step, new in enumerate(steps):
        done = [read + n for read, n in zip(done, new)]
        for x, own, length, n in zip(sequences, found, done, new):
            expected = whole(decoder, x[:length])[length - n :]
            torch.testing.assert_close(own[step], expected, atol=TOLERANCE, rtol=0)
    assert cache.lengths == [9, 5, 8]


def test_a_sequence_that_is_cut_below_the_border_is_read_again(decoder):
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(3))
    cache, _ = read(decoder, [x, x[:2]], [(8, 2)])
    cache.truncate(0, 4)
    cache.keep([0])
    with torch.no_grad():
        got = decoder(x[4:6], positions=torch.tensor([4, 5]), segments=Segments.of([2]), cache=cache)
    torch.testing.assert_close(got, whole(decoder, x[:6])[4:], atol=TOLERANCE, rtol=0)


def test_kv_end_behind_a_cache_of_longrope_is_refused(decoder):
    with pytest.raises(LmmError, match="doesn't remember kv_end"):
        decoder(
            torch.zeros(2, 16),
            positions=torch.arange(2),
            segments=Segments.of([2]),
            kv_end=torch.tensor([2, 2], dtype=torch.int32),
            cache=decoder.new_cache(1),
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rope_scaling({"method": "liner", "factor": 2.0}), "no method 'liner'.*'linear'"),
        (lambda: rope_scaling({"method": "linear", "by": 2.0}), "missing 'factor'; unknown keywords 'by'; known: factor"),
        (lambda: rope_scaling(4.0), "must be one of"),
        (lambda: LinearRope(0), "'linear': factor must be a number above 0"),
        (lambda: Llama3Rope(8.0, 4.0, 1.0, 64), "low 4.0 must be below high 1.0"),
        (lambda: TransformerConfig(**SHAPE, rope_scaling=LongRope((1.0,), (1.0, 2.0), 6)), r"\(1, 2\) short and long.* need 2"),
        (lambda: TransformerConfig(**SHAPE, rotary_fraction=0.75), "rotary_fraction 0.75 turns 3 of 4"),
        (lambda: TransformerConfig(**SHAPE, activation="gelu"), "activation 'gelu' is none of"),
        (lambda: TransformerConfig(**SHAPE, window_theta=5.0), "set window too"),
        (lambda: TransformerConfig(**SHAPE, window=3, window_layers=(0, 2)), r"window_layers \[2\] are not among the 2 layers"),
        (lambda: TransformerConfig(**SHAPE, window=0), "window must be a whole number above 0 or None"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(LmmError, match=message):
        make()
