"""How long tiles of the backward wait for each other, by a model of tickets, waits and releases.

dq of a block of rows is added in the order of tiles of keys, so a tile waits at a block until the tile before it has added there
(csrc/attention/backward_turns.cuh). What that costs can't be measured on a CPU, but it follows from the order in which CTAs get tickets and visit
blocks, and that order is the kernel's own here, compiled for the host. One visit takes one unit of time, each multiprocessor holds one CTA, and what
was added is seen by the next tile a while after.
"""

import ctypes
import heapq
import random
from itertools import product

import pytest

ROWS, KEYS = 64, 128
A100, H100 = 108, 132
"""Multiprocessors."""

MOST_LOST = 0.02
RELEASE_DELAY = 0.3
"""Of a visit; between 0.1 and 0.6 the losses move by less than half a percent."""


def _mixed(rows):
    draw, lengths = random.Random(0), []
    while sum(lengths) < rows:
        lengths.append(draw.choice([200, 600, 900, 1400, 2048, 3000]))
    return lengths


SHAPES = {
    "16x1024 h32/8 causal": ([1024] * 16, 32, 8, True),
    "8x2048 h32/8 causal": ([2048] * 8, 32, 8, True),
    "4x4096 h32/8 causal": ([4096] * 4, 32, 8, True),
    "mixed 16k h32/8 causal": (_mixed(16384), 32, 8, True),
    "8x2048 h14/2 causal": ([2048] * 8, 14, 2, True),
    "4x2048 h32 causal": ([2048] * 4, 32, 32, True),
    "CLIP 64x577 h16 full": ([577] * 64, 16, 16, False),
}
"""Rows of the segments, query heads, kv heads, causal."""


def _tiles(index, lengths, kv_heads):
    """Segment, tile and kv head of every CTA that has something to do, in the order of tickets."""
    places, begin = {}, 0
    for segment, rows in enumerate(lengths):
        first = index.slot_of(begin, segment, KEYS)
        places |= {first + tile: (segment, tile) for tile in range(-(-rows // KEYS))}
        begin += rows
    slots, found = index.slots_of(begin, len(lengths), KEYS), (ctypes.c_int * 2)()
    for ticket in range(slots * kv_heads):
        index.ticket_place(slots, kv_heads, ticket, found)
        if found[0] in places:
            yield *places[found[0]], found[1]


def _visits(index, rows, tile, members, causal):
    """The kernel's visits of a tile, in its order."""
    ends = [(row + 1 if causal else rows) for row in range(rows)]
    blocks = [ends[first : first + ROWS] for first in range(0, rows, ROWS)]
    extremes = [end for block in blocks for end in (min(block), max(block))]
    seen = [number for number, block in enumerate(blocks) if max(block) > tile * KEYS]
    found = (ctypes.c_int32 * (2 * members * len(blocks)))()
    count = index.visits_of((ctypes.c_int32 * len(extremes))(*extremes), tile * KEYS, members, seen[0], seen[-1], found)
    visits = [(found[2 * i], found[2 * i + 1]) for i in range(count)]
    assert sorted(visits) == sorted(product(range(members), seen))
    return visits


def _makespan(index, shape, multiprocessors, *, waiting, order=list):
    """The time until the last CTA is done; a CTA waits for lower tickets only, so one pass in the order of tickets computes it."""
    lengths, heads, kv_heads, causal = shape
    members = heads // kv_heads
    orders = {}
    free, seen_from = [0.0] * multiprocessors, {}
    for segment, tile, kv_head in _tiles(index, lengths, kv_heads):
        key = lengths[segment], tile
        if key not in orders:
            orders[key] = order(_visits(index, *key, members, causal))
        now = heapq.heappop(free)
        for member, block in orders[key]:
            now += 1.0
            turn = segment, kv_head, member, block
            if waiting:
                assert tile == 0 or turn in seen_from, "a tile waits for one that has no lower ticket: nobody would get on"
                now = max(now, seen_from.get(turn, 0.0))
                seen_from[turn] = now + RELEASE_DELAY
        heapq.heappush(free, now)
    return max(free)


def _loss(index, shape, multiprocessors, **how):
    return _makespan(index, shape, multiprocessors, waiting=True, **how) / _makespan(index, shape, multiprocessors, waiting=False) - 1


@pytest.mark.parametrize("multiprocessors", [A100, H100])
@pytest.mark.parametrize("name", SHAPES)
def test_waiting_for_a_turn_costs_less_than_two_percent(index, name, multiprocessors):
    loss = _loss(index, SHAPES[name], multiprocessors)
    print(f"{name} on {multiprocessors}: {loss:+.1%}")
    assert loss < MOST_LOST


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape[1] > shape[2]])
def test_the_model_sees_what_the_order_head_by_head_would_cost(index, name):
    """The check can fail: with all blocks of a head before the next head, tiles of groups wait for the longest, once a head."""
    assert _loss(index, SHAPES[name], A100, order=_head_by_head) > 0.15


def _head_by_head(visits):
    return sorted(visits, key=lambda visit: visit[0])
