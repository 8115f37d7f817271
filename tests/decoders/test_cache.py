"""Decoding with a cache gives what reading everything at once gives, however the rows arrive."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks.decoders.cache import KVCache
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.spec import LmmError, Segments

TOLERANCE, WIDTH = 1e-5, 16


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    made = TransformerConfig(dim=WIDTH, layers=2, heads=4, kv_heads=2, ffn_dim=24, vocab=9).build()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def rows(count, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(decoder, sequence):
    """Hidden states of one sequence read at once, without a cache."""
    return decoder(sequence, positions=torch.arange(len(sequence)), segments=Segments.of([len(sequence)]))


@torch.no_grad()
def feed(decoder, cache, parts):
    """Hidden states of the new rows of each cached sequence, which go on from where the cache is."""
    positions = [torch.arange(len(part)) + read for part, read in zip(parts, cache.lengths)]
    segments = Segments.of([len(part) for part in parts])
    hidden = decoder(torch.cat(parts), positions=torch.cat(positions), segments=segments, cache=cache)
    return hidden.split([len(part) for part in parts])


def assert_equal(got, expected):
    error = (got - expected).abs().max().item() if expected.numel() else 0.0
    assert got.shape == expected.shape and error < TOLERANCE, error


@st.composite
def deliveries(draw):
    """For each sequence, how many rows come in each step; steps may bring none."""
    steps = draw(st.integers(1, 4))
    return [draw(st.lists(st.integers(0, 5), min_size=steps, max_size=steps)) for _ in range(draw(st.integers(1, 4)))]


@settings(max_examples=30, deadline=None)
@given(counts=deliveries(), seed=st.integers(0, 99))
def test_rows_in_any_pieces_equal_all_at_once(decoder, counts, seed):
    sequences = [rows(sum(own), seed + i) for i, own in enumerate(counts)]
    pieces = [sequence.split(own) for sequence, own in zip(sequences, counts)]
    cache, collected = decoder.new_cache(len(counts)), [[] for _ in counts]
    for step in zip(*pieces):
        for own, hidden in zip(collected, feed(decoder, cache, list(step))):
            own.append(hidden)
    assert cache.lengths == [len(sequence) for sequence in sequences]
    for own, sequence in zip(collected, sequences):
        assert_equal(torch.cat(own), whole(decoder, sequence))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4), data=st.data())
def test_kept_sequences_go_on_as_if_the_others_had_never_been(decoder, lengths, data):
    kept = data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True, min_size=1))
    sequences = [rows(n + 3, seed=i) for i, n in enumerate(lengths)]
    cache = decoder.new_cache(len(lengths))
    feed(decoder, cache, [sequence[:n] for sequence, n in zip(sequences, lengths)])
    cache.keep(kept)
    assert cache.lengths == [lengths[i] for i in kept]
    hidden = feed(decoder, cache, [sequences[i][lengths[i] :] for i in kept])
    for own, i in zip(hidden, kept):
        assert_equal(own, whole(decoder, sequences[i])[lengths[i] :])


@settings(max_examples=20, deadline=None)
@given(read=st.integers(0, 8), length=st.integers(0, 8), new=st.integers(0, 5))
def test_truncated_rows_are_forgotten(decoder, read, length, new):
    length = min(length, read)
    first, second, other = rows(read, 1), rows(new, 2), rows(4, 3)
    cache = decoder.new_cache(2)
    feed(decoder, cache, [first, other])
    cache.truncate(0, length)
    assert cache.lengths == [length, 4]
    hidden, rest = feed(decoder, cache, [second, rows(2, 4)])
    assert_equal(hidden, whole(decoder, torch.cat([first[:length], second]))[length:])
    assert_equal(rest, whole(decoder, torch.cat([other, rows(2, 4)]))[4:])


def test_growing_past_the_first_buffer_keeps_what_was_read(decoder):
    sequence, cache = rows(200), decoder.new_cache(1)
    hidden = [feed(decoder, cache, [part])[0] for part in sequence.split([60, 5, 70, 1, 64])]
    assert_equal(torch.cat(hidden), whole(decoder, sequence))


def test_memory_never_written_is_never_read(decoder):
    previous = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        cache = decoder.new_cache(2)
        feed(decoder, cache, [rows(3), rows(1)])
        cache.truncate(0, 1)
        hidden = feed(decoder, cache, [rows(1), rows(70)])
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = previous[0]
        torch.use_deterministic_algorithms(previous[1])
    assert all(own.isfinite().all() for own in hidden)


def test_a_failed_pass_leaves_the_cache_as_it_was(decoder):
    sequence, cache = rows(6), decoder.new_cache(1)
    feed(decoder, cache, [sequence[:4]])

    class Broken:
        layers, requires = (1,), frozenset()

        def __call__(self, hidden, context):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        decoder(rows(2, 9), positions=torch.arange(4, 6), segments=Segments.of([2]), cache=cache, hooks=[Broken()])
    assert cache.lengths == [4]
    assert_equal(feed(decoder, cache, [sequence[4:]])[0], whole(decoder, sequence)[4:])


def test_advance_counts_the_new_rows():
    cache = KVCache(layers=1, sequences=3)
    cache.advance((2, 0, 5))
    cache.advance((1, 1, 0))
    assert cache.lengths == [3, 1, 5]


def test_segments_align_new_queries_with_all_keys():
    cache = KVCache(layers=1, sequences=2)
    cache.advance((3, 1))
    segments = cache.segments((1, 2), torch.device("cpu"))
    assert (segments.lengths_q, segments.lengths_k) == ((1, 2), (4, 3))
    assert segments.cu_q.tolist() == [0, 1, 3] and segments.cu_k.tolist() == [0, 4, 7]


def test_wrong_use_is_refused():
    cache = KVCache(layers=1, sequences=2)
    cache.advance((3, 1))
    with pytest.raises(LmmError, match="holds 2 sequences, the batch brings 3 segments"):
        cache.segments((1, 1, 1), torch.device("cpu"))
    for length in (4, -1):
        with pytest.raises(LmmError, match=f"cannot truncate sequence 0 to {length} rows: it holds 3"):
            cache.truncate(0, length)
    with pytest.raises(LmmError, match=r"twice: found \[1, 1\]"):
        cache.keep([1, 1])
