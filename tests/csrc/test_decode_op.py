"""Attention of few rows with split keys in CUDA, emulated, through its ops: `cuda_decode` over packed keys, `cuda` over pages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.decoders.cache import KVCache
from lmmblocks.ops.attention import decode_cuda_launch as decode_cuda
from lmmblocks.ops.attention.decode_cuda import ATTENTION_DECODE
from lmmblocks.ops.attention.decode_cuda_launch import division_of
from lmmblocks.ops.attention.paged_kernels import PAGED_CUDA
from lmmblocks.spec import LmmError, Segments

pytestmark = pytest.mark.usefixtures("cuda_emulation")

DTYPES = [torch.float16, torch.bfloat16]
NAN = float("nan")

UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding: weights and the output are rounded once each."""

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])


def _inputs(lengths_q, lengths_k, heads=4, kv_heads=2, width=64, *, slack=0, dtype=torch.bfloat16):
    """Keys and values beside each other, as a cache keeps them; rows after the last segment are NaN."""
    torch.manual_seed(0)
    rows, keys = sum(lengths_q), sum(lengths_k)
    q = torch.randn(rows + slack, heads + 1, width).to(dtype)[:, 1:]
    kv = torch.randn(keys + slack, 2 * kv_heads, width).to(dtype)
    q[rows:], kv[keys:] = NAN, NAN
    return q, kv[:, :kv_heads], kv[:, kv_heads:], Segments.of(lengths_q, lengths_k)


def _exact(q, k, v, segments, causal=True, window=None, softcap=None, dtype=torch.float64):
    """`(out, lse_NT)` of the formula."""
    options = {"causal": causal, "window": window, "softcap": softcap}
    out, lse_TN = ops.attention(*(x.to(dtype) for x in (q, k, v)), segments, return_lse=True, backend="reference", **options)
    return out, lse_TN.t()


def _launch(q, k, v, segments, part_keys=0, causal=True, window=None, softcap=None):
    """`(out, lse_NT)` of the packed op, which divides the keys by itself or into parts of `part_keys`."""
    mask = (causal, q.shape[-1] ** -0.5, window, softcap)
    return ATTENTION_DECODE(q, k, v, segments.cu_q, segments.cu_k, segments.max_q, segments.max_k, *mask, part_keys)


def _close(found, exact, v):
    """Within rounding: of the weights, whose errors add up to at most a unit of the largest value, and of the output."""
    (out, lse), (exact_out, exact_lse) = found, exact
    most = v[v.isfinite()].abs().max().item() if v[v.isfinite()].numel() else 0.0
    torch.testing.assert_close(out.double(), exact_out, rtol=0, atol=2.1 * UNIT[out.dtype] * most + 1e-6)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=2e-5)


def _same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_dtype
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (8, 2), (7, 1)], ids=["own keys", "groups of 4", "a group of 7"])
@pytest.mark.parametrize(("width", "part_keys"), [(64, 0), (64, 48), (128, 64), (256, 0), (256, 96)])
def test_it_is_as_exact_as_torch(dtype, heads, kv_heads, width, part_keys, as_exact_as_torch):
    """Torch's own is SDPA, which rounds weights to the dtype as the kernel does; in fp32 for the sum of weights."""
    q, k, v, segments = _inputs((1, 1), (290, 65), heads, kv_heads, width, dtype=dtype)
    own = ops.attention(q, k, v, segments, backend="torch")
    own_lse = _exact(q, k, v, segments, dtype=torch.float32)[1]
    as_exact_as_torch(_launch(q, k, v, segments, part_keys), (own, own_lse), _exact(q, k, v, segments), floor=2e-6)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 16), st.integers(0, 90)), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (6, 2), (14, 2)]),
    width=st.sampled_from([64, 64, 128, 256]),
    dtype=st.sampled_from(DTYPES),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 60),
    softcap=st.none() | st.sampled_from([1.0, 30.0]),
    part_keys=st.sampled_from([0, 16, 48]),
    slack=st.sampled_from([0, 3]),
)
def test_masks_and_log_sums_are_those_of_the_formula(lengths, heads, width, dtype, causal, window, softcap, part_keys, slack):
    """Segments without rows or keys, more rows than keys, windows and softcaps; slack is NaN and comes out as zeros."""
    q, k, v, segments = _inputs(*zip(*lengths), *heads, width, slack=slack, dtype=dtype)
    mask = (causal, window, softcap)
    _close(_launch(q, k, v, segments, part_keys, *mask), _exact(q, k, v, segments, *mask), v)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    rows=st.integers(1, 4),
    heads=st.sampled_from([(1, 1), (6, 2)]),
    width=st.sampled_from([64, 64, 128, 256]),
    dtype=st.sampled_from(DTYPES),
    page_rows=st.sampled_from([16, 48, 64]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 60),
    softcap=st.none() | st.sampled_from([1.0, 30.0]),
    part_keys=st.sampled_from([None, 16, 48]),
)
def test_pages_give_what_the_formula_gives(in_pages, lengths, rows, heads, width, dtype, page_rows, causal, window, softcap, part_keys):
    """All that the pages hold besides the keys is NaN; entries of the table after the last page point nowhere."""
    q, k, v, segments = _inputs((rows,) * len(lengths), lengths, *heads, width, dtype=dtype)
    mask = {"causal": causal, "window": window, "softcap": softcap}
    pages = in_pages(k, v, lengths, page_rows)
    out, lse_TN = ops.paged_attention(q, *pages, part_keys=part_keys, return_lse=True, backend="cuda", **mask)
    _close((out, lse_TN.t()), _exact(q, k, v, segments, *mask.values()), v)


