"""Attention over a paged cache is attention over the packed one, wherever the pages lie and whatever lies beside them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.ops.attention.paged import PagedCall
from lmmblocks.ops.dispatch import ladders, verdicts
from lmmblocks.spec import LmmError, Segments


def _packed(lengths, rows, heads=4, kv_heads=2, width=8, dtype=torch.float64):
    torch.manual_seed(sum(lengths) + rows)
    q = torch.randn(len(lengths) * rows, heads, width, dtype=dtype)
    k, v = (torch.randn(sum(lengths), kv_heads, width, dtype=dtype) for _ in range(2))
    return q, k, v, Segments.of((rows,) * len(lengths), lengths)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    rows=st.integers(1, 4),
    page_rows=st.sampled_from([1, 5, 16]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 30),
    softcap=st.none() | st.floats(1, 9),
    spare=st.integers(0, 40),
)
def test_it_equals_packed_attention_for_pages_in_any_order(in_pages, lengths, rows, page_rows, causal, window, softcap, spare):
    q, k, v, segments = _packed(lengths, rows)
    options = {"causal": causal, "window": window, "softcap": softcap, "return_lse": True}
    expected = ops.attention(q, k, v, segments, backend="reference", **options)
    pages = in_pages(k, v, lengths, page_rows)
    bound = max(lengths) + spare
    found = ops.paged_attention(q, *pages, max_length=bound or None, backend="reference", **options)
    for ours, packed in zip(found, expected):
        torch.testing.assert_close(ours, packed, atol=1e-12, rtol=1e-12)


def test_pages_behind_a_window_may_have_been_given_away(in_pages):
    q, k, v, segments = _packed((37,), 2)
    expected = ops.attention(q, k, v, segments, window=6, backend="reference")
    k_pages, v_pages, table, lengths = in_pages(k, v, (37,), 4)
    given_away = (37 - 2 - 6 + 1) // 4  # whole pages before the first key that a row sees
    k_pages[table[0, :given_away].long()] = float("inf")
    table[0, :given_away] = -1
    found = ops.paged_attention(q, k_pages, v_pages, table, lengths, window=6, backend="reference")
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_sequences_may_share_pages():
    """Two answers to one prompt: the second sequence continues after the first's first page."""
    pages = torch.randn(3, 4, 1, 8, dtype=torch.float64)
    table = torch.tensor([[2, 0], [2, 1]], dtype=torch.int32)
    q, lengths = torch.randn(2, 2, 8, dtype=torch.float64), torch.tensor([6, 7], dtype=torch.int32)
    found = ops.paged_attention(q, pages, -pages, table, lengths)
    rows = [torch.cat([pages[2], pages[0, :2]]), torch.cat([pages[2], pages[1, :3]])]
    for sequence, keys in enumerate(rows):
        alone = ops.attention(q[sequence : sequence + 1], keys, -keys, Segments.of((1,), (len(keys),)))
        torch.testing.assert_close(found[sequence : sequence + 1], alone, atol=1e-12, rtol=1e-12)


def test_head_major_pages_are_a_view(in_pages):
    q, k, v, _ = _packed((9, 4), 1)
    k_pages, v_pages, table, lengths = in_pages(k, v, (9, 4), 4)
    by_head = [pages.transpose(1, 2).contiguous().transpose(1, 2) for pages in (k_pages, v_pages)]
    assert by_head[0].stride() != k_pages.stride()
    expected = ops.paged_attention(q, k_pages, v_pages, table, lengths)
    assert torch.equal(ops.paged_attention(q, *by_head, table, lengths), expected)


def test_half_precision_is_computed_in_single(in_pages):
    q, k, v, _ = _packed((30, 3), 2, dtype=torch.float16)
    pages = in_pages(k, v, (30, 3), 16)
    out, lse = ops.paged_attention(q, *pages, return_lse=True)
    wide, _ = ops.paged_attention(q.double(), *(x.double() for x in pages[:2]), *pages[2:], return_lse=True)
    assert (out.dtype, lse.dtype) == (torch.float16, torch.float32)
    assert torch.equal(out, wide.half())


def test_no_sequence_at_all_gives_no_row():
    nothing = torch.empty(0, 3, dtype=torch.int32)
    pages = torch.randn(1, 16, 2, 8)
    assert ops.paged_attention(torch.randn(0, 4, 8), pages, pages, nothing, nothing[:, 0]).shape == (0, 4, 8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": torch.randn(3, 4, 8)}, "found 3 rows"),
        ({"q": torch.randn(2, 3, 8)}, "multiple of the 2 kv heads: found 3"),
        ({"q": torch.randn(2, 4, 16)}, r"\(2, 4, 16\)"),
        ({"table": torch.zeros(2, 3)}, "torch.float32 and torch.int32"),
        ({"table": torch.zeros(3, 3, dtype=torch.int32)}, r"\(3, 3\) and \(2,\)"),
        ({"lengths": torch.tensor([3, 4])}, "torch.int64"),
        ({"window": 0}, "window"),
        ({"part_keys": 24}, "multiple of 16"),
        ({"max_length": -1}, "max_length"),
    ],
)
def test_what_does_not_fit_is_told(change, message):
    pages = torch.randn(4, 16, 2, 8)
    call = {"q": torch.randn(2, 4, 8), "table": torch.zeros(2, 3, dtype=torch.int32)}
    call |= {"lengths": torch.tensor([3, 4], dtype=torch.int32)} | change
    options = {name: value for name, value in call.items() if name not in ("q", "table", "lengths")}
    with pytest.raises(LmmError, match=message):
        ops.paged_attention(call["q"], pages, pages, call["table"], call["lengths"], **options)


def test_all_that_does_not_fit_is_told_at_once():
    pages, lengths = torch.randn(4, 16, 2, 8), torch.tensor([3, 4])
    with pytest.raises(LmmError, match="kv heads.*int64"):
        ops.paged_attention(torch.randn(2, 3, 8), pages, pages, torch.zeros(2, 3, dtype=torch.int32), lengths)


def test_the_ladder_ends_in_the_reference_and_says_why(in_pages):
    q, k, v, _ = _packed((20,), 1)
    call = PagedCall(q, *in_pages(k, v, (20,), 16), True, 0.3, 20)
    assert ladders()["paged_attention"] == ("cuda", "triton", "reference")
    found = dict(verdicts("paged_attention", call))
    assert found["reference"] is True and all(isinstance(found[name], str) for name in ("cuda", "triton"))


def test_asking_a_kernel_for_a_gradient_is_refused(in_pages):
    q, k, v, _ = _packed((20,), 1, width=64, dtype=torch.float16)
    pages = in_pages(k, v, (20,), 16)
    for backend in ("cuda", "triton"):
        with pytest.raises(LmmError, match="no backward"):
            ops.paged_attention(q.requires_grad_(), *pages, backend=backend)
