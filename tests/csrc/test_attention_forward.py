"""Flash attention forward of csrc/attention/, emulated, against the formula in fp64: every mask, every way to find a tile, every edge."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.spec import Segments

FULL, CAUSAL, KV_END = range(3)
CODES = {torch.float16: 1, torch.bfloat16: 2}
DTYPES = list(CODES)
WAYS = ["list", "search"]
"""How a CTA finds its tile; `even` stands in tests of its own, where segments are."""

UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding: weights and the output are rounded once each."""

fast = settings(max_examples=20, deadline=None)


def _inputs(lengths_q, lengths_k, heads=2, kv_heads=1, width=64, *, slack=0, dtype=torch.bfloat16, seed=0):
    """Views of a fused projection; rows after the last segment are NaN."""
    torch.manual_seed(seed)
    rows_q, rows_k = sum(lengths_q), sum(lengths_k)
    q = torch.randn(rows_q + slack, heads + 2, width).to(dtype)[:, 1:-1]
    kv = torch.randn(rows_k + slack, 2 * kv_heads, width).to(dtype)
    q[rows_q:], kv[rows_k:] = float("nan"), float("nan")
    return q, kv[:, :kv_heads], kv[:, kv_heads:], Segments.of(lengths_q, lengths_k)


@pytest.fixture(scope="module")
def launch(cuda_emulation):
    """`launch(q, k, v, segments, mask, kv_end, way=..., **changed arguments)` -> (out, lse), or the code where it isn't 0."""

    def call(q, k, v, segments, mask=CAUSAL, kv_end=None, *, way="search", scale=None, **changes):
        out = torch.full((q.shape[0], *q.shape[1:]), float("nan"), dtype=q.dtype)
        lse = torch.full((q.shape[1], q.shape[0]), float("nan"))
        listed = way == "list"
        tiles = cuda_emulation.attention_tiles(segments.lengths_q, segments.lengths_k, q.shape[0], mask) if listed else []
        tiles_N2 = torch.tensor(tiles, dtype=torch.int32)
        tensors = {"q": q, "k": k, "v": v, "out": out, "lse": lse, "cu_q": segments.cu_q, "cu_k": segments.cu_k}
        optional = {"kv_end": kv_end, "tiles": tiles_N2 if listed else None}
        arguments = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        arguments |= {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in optional.items()}
        for name in "qkv":
            arguments[f"{name}_row"], arguments[f"{name}_head"] = tensors[name].stride()[:2]
        arguments |= {
            "rows_q": q.shape[0], "tile_count": len(tiles) // 2, "longest_q": segments.max_q, "even": int(way == "even"),
            "segments": len(segments.lengths_q), "heads": q.shape[1], "kv_heads": k.shape[1], "head_dim": q.shape[2],
            "mask": mask, "dtype": CODES[q.dtype], "device": 0, "scale": q.shape[2] ** -0.5 if scale is None else scale,
        }  # fmt: skip
        code = cuda_emulation.attention_forward(**arguments | changes, stream=0)
        return code or (out, lse)

    return call


def _exact(q, k, v, segments, mask=CAUSAL, kv_end=None, *, scale=None, dtype=torch.float64):
    options = {"causal": mask == CAUSAL, "kv_end": kv_end, "scale": scale}
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out, lse_TN = ops.attention(q, k, v, segments, return_lse=True, backend="reference", **options)
    return out, lse_TN.t()


def _close(found, exact, v):
    """Within rounding: of the weights, whose errors add up to at most a unit of the largest value, and of the output."""
    (out, lse), (exact_out, exact_lse) = found, exact
    finite = v[v.isfinite()]
    most = finite.abs().max().item() if finite.numel() else 0.0
    torch.testing.assert_close(out.double(), exact_out, rtol=0, atol=2.1 * UNIT[out.dtype] * most + 1e-6)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-5)


