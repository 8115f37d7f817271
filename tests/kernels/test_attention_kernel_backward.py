"""Packed attention in Triton, backward, against autograd of the formula in fp64. Tiles of 16 make many blocks of few rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels.attention_tiles import Tile, Tiles, tiles_are

from lmmblocks import ops
from lmmblocks.spec import Segments

SMALL = Tiles(*(Tile(16, 16, 4, 1),) * 3)


@pytest.fixture(autouse=True)
def small_tiles():
    with tiles_are(SMALL):
        yield


def _inputs(lengths_q, lengths_k, heads, kv_heads, width, *, slack=0, dtype=torch.float32, device="cpu", seed=0):
    """(q, k, v, gradient of out), segments; rows after the last segment are NaN."""
    torch.manual_seed(seed)
    shapes = [
        (sum(lengths_q), heads),
        (sum(lengths_k), kv_heads),
        (sum(lengths_k), kv_heads),
        (sum(lengths_q), heads),
    ]
    tensors = [torch.randn(rows + slack, n, width, device=device).to(dtype) for rows, n in shapes]
    for tensor, (rows, _) in zip(tensors, shapes):
        tensor[rows:] = float("nan")
    return tensors, Segments.of(lengths_q, lengths_k, device=device)


def _grads(backend, tensors, segments, **options):
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    out = ops.attention(q, k, v, segments, backend=backend, **options)
    return torch.autograd.grad(out, (q, k, v), tensors[3])


def _exact(tensors, segments, **options):
    """In fp64, on the rows that segments own; the rest is zero."""
    wide = [x.double().nan_to_num() for x in tensors]
    return _grads("reference", wide, segments, **options)


@pytest.mark.parametrize("width", [16, 72])
def test_gradients_are_as_exact_as_those_of_torch(width, dtype, device, as_exact_as_torch):
    """Torch's own is SDPA, which rounds weights to the dtype as the kernels do; the reference rounds its results only."""
    tensors, segments = _inputs([5, 33], [5, 33], 2, 1, width, dtype=dtype, device=device)
    found, own = (_grads(name, tensors, segments) for name in ("triton", "torch"))
    as_exact_as_torch(found, own, _exact(tensors, segments))


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 34), st.integers(0, 34)), min_size=1, max_size=2),
    mask=st.sampled_from(["causal", "full", "kv_end"]),
    window=st.none() | st.integers(1, 40),
    softcap=st.none() | st.floats(0.5, 5),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2)]),
    slack=st.sampled_from([0, 5]),
    seed=st.integers(0, 99),
)
def test_every_mask_has_the_gradients_of_the_formula(lengths, mask, window, softcap, heads, slack, seed):
    """Rows after the last segment hold NaN, in the gradient too, and get zeros."""
    lengths_q, lengths_k = zip(*lengths)
    tensors, segments = _inputs(lengths_q, lengths_k, *heads, 16, slack=slack, seed=seed)
    kv_end = torch.randint(0, sum(lengths_k) + 1, (tensors[0].shape[0],), dtype=torch.int32) if mask == "kv_end" else None
    options = {"causal": mask == "causal", "kv_end": kv_end, "window": window, "softcap": softcap}
    for a, b in zip(_grads("triton", tensors, segments, **options), _exact(tensors, segments, **options)):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("tile", [(16, 32), (32, 16)], ids=str)