@pytest.mark.parametrize("part_keys", [0, 48, 64])
def test_pages_have_the_bits_of_packed_keys(in_pages, part_keys):
    lengths = (300, 0, 90)
    q, k, v, segments = _inputs((2, 2, 2), lengths)
    paged = PAGED_CUDA(q, *in_pages(k, v, lengths, 32), max(lengths), True, 0.125, None, None, part_keys)
    assert _same(paged, _launch(q, k, v, segments, part_keys))


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 15, 16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2)])
def test_any_number_of_rows_shares_its_keys(rows, heads, kv_heads):
    """Tiles of 16 and 32 packed rows, the last of them not full, some rows of a group in the next tile."""
    q, k, v, segments = _inputs((rows, 1, rows), (70, 33, rows), heads, kv_heads)
    for causal in (True, False):
        _close(_launch(q, k, v, segments, 32, causal), _exact(q, k, v, segments, causal), v)


@pytest.mark.parametrize("segments", [1, 31, 32, 33, 64])
@pytest.mark.parametrize("part_keys", [0, 16])
def test_any_number_of_segments_finds_its_keys(segments, part_keys):
    """A warp looks at 32 segments at a time; every third has no keys, every fifth no row."""
    lengths_k = [0 if i % 3 == 2 else 5 + 7 * i % 40 for i in range(segments)]
    q, k, v, packed = _inputs([int(i % 5 != 4) for i in range(segments)], lengths_k, 2, 1, slack=2)
    _close(_launch(q, k, v, packed, part_keys), _exact(q, k, v, packed), v)


def _launched_parts(monkeypatch):
    """The divisions that launches are given from here on."""
    seen = []
    monkeypatch.setattr(decode_cuda, "division_of", lambda *a: seen.append(division_of(*a)) or seen[-1])
    return seen


def test_keys_are_divided_by_themselves_as_many_parts_as_the_device_runs(monkeypatch, emulator_counts):
    """One segment of 2000 keys on 108 multiprocessors: parts of 256 keys, the shortest that pay; with lengths, as many together."""
    divisions = _launched_parts(monkeypatch)
    q, k, v, segments = _inputs((1,), (2000,), 2, 1)
    _close(_launch(q, k, v, segments), _exact(q, k, v, segments), v)
    found, least = divisions[-1], 2000 // 256 + 1
    assert found.most_parts > 1 and found.least_steps == 16 and found.parts >= least
    assert emulator_counts("ctas") == [found.parts + 1 + 2]  # parts and slack of one kv head, and a combination for each of two heads


def test_short_keys_are_not_divided(monkeypatch, emulator_counts):
    divisions = _launched_parts(monkeypatch)
    q, k, v, segments = _inputs((1, 1), (256, 30), 2, 1)
    _launch(q, k, v, segments)
    assert divisions[-1].most_parts == 1 and emulator_counts("ctas") == [2 + 1]


@every_dtype
@pytest.mark.parametrize("width", [64, 128, 256])
def test_every_order_of_threads_gives_the_same_bits(simt_seed, monkeypatch, dtype, width):
    """Orders, moments at which copies land, and what fresh memory holds: a missing barrier or wait would show."""
    q, k, v, segments = _inputs((2, 1), (170, 333), width=width, dtype=dtype, slack=1)
    found = [_launch(q, k, v, segments, part_keys) for part_keys in (0, 96)]
    monkeypatch.setenv("LMM_SIMT_SEED", "0")
    assert all(_same(one, _launch(q, k, v, segments, part_keys)) for one, part_keys in zip(found, (0, 96)))


