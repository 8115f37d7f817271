"""Packed attention in Triton, forward, against the formula in fp64. Tiles of 16 make many blocks of few rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels.attention_bounds import grid_tiles
from lmmblocks.kernels.attention_tiles import Tile, Tiles, tiles_are, tiles_for
from lmmblocks.kernels.head_parts import head_parts

from lmmblocks import ops
from lmmblocks.spec import LmmError, Segments

SMALL = Tiles(*(Tile(16, 16, 4, 1),) * 3)
WIDE_KEYS = Tiles(*(Tile(16, 64, 4, 1),) * 3)


@pytest.fixture(autouse=True)
def small_tiles():
    with tiles_are(SMALL):
        yield


def _inputs(lengths_q, lengths_k, heads, kv_heads, width, *, slack=0, dtype=torch.float32, device="cpu", seed=0):
    """Views of a fused projection; rows after the last segment are NaN."""
    torch.manual_seed(seed)
    rows_q, rows_k = sum(lengths_q), sum(lengths_k)
    q = torch.randn(rows_q + slack, heads + 2, width, device=device).to(dtype)[:, 1:-1]
    kv = torch.randn(rows_k + slack, 2 * kv_heads, width, device=device).to(dtype)
    q[rows_q:], kv[rows_k:] = float("nan"), float("nan")
    return q, kv[:, :kv_heads], kv[:, kv_heads:], Segments.of(lengths_q, lengths_k, device=device)


def _both(backend, q, k, v, segments, **options):
    return ops.attention(q, k, v, segments, return_lse=True, backend=backend, **options)


def _exact(q, k, v, segments, **options):
    return _both("reference", q.double(), k.double(), v.double(), segments, **options)


def _close(found, expected, **tolerance):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.double(), b.double(), **({"rtol": 1e-4, "atol": 1e-5} | tolerance))


@pytest.mark.parametrize("width", [8, 64, 72, 80, 96, 128, 256])
def test_kernel_is_as_exact_as_torch_at_every_head_dim(width, dtype, device, as_exact_as_torch):
    """Torch's own is SDPA, which rounds weights to the dtype as the kernels do; sums of weights are in fp32 everywhere."""
    q, k, v, segments = _inputs([5, 33], [5, 33], 2, 1, width, dtype=dtype, device=device)
    (out, lse), (_, own_lse), exact = (
        _both("triton", q, k, v, segments),
        _both("reference", q, k, v, segments),
        _exact(q, k, v, segments),
    )
    as_exact_as_torch((out, lse), (ops.attention(q, k, v, segments, backend="torch"), own_lse), exact)


@settings(max_examples=14, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 36), st.integers(0, 40)), min_size=1, max_size=3),
    mask=st.sampled_from(["causal", "full", "kv_end"]),
    window=st.none() | st.integers(1, 40),
    softcap=st.none() | st.floats(0.5, 5),
    heads=st.sampled_from([(1, 1), (3, 1), (2, 2)]),
    width=st.sampled_from([16, 24]),
    slack=st.sampled_from([0, 5]),
    seed=st.integers(0, 99),
)
def test_every_mask_equals_the_formula(lengths, mask, window, softcap, heads, width, slack, seed):
    """Segments without rows, more queries than keys, an end of every row that need not rise; NaN after the last segment is never read."""
    lengths_q, lengths_k = zip(*lengths)
    q, k, v, segments = _inputs(lengths_q, lengths_k, *heads, width, slack=slack, seed=seed)
    kv_end = torch.randint(0, sum(lengths_k) + 1, (q.shape[0],), dtype=torch.int32) if mask == "kv_end" else None
    options = {"causal": mask == "causal", "kv_end": kv_end, "window": window, "softcap": softcap}
    _close(_both("triton", q, k, v, segments, **options), _exact(q, k, v, segments, **options))