def test_tiles_of_other_shapes_give_the_same_gradients(tile, device):
    tensors, segments = _inputs([50, 20], [60, 20], 2, 1, 24, device=device)
    kv_end = (torch.arange(70, device=device) // 9 * 9 + 9).clamp(max=80).to(torch.int32)
    for options in ({}, {"causal": False}, {"window": 21}, {"kv_end": kv_end}):
        with tiles_are(Tiles(*(Tile(*tile, 4, 1),) * 3)):
            found = _grads("triton", tensors, segments, **options)
        for a, b in zip(found, _exact(tensors, segments, **options)):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_a_gradient_of_the_logarithm_of_sums_reaches_queries_and_keys(device):
    tensors, segments = _inputs([7, 20], [9, 20], 2, 1, 16, device=device)
    slope = torch.randn(27, 2, device=device)
    results = []
    for name in ("triton", "reference"):
        q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
        out, lse = ops.attention(q, k, v, segments, return_lse=True, backend=name)
        results.append(torch.autograd.grad((out, lse), (q, k), (tensors[3], slope), retain_graph=True))
        results.append(torch.autograd.grad(lse, (q, k), slope))
    for a, b in zip(results[0] + results[1], results[2] + results[3]):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_segment_alone_has_the_gradients_it_has_in_a_pack_bit_by_bit(dtype, device):
    lengths = [18, 0, 33]
    tensors, segments = _inputs(lengths, lengths, 2, 1, 16, slack=5, dtype=dtype, device=device)
    packed, start = _grads("triton", tensors, segments), 0
    for length in lengths:
        own = slice(start, start + length)
        alone = _grads("triton", [x[own] for x in tensors], Segments.of([length], device=device))
        assert all(torch.equal(a, b[own]) for a, b in zip(alone, packed)), length
        start += length


def test_kv_end_has_the_gradients_of_causal_bit_by_bit(device):
    tensors, segments = _inputs([20, 17], [20, 17], 2, 1, 16, device=device)
    kv_end = torch.arange(1, 38, dtype=torch.int32, device=device)
    pairs = zip(_grads("triton", tensors, segments), _grads("triton", tensors, segments, kv_end=kv_end))
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (6, 3), (3, 3)])
def test_each_group_of_heads_has_the_gradients_of_its_own_keys(heads, kv_heads, device):
    tensors, segments = _inputs([9, 20], [12, 20], heads, kv_heads, 16, device=device)
    for a, b in zip(_grads("triton", tensors, segments), _exact(tensors, segments)):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5)


def test_gradients_of_a_group_are_summed_in_fp32(device):
    tensors, segments = _inputs([33], [33], 4, 1, 16, dtype=torch.float16, device=device)
    grouped = _grads("triton", tensors, segments)
    repeated = [tensors[0], *(x.repeat_interleave(4, 1) for x in tensors[1:3]), tensors[3]]
    each = _grads("triton", repeated, segments)
    exact = _exact(tensors, segments)
    assert torch.equal(grouped[0], each[0])
    for i in (1, 2):
        rounded = each[i].sum(1, keepdim=True)
        assert (grouped[i].double() - exact[i]).square().mean() <= (rounded.double() - exact[i]).square().mean()


def test_gradients_are_the_same_on_every_run(dtype, device):
    tensors, segments = _inputs([33, 9], [33, 9], 2, 1, 16, dtype=dtype, device=device)
    first = _grads("triton", tensors, segments)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, _grads("triton", tensors, segments)))


def test_gradient_of_a_sum_and_of_a_fused_projection(device):
    """A broadcast gradient has strides of 0; views of one projection have those of their base."""
    results = []
    for name in ("triton", "reference"):
        torch.manual_seed(0)
        fused = torch.randn(20, 6, 16, device=device, requires_grad=True)
        q, k, v = fused.split([4, 1, 1], 1)
        ops.attention(q, k, v, Segments.of([9, 11], device=device), backend=name).sum().backward()
        results.append(fused.grad)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [([], []), ([0], [5]), ([5], [0])], ids=str)
def test_segments_without_queries_or_keys_have_gradients_of_zero(lengths, device):
    tensors, segments = _inputs(*lengths, 2, 1, 16, device=device)
    for grad, tensor in zip(_grads("triton", tensors, segments), tensors):
        assert grad.shape == tensor.shape and not grad.any()


def test_one_graph_holds_forward_and_backward(device):
    tensors, segments = _inputs([5, 7], [5, 7], 2, 1, 16, device=device)

    def loss(q, k, v):
        return (ops.attention(q, k, v, segments, backend="triton") * tensors[3]).sum()

    leaves = [[x.detach().requires_grad_() for x in tensors[:3]] for _ in range(2)]
    loss(*leaves[0]).backward()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(*leaves[1]).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(*leaves))


def test_registered_op_passes_opcheck(device):
    (q, k, v, grad), segments = _inputs([5, 3], [5, 3], 2, 1, 16, device=device)
    mask = (True, 0.25, None, None)
    out, lse = torch.ops.lmmblocks.attention_fwd(q, k, v, segments.cu_q, segments.cu_k, None, 5, False, *mask)
    call = (grad, None, q, k, v, out, lse, segments.cu_q, segments.cu_k, None, 5, 5, False, *mask)
    torch.library.opcheck(torch.ops.lmmblocks.attention_bwd.default, call)
