"""Index arithmetic of the attention kernels, compiled for the host: where bytes lie, who visits what, in which order."""

import ctypes
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FULL, CAUSAL, KV_END = range(3)
ROWS, KEYS, ATOM, WARPS = 128, 64, 16, 4
SHAPES = list(product((64, 128), (64, 128)))
"""(head dim, rows) of tiles in shared memory."""

BANKS = 8
"""Places for 16 bytes in a row of all banks: lanes that are served together must differ in them."""

lengths_of_segments = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 700)), min_size=0, max_size=8)


def _ints(values):
    return (ctypes.c_int32 * max(1, len(values)))(*values)


def _pair(function, *arguments, count=2):
    found = (ctypes.c_int * count)()
    function(*arguments, found)
    return tuple(found)


@pytest.mark.parametrize(("width", "rows"), SHAPES)
def test_every_chunk_has_a_place_of_its_own(index, width, rows):
    places = {index.chunk_place(width, rows, row, chunk) for row in range(rows) for chunk in range(width // 8)}
    assert places == set(range(0, rows * width * 2, 16)) and index.tile_bytes(width, rows) == rows * width * 2


@pytest.mark.parametrize(("width", "rows"), SHAPES)
@pytest.mark.parametrize("across", [False, True])
def test_ldmatrix_reads_the_right_chunks_without_bank_conflicts(index, width, rows, across):
    """Matrix 1 lies below matrix 0 and matrix 2 beside it, or the other way round; eight lanes, a matrix, are served together."""
    for row, chunk in product(range(0, rows, 16), range(0, width // 8, 2)):
        for matrix in range(4):
            below, beside = (matrix // 2, matrix % 2) if across else (matrix % 2, matrix // 2)
            lanes = range(8 * matrix, 8 * matrix + 8)
            places = [index.fragment_place(width, rows, int(across), lane, row, chunk) for lane in lanes]
            assert places == [index.chunk_place(width, rows, row + 8 * below + i, chunk + beside) for i in range(8)]
            assert len({place // 16 % BANKS for place in places}) == 8, (row, chunk, matrix)


@pytest.mark.parametrize(("width", "rows"), SHAPES)
def test_cp_async_fills_every_chunk_once_without_bank_conflicts(index, width, rows):
    passes = index.copied(width, rows, 0, 0, (ctypes.c_int * 3)())
    seen = []
    for i in range(passes):
        copies = [_pair(index.copied, width, rows, thread, i, count=3) for thread in range(128)]
        assert all(place == index.chunk_place(width, rows, row, chunk) for row, chunk, place in copies)
        for first in range(0, 128, 8):
            assert len({place // 16 % BANKS for _, _, place in copies[first : first + 8]}) == 8
        seen += [copy[:2] for copy in copies]
    assert sorted(seen) == list(product(range(rows), range(width // 8)))


@pytest.mark.parametrize("width", [64, 128])
def test_output_enters_and_leaves_shared_memory_without_bank_conflicts(index, width):
    """4 bytes a lane in (an accumulator: 8 rows, 4 lanes each), 16 bytes a lane out (neighbours in a row)."""
    for row, chunk in product(range(0, ROWS, 8), range(width // 8)):
        words = [index.chunk_place(width, ROWS, row + lane // 4, chunk) // 4 + lane % 4 for lane in range(32)]
        assert len({word % 32 for word in words}) == 32
    for first in range(0, ROWS * (width // 8), 8):
        chunks = [divmod(first + i, width // 8) for i in range(8)]
        assert len({index.chunk_place(width, ROWS, *chunk) // 16 % BANKS for chunk in chunks}) == 8


def test_two_ctas_fit_a_multiprocessor(index):
    """164 KiB of an A100's, 1 KiB of them taken by each CTA."""
    assert [index.shared_bytes(width) for width in (64, 128)] == [32 * 1024, 64 * 1024]
    assert all(2 * (index.shared_bytes(width) + 1024) <= 164 * 1024 for width in (64, 128))


@pytest.mark.parametrize("live", range(1, ROWS + 1))
def test_warps_share_the_atoms_with_live_rows(index, live):
    """Each once, as evenly as can be."""
    counts = [index.live_atoms(warp, live) for warp in range(WARPS)]
    rows = sorted(index.atom_row(warp, atom) for warp in range(WARPS) for atom in range(counts[warp]))
    assert rows == list(range(0, -(-live // ATOM) * ATOM, ATOM))
    assert max(counts) - min(counts) <= 1


def _tiles(index, lengths, slack, mask):
    lengths_q, lengths_k = [q for q, _ in lengths], [k for _, k in lengths]
    buffer = _ints([0] * 2 * (sum(lengths_q) + slack + 1))
    rows = ctypes.c_int64(sum(lengths_q) + slack)
    count = index.schedule(_ints(lengths_q), _ints(lengths_k), len(lengths), rows, mask, buffer)
    return [(buffer[2 * i], buffer[2 * i + 1]) for i in range(count)]


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_segments, slack=st.integers(0, 300), mask=st.sampled_from([FULL, CAUSAL, KV_END]))
def test_the_list_has_every_tile_once_and_the_longest_first(index, lengths, slack, mask):
    tiles = _tiles(index, lengths, slack, mask)
    segments = [*lengths, (slack, 0)]
    assert sorted(tiles) == [(s, block) for s, (rows, _) in enumerate(segments) for block in range(-(-rows // ROWS))]

    def blocks_of_keys(tile):
        rows, keys = segments[tile[0]]
        last = min(ROWS * (tile[1] + 1), rows) - 1
        seen = keys if mask == FULL else min(max(last + keys - rows + 1, 0), keys)
        return -(-seen // KEYS)

    costs = [blocks_of_keys(tile) for tile in tiles]
    assert costs == sorted(costs, reverse=True)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_segments, slack=st.integers(0, 300))
def test_a_launch_without_a_list_has_a_cta_for_every_tile(index, lengths, slack):
    needed = len(_tiles(index, lengths, slack, FULL))
    rows = ctypes.c_int64(sum(q for q, _ in lengths) + slack)
    assert needed <= index.grid(rows, len(lengths), 0, 0) <= needed + len(lengths)
    for count, longest in ((1, 577), (3, 128), (2, 0)):
        assert index.grid(ctypes.c_int64(count * longest), count, longest, 1) == count * -(-longest // ROWS)


def _ends(index, mask, rows, keys, packed):
    """`end` of each row; 5 is the segment's first packed key."""
    return [index.end_of_row(mask, row, rows, 5, keys, packed[row] if packed else 0) for row in range(rows)]


def _atoms(index, tile_ends):
    """Rows within a tile of each atom that some warp works on."""
    for warp in range(WARPS):
        for atom in range(index.live_atoms(warp, len(tile_ends))):
            first = index.atom_row(warp, atom)
            yield range(first, min(first + ATOM, len(tile_ends)))


def _work(index, mask, rows, keys, packed=None):
    """Visible (row, key) pairs a tile at a time: `(ends, groups)`, `groups[atom rows, block]` = (groups of 16 keys, whether they are masked)."""
    ends = _ends(index, mask, rows, keys, packed)
    for first in range(0, rows, ROWS):
        own = ends[first : first + ROWS]
        masked, stop = _pair(index.blocks_of, min(own), max(own))
        groups = {}
        for atom, block in product(_atoms(index, own), range(stop)):
            greatest = max(own[row] for row in atom)
            is_masked = block >= masked
            groups[atom, block] = (index.groups_of(greatest, block * KEYS) if is_masked else KEYS // ATOM, is_masked)
        yield own, stop, groups


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 300),
    keys=st.integers(0, 300),
    mask=st.sampled_from([FULL, CAUSAL, KV_END]),
    data=st.data(),
)
def test_every_visible_key_is_visited_and_what_has_no_mask_is_visible(index, rows, keys, mask, data):
    """kv_end is anything: below the segment, above it, falling."""
    packed = data.draw(st.lists(st.integers(-9, keys + 20), min_size=rows, max_size=rows)) if mask == KV_END else None
    expected = {
        FULL: lambda row: keys,
        CAUSAL: lambda row: min(max(row + keys - rows + 1, 0), keys),
        KV_END: lambda row: min(max(packed[row] - 5, 0), keys),
    }[mask]
    assert _ends(index, mask, rows, keys, packed) == [expected(row) for row in range(rows)]
    for own, stop, groups in _work(index, mask, rows, keys, packed):
        assert sorted({row for atom, _ in groups for row in atom}) == list(range(len(own))) or stop == 0
        for (atom, block), (count, is_masked) in groups.items():
            until = block * KEYS + count * ATOM
            for row in atom:
                assert min(own[row], (block + 1) * KEYS) <= until  # what it sees of the block is visited
                assert is_masked or own[row] >= until  # no mask: it sees all of that
        assert stop * KEYS >= max(own)  # nothing is seen after the last block


@pytest.mark.parametrize(("length", "cost"), [(577, 592), (729, 736), (257, 272), (1024, 1024)])
def test_nothing_is_rounded_up_to_a_tile(index, length, cost):
    """Rows times columns that the tensor cores compute for a full mask: multiples of 16, where tiles of 128 x 64 would say 640 for 577."""
    products = sum(count * ATOM * ATOM for _, _, groups in _work(index, FULL, length, length) for count, _ in groups.values())
    assert products == cost * cost


def test_a_causal_mask_costs_half_of_a_full_one(index):
    """2048 rows: 16 x 16 atoms on the diagonal count whole, nothing above them is computed."""
    atoms = 2048 // ATOM
    products = sum(count for _, _, groups in _work(index, CAUSAL, 2048, 2048) for count, _ in groups.values())
    assert products == atoms * (atoms + 1) // 2