@pytest.mark.parametrize("page_rows", [None, 16], ids=["packed", "pages"])
def test_with_parts_of_one_size_neighbours_change_no_bit(in_pages, page_rows):
    lengths = (90, 400, 40)
    q, k, v, segments = _inputs((1, 1, 1), lengths)
    pages = in_pages(k, v, lengths, page_rows or 16)

    def run(first, last):
        if page_rows is None:
            keys = slice(sum(lengths[:first]), sum(lengths[:last]))
            return _launch(q[first:last], k[keys], v[keys], Segments.of((1,) * (last - first), lengths[first:last]), 64)[0]
        table, counts = (x[first:last] for x in pages[2:])
        return ops.paged_attention(q[first:last], *pages[:2], table, counts, part_keys=64, backend="cuda")

    together = run(0, 3)
    assert all(torch.equal(run(one, one + 1), together[one : one + 1]) for one in range(3))


def test_parts_are_added_in_their_order_whatever_they_weigh():
    """One key outweighs all others: its part decides, wherever it stands, and the parts beside it add nothing but zeros."""
    q, k, v, segments = _inputs((1,), (200,), 1, 1)
    for place in (0, 70, 199):
        keys = k.clone()
        keys[place] = 40 * q[0, 0] / q[0, 0].float().norm()
        out, lse = _launch(10 * q, keys, v, segments, 48)
        torch.testing.assert_close(out[0], v[place], rtol=1e-2, atol=1e-2)
        _close((out, lse), _exact(10 * q, keys, v, segments), v)


@pytest.mark.parametrize("paged", [False, True], ids=["packed", "pages"])
def test_a_launch_stays_right_when_the_lengths_on_the_device_grow(in_pages, paged):
    """As in a captured graph: the host knew of 300 keys, or of 20, and the cache now holds 700."""
    q, k, v, segments = _inputs((1,), (700,))
    for known in (300, 20):
        if paged:
            found = PAGED_CUDA(q, *in_pages(k, v, (700,), 16), known, True, 0.125, None, None)
        else:
            found = ATTENTION_DECODE(q, k, v, segments.cu_q, segments.cu_k, 1, known, True, 0.125, None, None)
        _close(found, _exact(q, k, v, segments), v)