def _same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=["full", "causal"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
def test_it_is_as_exact_as_torch(launch, mask, width, dtype, as_exact_as_torch):
    """Torch's own is SDPA, which rounds weights to the dtype as the kernel does; sums of weights are in fp32 everywhere."""
    inputs = _inputs([150, 33], [150, 33], 2, 1, width, dtype=dtype)
    own = ops.attention(*inputs, causal=mask == CAUSAL, backend="torch")
    own_lse = _exact(*inputs, mask, dtype=torch.float32)[1]
    as_exact_as_torch(launch(*inputs, mask), (own, own_lse), _exact(*inputs, mask))


@fast
@example(lengths=[(0, 0)], mask=FULL, heads=(1, 1), width=64, dtype=DTYPES[0], slack=5, way=WAYS[0], seed=0)  # slack alone
@given(
    lengths=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150)), min_size=1, max_size=3),
    mask=st.sampled_from([FULL, CAUSAL, KV_END]),
    heads=st.sampled_from([(1, 1), (3, 1), (2, 2)]),
    width=st.sampled_from([64, 128]),
    dtype=st.sampled_from(DTYPES),
    slack=st.sampled_from([0, 5, 130]),
    way=st.sampled_from(WAYS),
    seed=st.integers(0, 99),
)
def test_every_mask_equals_the_formula(launch, lengths, mask, heads, width, dtype, slack, way, seed):
    """Segments without rows or keys, more queries than keys, ends of rows that fall and lie outside of the segment; slack is NaN."""
    lengths_q, lengths_k = zip(*lengths)
    q, k, v, segments = _inputs(lengths_q, lengths_k, *heads, width, slack=slack, dtype=dtype, seed=seed)
    kv_end = torch.randint(-5, sum(lengths_k) + 6, (q.shape[0],), dtype=torch.int32) if mask == KV_END else None
    call = (q, k, v, segments, mask, kv_end)
    _close(launch(*call, way=way), _exact(*call), v)


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_see_no_key_and_rows_behind_the_segments_are_zero(launch, way):
    q, k, v, segments = _inputs([6, 4, 140], [2, 0, 6], slack=150)
    out, lse = launch(q, k, v, segments, way=way)
    unseeing = torch.tensor([True] * 4 + [False] * 2 + [True] * 4 + [True] * 134 + [False] * 6 + [True] * 150)
    assert not out[unseeing].any() and out[~unseeing].any(-1).all()
    assert (lse[:, unseeing] == float("-inf")).all() and lse[:, ~unseeing].isfinite().all()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
@pytest.mark.parametrize("way", WAYS)
def test_no_rows_at_all_are_no_launch(launch, emulator_counts, lengths, way):
    out, _ = launch(*_inputs(lengths, lengths), way=way)
    assert out.shape == (0, 2, 64) and emulator_counts("ctas") == [0]


@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=["full", "causal"])
@pytest.mark.parametrize("width", [64, 128])
def test_a_segment_alone_has_the_bits_it_has_in_a_pack(launch, mask, width):
    lengths = [18, 0, 133, 65]
    q, k, v, segments = _inputs(lengths, lengths, width=width, slack=5)
    out, lse = launch(q, k, v, segments, mask, way="list")
    start = 0
    for length in lengths:
        own = slice(start, start + length)
        alone = launch(q[own], k[own], v[own], Segments.of([length]), mask, way="even")
        assert _same(alone, (out[own], lse[:, own])), length
        start += length


@pytest.mark.parametrize("width", [64, 128])
def test_a_row_has_the_same_bits_in_every_tile(launch, width):
    """Of 200 rows and 200 keys, the last 100 rows as rows of a segment of their own see the same keys."""
    q, k, v, segments = _inputs([200], [200], width=width)
    out, lse = launch(q, k, v, segments)
    assert _same(launch(q[100:], k, v, Segments.of([100], [200])), (out[100:], lse[:, 100:]))


def test_every_order_of_threads_gives_the_same_bits(launch, simt_seed, monkeypatch):
    """Orders, moments at which copies land, and what fresh memory holds: a missing barrier would show."""
    for width, mask in ((64, CAUSAL), (128, FULL)):
        inputs = _inputs([150, 20], [170, 90], width=width, slack=3)
        found = launch(*inputs, mask)
        monkeypatch.setenv("LMM_SIMT_SEED", "0")
        assert _same(found, launch(*inputs, mask, way="list"))
        monkeypatch.setenv("LMM_SIMT_SEED", str(simt_seed))


def test_all_ways_to_a_tile_give_the_same_bits(launch):
    inputs = _inputs([140, 140], [70, 70])
    for mask in (FULL, CAUSAL):
        first, *others = (launch(*inputs, mask, way=way) for way in (*WAYS, "even"))
        assert all(_same(first, other) for other in others)


def test_the_search_finds_tiles_among_many_segments(launch):
    """A warp looks at 32 segments at a time."""
    lengths = [9 if i in (3, 31, 32, 63, 64, 70) else 0 for i in range(80)]
    inputs = _inputs(lengths, lengths, 1, 1, slack=2)
    assert _same(launch(*inputs), launch(*inputs, way="list"))