@pytest.mark.parametrize("wide", [16, 32, 64])
@pytest.mark.parametrize("rest", [1, 15, 16, 17, 31, 32, 33, 63])
def test_a_tail_of_any_width_is_added_once(rest, wide):
    """577 = 9 * 64 + 1 and 729 = 11 * 64 + 25: the last block of keys is 16, 32 or all of a block wide."""
    q, k, v, segments = _inputs([3, 3], [rest, wide + rest], 1, 1, 16)
    with tiles_are(Tiles(*(Tile(16, wide, 4, 1),) * 3)):
        _close(_both("triton", q, k, v, segments, causal=False), _exact(q, k, v, segments, causal=False))


def test_rows_that_see_no_key_and_rows_behind_the_segments_are_zero(device):
    q, k, v, segments = _inputs([6, 4], [2, 0], 2, 1, 16, slack=7, device=device)
    out, lse = _both("triton", q, k, v, segments)
    unseeing = torch.tensor([True] * 4 + [False] * 2 + [True] * 11, device=device)
    assert not out[unseeing].any() and out[~unseeing].all()
    assert (lse[unseeing] == float("-inf")).all() and lse[~unseeing].isfinite().all()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_rows_at_all(lengths, device):
    q, k, v, segments = _inputs(lengths, lengths, 2, 1, 16, device=device)
    out, lse = _both("triton", q, k, v, segments)
    assert out.shape == (0, 2, 16) and lse.shape == (0, 2)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tiles", [SMALL, WIDE_KEYS], ids=["small", "wide keys"])
def test_a_segment_alone_has_the_bits_it_has_in_a_pack(causal, tiles, dtype, device):
    lengths = [18, 0, 33]
    q, k, v, segments = _inputs(lengths, lengths, 2, 1, 16, slack=5, dtype=dtype, device=device)
    with tiles_are(tiles):
        packed = _both("triton", q, k, v, segments, causal=causal)
        start = 0
        for length in lengths:
            own = slice(start, start + length)
            alone = _both("triton", q[own], k[own], v[own], Segments.of([length], device=device), causal=causal)
            assert all(torch.equal(a, b[own]) for a, b in zip(alone, packed)), length
            start += length


def test_a_key_changes_no_row_before_it(device):
    q, k, v, segments = _inputs([40], [40], 2, 1, 16, device=device)
    before = ops.attention(q, k, v, segments, backend="triton")
    k, v = k.clone(), v.clone()
    k[25], v[25] = 3.0, -3.0
    after = ops.attention(q, k, v, segments, backend="triton")
    assert torch.equal(before[:25], after[:25]) and (before[25:] != after[25:]).any(-1).all()


def test_kv_end_contains_causal_and_full_bit_by_bit(device):
    lengths = [20, 17]
    q, k, v, segments = _inputs(lengths, lengths, 2, 1, 16, device=device)
    rows, ends = (
        torch.arange(37, dtype=torch.int32, device=device),
        torch.tensor([20, 37], dtype=torch.int32, device=device),
    )
    for causal, kv_end in (
        (True, rows + 1),
        (False, ends.repeat_interleave(torch.tensor(lengths, device=device))),
    ):
        own, general = (_both("triton", q, k, v, segments, causal=causal, kv_end=end) for end in (None, kv_end))
        assert all(torch.equal(a, b) for a, b in zip(own, general)), causal


@pytest.mark.parametrize("length", [5, 40], ids=["heads share a tile", "a tile a head"])
def test_grouped_heads_equal_repeated_keys(length, device):
    """Bit by bit where the tiles are the same; where heads share one, a row lies elsewhere in it, which moves the interpreter's last bit."""
    q, k, v, segments = _inputs([length], [length + 3], 6, 2, 16, device=device)
    grouped = ops.attention(q, k, v, segments, backend="triton")
    repeated = ops.attention(q, *(x.repeat_interleave(3, 1) for x in (k, v)), segments, backend="triton")
    torch.testing.assert_close(grouped, repeated, rtol=1e-5, atol=1e-6)
    assert length < SMALL.forward.rows or torch.equal(grouped, repeated)


