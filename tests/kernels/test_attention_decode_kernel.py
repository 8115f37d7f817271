"""Attention of few rows with split keys: exact against fp64 for any number of parts, one part being the plain forward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels.attention_decode import attention_decode, parts_of
from lmmblocks.kernels.attention_forward import attention_fwd

from lmmblocks import ops
from lmmblocks.decoders.cache import KVCache
from lmmblocks.ops.attention.call import AttentionCall
from lmmblocks.ops.attention.reference import attention_reference
from lmmblocks.spec import LmmError, Segments

BACKEND = "triton_decode"


def _tensors(lengths_q, lengths_k, heads, kv_heads, width, device="cpu", dtype=torch.float32, slack=0):
    torch.manual_seed(0)
    q = torch.randn(sum(lengths_q) + slack, heads, width, device=device).to(dtype)
    k, v = torch.randn(sum(lengths_k) + slack, 2 * kv_heads, width, device=device).to(dtype).split(kv_heads, 1)
    return q, k, v, Segments.of(lengths_q, lengths_k, device=device)


def _lse(q, k, segments, causal, window, softcap):
    """Natural log of the sum of exponentials of each head and row, segment by segment."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    found = torch.full((q.shape[1], q.shape[0]), float("-inf"), dtype=torch.float64, device=q.device)
    first_q = first_k = 0
    for len_q, len_k in zip(segments.lengths_q, segments.lengths_k):
        scores = torch.einsum("qne,kne->nqk", q[first_q : first_q + len_q], k[first_k : first_k + len_k]) * q.shape[-1] ** -0.5
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        place = torch.arange(len_q, device=q.device)[:, None] + len_k - len_q
        key = torch.arange(len_k, device=q.device)[None]
        hidden = (key > place) & causal if window is None else ((key > place) & causal) | (key <= place - window)
        found[:, first_q : first_q + len_q] = scores.masked_fill(hidden, float("-inf")).logsumexp(-1)
        first_q, first_k = first_q + len_q, first_k + len_k
    return found


def _launch(q, k, v, segments, parts, causal=True, window=None, softcap=None):
    even = len(set(segments.lengths_q)) == 1 and sum(segments.lengths_q) == q.shape[0]
    mask = (causal, q.shape[-1] ** -0.5, window, softcap)
    return attention_decode(q, k, v, segments.cu_q, segments.cu_k, segments.max_q, even, *mask, segments.lengths_k, parts)


@pytest.mark.parametrize("parts, heads, kv_heads, width", [(0, 2, 2, 64), (3, 8, 2, 128), (17, 6, 1, 72)])
def test_it_is_as_exact_as_torch_for_any_number_of_parts(parts, heads, kv_heads, width, dtype, device, as_exact_as_torch):
    q, k, v, segments = _tensors((1, 1), (200, 65), heads, kv_heads, width, device, dtype)
    arguments = (segments, True, None, width**-0.5)
    own, exact = (attention_reference(AttentionCall(*(x.to(t) for x in (q, k, v)), *arguments)) for t in (dtype, torch.float64))
    out, lse = _launch(q, k, v, segments, parts)
    as_exact_as_torch(out, own, exact)
    assert (lse.double() - _lse(q, k, segments, True, None, None)).abs().max() < (1e-5 if dtype == torch.float32 else 1e-3)


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 70)), min_size=1, max_size=3),
    group=st.sampled_from([1, 3, 7]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 60),
    softcap=st.none() | st.floats(1, 9),
    parts=st.integers(0, 5),
    slack=st.integers(0, 3),
)
def test_masks_and_lengths_are_those_of_the_reference(lengths, group, causal, window, softcap, parts, slack):
    lengths_q, lengths_k = zip(*lengths)
    q, k, v, segments = _tensors(lengths_q, lengths_k, 2 * group, 2, 16, slack=slack)
    expected = attention_reference(AttentionCall(q, k, v, segments, causal, None, 0.25, window, softcap))
    rows, keys = sum(lengths_q), sum(lengths_k)
    poisoned = [torch.cat([x[:n], torch.full_like(x[n:], float("nan"))]) for x, n in ((q, rows), (k, keys), (v, keys))]
    out, lse = _launch(*poisoned, segments, parts, causal, window, softcap)
    torch.testing.assert_close(out, torch.cat([expected[:rows], torch.zeros_like(q[rows:])]), atol=2e-5, rtol=1e-4)
    logs = _lse(q, k, segments, causal, window, softcap)
    torch.testing.assert_close(lse.double(), logs, atol=1e-4, rtol=1e-4)