def test_keys_that_no_row_sees_are_not_read(in_pages):
    """After a window the keys are NaN, and pages that hold no other are not looked up."""
    lengths = (200, 61)
    q, k, v, segments = _inputs((2, 2), lengths)
    exact = _exact(q, k, v, segments, True, 30)
    k, v = k.clone(), v.clone()
    for first, length in ((0, 200), (200, 61)):
        k[first : first + length - 31], v[first : first + length - 31] = NAN, NAN
    _close(_launch(q, k, v, segments, 16, True, 30), exact, v)
    k_pages, v_pages, table, counts = in_pages(k, v, lengths, 16)
    table[0, : (200 - 31) // 16], table[1, : (61 - 31) // 16] = 10**6, 10**6
    out, lse_TN = ops.paged_attention(q, k_pages, v_pages, table, counts, window=30, return_lse=True, backend="cuda")
    _close((out, lse_TN.t()), exact, v)


@every_dtype
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("part_keys", [0, 48])
def test_nothing_is_touched_behind_the_end_and_everything_is_written(fenced, fenced_outputs, in_pages, dtype, width, part_keys):
    """The last byte of every input, output and workspace is the last that can be touched; outputs are NaN before."""
    lengths = (290, 33)
    q, k, v, segments = _inputs((1, 2), lengths, 4, 2, width, dtype=dtype)
    exact = _exact(q, k, v, segments)
    k_pages, v_pages, table, counts = in_pages(k, v, lengths, 16)
    q, k, v, k_pages, v_pages = (fenced(x.contiguous()) for x in (q, k, v, k_pages, v_pages))
    table, counts, cu_q, cu_k = (fenced(x) for x in (table, counts, segments.cu_q, segments.cu_k))
    scale = width**-0.5
    with fenced_outputs():
        packed = ATTENTION_DECODE(q, k, v, cu_q, cu_k, 2, 290, True, scale, None, None, part_keys)
        pages = PAGED_CUDA(fenced(q[:2].clone()), k_pages, v_pages, table, counts, 290, True, scale, None, None, part_keys)
    _close(packed, exact, v)
    segments = Segments.of((1, 1), lengths)
    _close(pages, _exact(q[:2], k, v, segments), v)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_rows_at_all_are_no_launch(emulator_counts, lengths):
    out, lse = _launch(*_inputs(lengths, lengths))
    assert out.shape == (0, 4, 64) and lse.shape == (4, 0) and emulator_counts("ctas") == [0]


def test_it_takes_what_the_cache_hands_out_and_gives_its_log_sum():
    torch.manual_seed(0)
    cache, rows = KVCache(1, 2), torch.randn(5, 2, 64).half()
    cache.append(0, rows, rows, (3, 2))
    cache.advance((3, 2))
    new = torch.randn(2, 2, 64).half()
    k, v = cache.append(0, new, -new, (1, 1))
    segments = cache.segments((1, 1), k.device)
    q = torch.randn(2, 4, 64).half()
    out, lse_TN = ops.attention(q, k, v, segments, return_lse=True, backend="cuda_decode")
    assert torch.equal(out, ops.attention(q, k, v, segments, backend="cuda_decode"))
    _close((out, lse_TN.t()), _exact(q, k, v, segments), v[:7])


def test_large_scores_do_not_overflow():
    """Scores rise from step to step, so that every reference of the online softmax is left behind."""
    for dtype in DTYPES:
        q, k, v, segments = _inputs((1,), (200,), 1, 1, dtype=dtype)
        k = k * torch.linspace(30, 1, 200)[:, None, None].to(dtype)
        found = _launch(q * 20, k, v, segments, 48)
        assert found[1].abs().max() > 100
        _close(found, _exact(q * 20, k, v, segments), v)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rows": 17}, "17 query rows"),
        ({"width": 96}, "heads of 96"),
        ({"dtype": torch.float32}, "float32"),
        ({"gradient": True}, "no backward"),
        ({"kv_end": True}, "kv_end"),
        ({"scale": 0.0}, "a scale of 0.0"),
        ({"odd": True}, "not aligned to 16 bytes"),
    ],
)
def test_what_it_cannot_take_is_refused_with_the_reason(change, complaint):
    rows = change.get("rows", 1)
    q, k, v, segments = _inputs((rows,), (40,), 2, 2, change.get("width", 64), dtype=change.get("dtype", torch.float16))
    if "odd" in change:
        k = torch.zeros(40 * 2 * 64 + 1, dtype=k.dtype)[1:].view(40, 2, 64)
    kv_end = torch.full((rows,), 40, dtype=torch.int32) if "kv_end" in change else None
    with pytest.raises(LmmError, match=complaint):
        ops.attention(q.requires_grad_("gradient" in change), k, v, segments, kv_end=kv_end, scale=change.get("scale"), backend="cuda_decode")


def test_pages_it_cannot_take_are_refused_with_the_reason(in_pages):
    q, k, v, _ = _inputs((1,), (40,), 2, 2)
    with pytest.raises(LmmError, match="pages of 24 rows: it takes multiples of 16"):
        ops.paged_attention(q, *in_pages(k, v, (40,), 24), backend="cuda")


def test_registered_ops_pass_opcheck(in_pages):
    q, k, v, segments = _inputs((1, 1), (40, 70))
    torch.library.opcheck(ATTENTION_DECODE.op, (q, k, v, segments.cu_q, segments.cu_k, 1, 70, True, 0.125, 30, None, 32))
    pages = in_pages(k, v, (40, 70), 16)
    held = tuple(x.nan_to_num() for x in pages[:2])  # opcheck compares what it was given before and after
    torch.library.opcheck(PAGED_CUDA.op, (q, *held, *pages[2:], 70, True, 0.125, None, 20.0, 32))


def test_traces_whole_and_serves_other_lengths(in_pages):
    run = lambda q, k, v, segments: ops.attention(q, k, v, segments, backend="cuda_decode") * 2  # noqa: E731
    traced = torch.compile(run, fullgraph=True, backend="aot_eager")
    for lengths in ((290, 33), (310, 65)):
        inputs = _inputs((1, 1), lengths)
        assert torch.equal(traced(*inputs), run(*inputs))


def test_auto_passes_the_emulator_by():
    q, k, v, segments = _inputs((1,), (600,))
    call = ops.AttentionCall(q, k, v, segments, True, None, 0.125)
    assert "emulator" in dict(ops.dispatch.verdicts("attention", call))["cuda_decode"]