def test_large_scores_do_not_overflow(dtype, device):
    q, k, v, segments = _inputs([20], [20], 1, 1, 16, dtype=dtype, device=device)
    out, lse = _both("triton", q * 100, k * 100, v, segments, scale=0.5)
    assert out.isfinite().all() and lse.isfinite().all() and lse.abs().max() > 1e4


def test_more_segments_than_one_look_of_the_search(device):
    lengths = [9 if i in (3, 127, 128, 140) else 0 for i in range(150)]
    q, k, v, segments = _inputs(lengths, lengths, 1, 1, 16, slack=2, device=device)
    _close(_both("triton", q, k, v, segments), _exact(q, k, v, segments))


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=9),
    slack=st.integers(0, 200),
    tile=st.sampled_from([16, 64, 128]),
)
def test_the_grid_has_a_program_for_every_tile(lengths, slack, tile):
    needed = sum(-(-length // tile) for length in (*lengths, slack))
    assert needed <= grid_tiles(sum(lengths) + slack, len(lengths), max(lengths), False, tile)[0] <= needed + len(lengths)


def test_head_parts_hold_the_head_dim_and_waste_least():
    for width in range(8, 257, 8):
        main, rest = head_parts(width)
        assert main + rest >= width and not (main & (main - 1)) and not (rest & (rest - 1))
    assert [sum(head_parts(width)) for width in (64, 72, 80, 96, 128, 256)] == [64, 80, 80, 96, 128, 256]


def test_every_head_dim_and_dtype_has_tiles():
    with tiles_are(None):  # type: ignore[arg-type]
        for capability in ((8, 0), (8, 6), (9, 0), (10, 0), (12, 0)):
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                assert all(isinstance(tiles_for(width, dtype, capability), Tiles) for width in (8, 64, 72, 96, 128, 192, 256))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": torch.float16}, "cast them to one dtype"),
        ({"q": torch.float64, "k": torch.float64, "v": torch.float64}, "float64 is none of"),
    ],
)
def test_dtypes_it_cannot_take_are_refused(change, reason, device):
    q, k, v, segments = _inputs([4], [4], 1, 1, 16, device=device)
    q, k, v = (x.to(change.get(name, x.dtype)) for name, x in (("q", q), ("k", k), ("v", v)))
    with pytest.raises(LmmError, match=reason):
        ops.attention(q, k, v, segments, backend="triton")


def test_layouts_it_cannot_take_are_refused(device):
    q, k, v, segments = _inputs([4], [4], 1, 1, 16, device=device)
    wide = torch.zeros(4, 1, 264, device=device)
    with pytest.raises(LmmError, match="above 256"):
        ops.attention(wide, wide, wide, segments, backend="triton")
    with pytest.raises(LmmError, match="not aligned"):
        odd = torch.zeros(4, 1, 17, device=device)[:, :, 1:]
        ops.attention(odd, k, v, segments, backend="triton")
    with pytest.raises(LmmError, match="above 0"):
        ops.attention(q, k, v, segments, scale=-1.0, backend="triton")
    with pytest.raises(LmmError, match="kv_end must be"):
        ops.attention(q, k, v, segments, kv_end=torch.zeros(4, device=device), backend="triton")


def test_reference_returns_the_logarithm_of_its_sums():
    q, k, v, segments = _inputs([3, 2], [4, 0], 2, 1, 8, slack=1)
    _, lse = _both("reference", q.double(), k.double(), v.double(), segments, causal=False)
    scores = torch.einsum("qne,ke->qnk", q[:3].double(), k[:4, 0].double()) * 8**-0.5
    torch.testing.assert_close(lse[:3], scores.exp().sum(-1).log())
    assert (lse[3:] == float("-inf")).all()


def test_registered_op_passes_opcheck(device):
    q, k, v, segments = _inputs([5, 3], [5, 3], 2, 1, 16, device=device)
    call = (q, k, v, segments.cu_q, segments.cu_k, None, 5, False, True, 0.25, None, None)
    torch.library.opcheck(torch.ops.lmmblocks.attention_fwd.default, call)