def test_a_key_changes_no_row_before_it(launch):
    q, k, v, segments = _inputs([140], [140])
    before, _ = launch(q, k, v, segments)
    k, v = k.clone(), v.clone()
    k[75], v[75] = 3.0, -3.0
    after, _ = launch(q, k, v, segments)
    assert torch.equal(before[:75], after[:75]) and (before[75:] != after[75:]).any(-1).all()


def test_kv_end_contains_causal_and_full_bit_by_bit(launch):
    lengths = [133, 70]
    inputs = _inputs(lengths, lengths)
    ends = torch.tensor([133, 203], dtype=torch.int32).repeat_interleave(torch.tensor(lengths))
    for mask, kv_end in ((CAUSAL, torch.arange(1, 204, dtype=torch.int32)), (FULL, ends)):
        assert _same(launch(*inputs, mask), launch(*inputs, KV_END, kv_end)), mask


def test_a_text_with_an_image_that_sees_itself_equals_the_formula(launch):
    """What the plan makes of a bidirectional image: rows 40 to 159 end at 160, the others at themselves."""
    q, k, v, segments = _inputs([200], [200])
    kv_end = torch.arange(1, 201, dtype=torch.int32)
    kv_end[40:160] = 160
    _close(launch(q, k, v, segments, KV_END, kv_end), _exact(q, k, v, segments, KV_END, kv_end), v)


def test_grouped_heads_equal_repeated_keys(launch):
    q, k, v, segments = _inputs([70], [75], 6, 2)
    repeated = (x.repeat_interleave(3, 1) for x in (k, v))
    assert _same(launch(q, k, v, segments), launch(q, *repeated, segments))


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
def test_large_scores_do_not_overflow(launch, dtype):
    """Scores rise from block to block, so that every reference of the online softmax is left behind."""
    q, k, v, segments = _inputs([20], [200], 1, 1, dtype=dtype)
    k = k * torch.linspace(30, 1, 200)[:, None, None].to(dtype)
    found = launch(q * 10, k, v, segments, scale=0.5)
    assert found[1].abs().max() > 1e3
    _close(found, _exact(q * 10, k, v, segments, scale=0.5), v)


@pytest.mark.parametrize("width", [64, 128])
def test_nothing_is_read_behind_the_rows(launch, fenced, width):
    """The last byte of each input is the last that can be touched."""
    q, k, v, segments = _inputs([70], [65], width=width)
    q, k, v = (fenced(x.contiguous()) for x in (q, k, v))
    _close(launch(q, k, v, segments, FULL), _exact(q, k, v, segments, FULL), v)


@pytest.mark.parametrize(("length", "atoms"), [(577, 37), (129, 9)])
def test_tails_cost_what_they_hold(launch, emulator_counts, length, atoms):
    """37 atoms of 16 are 592: products of 16 x 16, each 8 times an mma for the scores and 8 for the values at 64 columns. No conflicts."""
    out, _ = launch(*_inputs([length], [length], 1, 1), FULL, way="even")
    assert emulator_counts("mma", "ldmatrix_conflicts") == [atoms * atoms * 16, 0] and out.isfinite().all()


def test_a_causal_tile_leaves_out_what_lies_above_the_diagonal(launch, emulator_counts):
    launch(*_inputs([256], [256], 1, 1))
    assert emulator_counts("mma") == [16 * 17 // 2 * 16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": 0}, "dtype"),
        ({"head_dim": 96}, "head dim"),
        ({"q_row": 130}, "stride"),
        ({"heads": 3, "kv_heads": 2}, "heads"),
        ({"mask": 3}, "combination"),
        ({"scale": -1.0}, "combination"),
        ({"rows_q": -1}, "size"),
    ],
)
def test_what_it_cannot_take_is_refused_with_a_code(launch, cuda_emulation, change, message):
    code = launch(*_inputs([4], [4]), **change)
    assert isinstance(code, int) and message in cuda_emulation.error_message(code)


def test_misaligned_pointers_and_a_missing_kv_end_are_refused(launch, cuda_emulation):
    q, k, v, segments = _inputs([4], [4])
    odd = torch.zeros(4 * 64 + 1, dtype=q.dtype)[1:].view(4, 1, 64)
    assert "16-byte" in cuda_emulation.error_message(launch(q, odd, v, segments))
    assert "null" in cuda_emulation.error_message(launch(q, k, v, segments, KV_END))