def test_one_part_is_the_plain_forward(device):
    q, k, v, segments = _tensors((2, 2), (200, 131), 4, 2, 64, device, torch.float16)
    out, lse = _launch(q, k, v, segments, 1)
    plain = attention_fwd(q, k, v, segments.cu_q, segments.cu_k, None, 2, True, True, 0.125, None, None)
    torch.testing.assert_close(out, plain[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(lse, plain[1], atol=1e-5, rtol=1e-5)


def test_every_run_and_every_neighbour_gives_the_same_bits(device):
    q, k, v, segments = _tensors((1, 1), (200, 90), 4, 2, 64, device)
    first = _launch(q, k, v, segments, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, _launch(q, k, v, segments, 3)))
    alone = _launch(q[:1], k[:200], v[:200], Segments.of((1,), (200,), device=device), 3)
    assert torch.equal(alone[0], first[0][:1])


def test_a_launch_stays_right_when_the_boundaries_on_the_device_grow(device):
    """As in a captured graph: parts were counted for 100 keys, the cache now holds 300."""
    q, k, v, segments = _tensors((1,), (300,), 2, 2, 64, device)
    mask = (True, 0.125, None, None)
    out, _ = attention_decode(q, k, v, segments.cu_q, segments.cu_k, 1, True, *mask, (100,))
    torch.testing.assert_close(out, attention_reference(AttentionCall(q, k, v, segments, True, None, 0.125)), atol=1e-5, rtol=1e-4)


def test_parts_fill_the_device_in_one_wave():
    for lengths in ((4096,), (8000, 64, 64), (1000,) * 16, (32768,), (4096,) * 3):
        for heads in (1, 8, 32):
            parts, size = parts_of(lengths, heads, 64, 216)
            programs = sum(-(-length // (64 * size)) for length in lengths) * heads
            assert parts == -(-max(lengths) // (64 * size))
            assert programs <= 216 or parts == 1, (lengths, heads, parts)


def test_the_op_takes_what_the_cache_hands_out_and_gives_its_log_sum(device):
    torch.manual_seed(0)
    cache, rows = KVCache(1, 2), torch.randn(5, 2, 32, device=device)
    cache.append(0, rows, rows, (3, 2))
    cache.advance((3, 2))
    new = torch.randn(2, 2, 32, device=device)
    k, v = cache.append(0, new, -new, (1, 1))
    segments = cache.segments((1, 1), k.device)
    q = torch.randn(2, 4, 32, device=device)
    expected = ops.attention(q, k, v, segments, backend="reference")
    torch.testing.assert_close(ops.attention(q, k, v, segments, backend=BACKEND), expected, atol=1e-5, rtol=1e-4)
    out, lse = ops.attention(q, k, v, segments, return_lse=True, backend=BACKEND)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(lse.double(), _lse(q, k, segments, True, None, None).t(), atol=1e-5, rtol=1e-5)


def test_what_it_cannot_do_is_refused_with_the_reason(device):
    q, k, v, segments = _tensors((2,), (40,), 2, 2, 16, device)
    with pytest.raises(LmmError, match="no backward"):
        ops.attention(q.requires_grad_(), k, v, segments, backend=BACKEND)
    q = q.detach()
    with pytest.raises(LmmError, match="kv_end"):
        ops.attention(
            q,
            k,
            v,
            segments,
            kv_end=torch.tensor([40, 40], dtype=torch.int32, device=device),
            backend=BACKEND,
        )
    long, k, v, segments = _tensors((17,), (40,), 2, 2, 16, device)
    with pytest.raises(LmmError, match="17 query rows"):
        ops.attention(long, k, v, segments, backend=BACKEND)


def test_registered_op_passes_opcheck(device):
    q, k, v, segments = _tensors((1, 1), (40, 70), 4, 2, 16, device)
    arguments = (q, k, v, segments.cu_q, segments.cu_k, 1, True, True, 0.25, 30, None, [30, 30], 2)
    torch.library.opcheck(torch.ops.lmmblocks.attention_decode.default, arguments)
