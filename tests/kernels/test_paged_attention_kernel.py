"""Attention of few rows over keys in pages, in Triton: the same as over packed keys, whatever the pages hold besides them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels.attention_decode import FEWEST_BLOCKS, paged_attention_decode

from lmmblocks import ops
from lmmblocks.ops.attention.decode import ATTENTION_DECODE
from lmmblocks.ops.attention.paged import PagedCall, paged_attention_reference
from lmmblocks.spec import LmmError, Segments

BACKEND = "triton"


def _packed(lengths, rows, heads, kv_heads, width, device="cpu", dtype=torch.float32):
    torch.manual_seed(0)
    q = torch.randn(len(lengths) * rows, heads, width, device=device).to(dtype)
    k, v = (torch.randn(sum(lengths), kv_heads, width, device=device).to(dtype) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("heads, kv_heads, width, page_rows, part_keys", [(2, 2, 64, 16, 64), (8, 2, 72, 64, None)])
def test_it_is_as_exact_as_torch(heads, kv_heads, width, page_rows, part_keys, dtype, device, in_pages, as_exact_as_torch):
    q, k, v = _packed((200, 0, 65), 1, heads, kv_heads, width, device, dtype)
    k_pages, v_pages, *places = in_pages(k, v, (200, 0, 65), page_rows)
    own, exact = (
        paged_attention_reference(PagedCall(q.to(t), k_pages.to(t), v_pages.to(t), *places, True, width**-0.5, 256, return_lse=True))
        for t in (dtype, torch.float64)
    )
    out, lse = ops.paged_attention(q, k_pages, v_pages, *places, part_keys=part_keys, return_lse=True, backend=BACKEND)
    as_exact_as_torch(out, own[0], exact[0])
    torch.testing.assert_close(lse.double(), exact[1], atol=1e-3, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=3),
    rows=st.integers(1, 3),
    group=st.sampled_from([1, 3]),
    page_rows=st.sampled_from([1, 6, 16]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 60),
    softcap=st.none() | st.floats(1, 9),
    part_keys=st.sampled_from([None, 32]),
)
def test_masks_lengths_and_pages_are_those_of_the_reference(in_pages, lengths, rows, group, page_rows, causal, window, softcap, part_keys):
    q, k, v = _packed(lengths, rows, 2 * group, 2, 16)
    pages = in_pages(k, v, lengths, page_rows)
    options = {"causal": causal, "window": window, "softcap": softcap, "return_lse": True}
    expected = ops.paged_attention(q, *pages, backend="reference", **options)
    found = ops.paged_attention(q, *pages, part_keys=part_keys, backend=BACKEND, **options)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_it_is_bitwise_the_packed_kernel_with_as_many_parts(device, in_pages):
    lengths = (600, 650)  # 19 and 21 blocks of 32 keys: a third is 7 blocks of either
    q, k, v = _packed(lengths, 2, 4, 2, 64, device)
    segments = Segments.of((2, 2), lengths, device=device)
    packed = ATTENTION_DECODE(q, k, v, segments.cu_q, segments.cu_k, 2, True, True, 0.125, None, None, lengths, 3)
    paged = paged_attention_decode(q, *in_pages(k, v, lengths, 16), 650, True, 0.125, None, None, part_keys=224)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(paged, packed))


def test_a_launch_stays_right_when_the_lengths_on_the_device_grow(device, in_pages):
    """As in a captured graph: parts were counted for 100 keys, the sequence now has 300."""
    q, k, v = _packed((300,), 1, 2, 2, 64, device)
    pages = in_pages(k, v, (300,), 16)
    out, _ = paged_attention_decode(q, *pages, 100, True, 0.125, None, None)
    torch.testing.assert_close(out, ops.paged_attention(q, *pages, backend="reference"), atol=1e-5, rtol=1e-4)


def test_with_parts_of_one_size_neighbours_change_no_bit(device, in_pages):
    lengths = (90, 400, 40)
    q, k, v = _packed(lengths, 1, 2, 2, 64, device)
    k_pages, v_pages, table, found = in_pages(k, v, lengths, 16)
    fixed = {"part_keys": 16 * FEWEST_BLOCKS, "backend": BACKEND}
    together = ops.paged_attention(q, k_pages, v_pages, table, found, **fixed)
    for sequence in range(len(lengths)):
        one = slice(sequence, sequence + 1)
        alone = ops.paged_attention(q[one], k_pages, v_pages, table[one], found[one], **fixed)
        assert torch.equal(alone, together[one])


def test_what_it_cannot_do_is_refused_with_the_reason(device, in_pages):
    q, k, v = _packed((40,), 17, 2, 2, 16, device)
    with pytest.raises(LmmError, match="17 query rows"):
        ops.paged_attention(q, *in_pages(k, v, (40,), 16), backend=BACKEND)
    with pytest.raises(LmmError, match="float32.*float16|float16.*float32"):
        ops.paged_attention(q[:1].half(), *in_pages(k, v, (40,), 16), backend=BACKEND)


def test_registered_op_passes_opcheck(device, in_pages):
    q, k, v = _packed((40, 70), 1, 4, 2, 16, device)
    pages = in_pages(*(x.nan_to_num() for x in (k, v)), (40, 70), 16)
    pages = (pages[0].nan_to_num(), pages[1].nan_to_num(), *pages[2:])
    arguments = (q, *pages, 70, True, 0.25, 30, None, 32)
    torch.library.opcheck(torch.ops.lmmblocks.paged_attention_triton.default, arguments)
