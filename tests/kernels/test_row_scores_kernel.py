"""Scores of a few rows over the keys of their segment, in Triton, against the formula in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.ops.last_row_scores import last_row_scores_reference
from lmmblocks.ops.row_scores import attention_of_cls_reference, row_scores_reference
from lmmblocks.spec import LmmError, Segments


def _tensors(lengths_q, lengths_k, heads, kv_heads, width, device="cpu", dtype=torch.float32):
    torch.manual_seed(0)
    q = torch.randn(sum(lengths_q), heads, width, device=device).to(dtype)
    k = torch.randn(sum(lengths_k), 2 * kv_heads, width, device=device).to(dtype)[:, :kv_heads]
    return q, k, Segments.of(lengths_q, lengths_k, device=device)


@pytest.mark.parametrize("heads, kv_heads, width", [(2, 2, 64), (6, 2, 72), (4, 1, 128)])
def test_kernel_is_as_exact_as_torch(heads, kv_heads, width, dtype, device, as_exact_as_torch):
    q, k, segments = _tensors((1, 2), (150, 40), heads, kv_heads, width, device, dtype)
    found = ops.row_scores(q, k, segments, backend="triton")
    own, exact = (row_scores_reference(q.to(t), k.to(t), segments, width**-0.5, None) for t in (dtype, torch.float64))
    as_exact_as_torch(found, own, exact, floor=1e-7)


LENGTHS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 140)), min_size=1, max_size=2)


@settings(max_examples=6, deadline=None)
@given(
    lengths=LENGTHS,
    group=st.sampled_from([1, 3]),
    softcap=st.none() | st.floats(1, 9),
    slack=st.integers(0, 3),
)
def test_rows_and_lengths_of_any_number(lengths, group, softcap, slack):
    lengths_q, lengths_k = zip(*lengths)
    q, k, segments = _tensors(lengths_q, lengths_k, 2 * group, 2, 16)
    expected = row_scores_reference(q, k, segments, 0.25, softcap)
    k = torch.cat([k, k.new_full((slack, 2, 16), float("nan"))])
    found = ops.row_scores(q, k, segments, softcap=softcap, backend="triton")
    torch.testing.assert_close(found, torch.cat([expected, torch.zeros(slack)]), atol=1e-6, rtol=1e-4)


@settings(max_examples=6, deadline=None)
@given(lengths=LENGTHS, window=st.none() | st.integers(1, 90), softcap=st.none() | st.floats(1, 9))
def test_the_last_row_of_each_segment_is_found_on_the_device(lengths, window, softcap):
    lengths_q, lengths_k = zip(*lengths)
    q, k, segments = _tensors(lengths_q, lengths_k, 4, 2, 16)
    expected = last_row_scores_reference(q, k, segments, 0.25, window, softcap)
    found = ops.last_row_scores(q, k, segments, window=window, softcap=softcap, backend="triton")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("prefix", [1, 5])
def test_attention_of_cls_is_rounded_to_the_dtype_of_the_tower(prefix, dtype, device, as_exact_as_torch):
    torch.manual_seed(0)
    query = torch.randn(3, 2, 16, device=device).to(dtype)
    keys = torch.randn(3, 70, 2, 16, device=device).to(dtype)
    own, exact = (attention_of_cls_reference(query.to(t), keys.to(t), prefix, 0.25) for t in (dtype, torch.float64))
    found = ops.attention_of_cls(query, keys, prefix, backend="triton")
    assert found.shape == (3 * (70 - prefix),)
    as_exact_as_torch(found, own, exact, floor=1e-7)


def test_reference_of_one_row_is_the_softmax_written_out():
    q, k, segments = _tensors((1, 0, 2), (5, 3, 4), 4, 2, 8, dtype=torch.float64)
    expected = []
    for rows, keys in ((q[:1], k[:5]), (q[1:1], k[5:8]), (q[1:], k[8:])):
        total = torch.zeros(len(keys), dtype=torch.float64)
        for row in rows:
            for n in range(4):
                weights = torch.stack([(row[n] @ key[n // 2] * 8**-0.5).exp() for key in keys])
                total += weights / weights.sum() / (4 * len(rows))
        expected.append(total)
    torch.testing.assert_close(ops.row_scores(q, k, segments), torch.cat(expected))
    assert torch.autograd.gradcheck(lambda q, k: row_scores_reference(q, k, segments, 0.3, 2.0), (q.requires_grad_(), k.requires_grad_()))


def test_every_run_gives_the_same_bits(device):
    q, k, segments = _tensors((1, 1), (200, 90), 4, 2, 32, device)
    first = ops.row_scores(q, k, segments, backend="triton")
    assert all(torch.equal(first, ops.row_scores(q, k, segments, backend="triton")) for _ in range(3))


def test_a_gradient_is_left_to_the_reference(device):
    q, k, segments = _tensors((1,), (9,), 2, 2, 16, device)
    with pytest.raises(LmmError, match="no backward"):
        ops.row_scores(q.requires_grad_(), k, segments, backend="triton")
    with pytest.raises(LmmError, match="3 rows and 9 keys, found"):
        ops.row_scores(q, k, Segments.of((3,), (9,)))
    ops.row_scores(q, k, segments).square().sum().backward()
    assert q.grad.abs().sum() > 0


def test_registered_op_passes_opcheck(device):
    q, k, segments = _tensors((1, 1), (40, 70), 4, 2, 16, device)
    arguments = (q, k, segments.cu_q, segments.cu_k, 1, 70, False, 0.25, 30, 2.0, True)
    torch.library.opcheck(torch.ops.lmmblocks.row_scores.default, arguments)
