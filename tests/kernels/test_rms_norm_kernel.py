"""RMS norm in Triton, alone and after a residual sum, against the formula in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels.row_tiles import WIDEST, backward_tile_of, tile_of
from lmmblocks.kernels.row_views import row_strides

from lmmblocks import ops
from lmmblocks.ops.add_rms_norm import add_rms_norm_reference
from lmmblocks.ops.dispatch import select
from lmmblocks.ops.rms_norm import rms_norm_reference
from lmmblocks.spec import LmmError


def _run(backend, x, w, grad, offset=0.0):
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = ops.rms_norm(x, w, 1e-5, offset=offset, backend=backend)
    return (y.detach(), *torch.autograd.grad(y, (x, w), grad))


def _run_add(backend, x, residual, w, grads, offset=0.0):
    inputs = [t.detach().requires_grad_() for t in (x, residual, w)]
    outs = ops.add_rms_norm(*inputs, 1e-5, offset=offset, backend=backend)
    return (*(y.detach() for y in outs), *torch.autograd.grad(outs, inputs, grads))


def _random(*shape, device="cpu", dtype=torch.float32):
    return torch.randn(shape, device=device).to(dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 8), (7, 24), (130, 64), (3, 1152), (2, 5120), (2, 3, 192)])
def test_kernel_is_as_exact_as_torch(shape, offset, dtype, device, as_exact_as_torch):
    torch.manual_seed(0)
    x, w, grad = (_random(*size, device=device, dtype=dtype) for size in (shape, shape[-1:], shape))
    exact = _run("reference", x.double(), w.double(), grad.double(), offset)
    as_exact_as_torch(_run("triton", x, w, grad, offset), _run("reference", x, w, grad, offset), exact)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 8), (33, 20), (3, 640)])
def test_sum_and_norm_are_as_exact_as_torch(shape, offset, dtype, device, as_exact_as_torch):
    torch.manual_seed(0)
    x, residual, w, *grads = (_random(*size, device=device, dtype=dtype) for size in (shape, shape, shape[-1:], shape, shape))
    wide = [t.double() for t in (x, residual, w)]
    exact = _run_add("reference", *wide, [grad.double() for grad in grads], offset)
    found, own = (_run_add(name, x, residual, w, grads, offset) for name in ("triton", "reference"))
    assert torch.equal(found[1], own[1])
    as_exact_as_torch(found, own, exact)


def _normed(rows, weight, *, twice=True):
    """The norm in fp64 of fp64 rows, in fp16: what is normed is rounded before it is multiplied, or not."""
    normed = rows * (rows.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return (weight.double() * (normed.half().double() if twice else normed)).half()


def _is(found, expected, other):
    """Where the two differ, which is often, it is the one and not the other; a last bit of fp32 may move a few roundings."""
    differs = expected != other
    assert differs.float().mean() > 0.05
    assert (found[differs] == expected[differs]).float().mean() > 0.98


def test_normed_rows_and_sums_are_rounded_to_the_dtype_on_the_way(device):
    torch.manual_seed(0)
    x, residual, w = (_random(*size, device=device, dtype=torch.float16) for size in ((130, 64), (130, 64), (64,)))
    found = ops.rms_norm(x, w, 1e-5, backend="triton")
    _is(found, _normed(x.double(), w), _normed(x.double(), w, twice=False))
    both = x.double() + residual.double()
    found, _ = ops.add_rms_norm(x, residual, w, 1e-5, backend="triton")
    _is(found, _normed(both.half().double(), w), _normed(both, w))


@pytest.mark.parametrize("used", [0, 1])
def test_only_one_result_of_sum_and_norm_may_be_used(used, device):
    torch.manual_seed(0)
    x, residual, w, weigh = (_random(*size, device=device) for size in ((5, 12), (5, 12), (12,), (5, 12)))
    found = []
    for name in ("triton", "reference"):
        inputs = [t.detach().requires_grad_() for t in (x, residual, w)]
        (ops.add_rms_norm(*inputs, backend=name)[used] * weigh).sum().backward()
        found.append([t.grad for t in inputs])
    for a, b in zip(*found):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(0, 5),
    heads=st.integers(1, 4),
    width=st.integers(1, 40),
    offset=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_heads_of_a_fused_projection_need_no_copy(tokens, heads, width, offset, seed):
    torch.manual_seed(seed)
    fused = torch.full((tokens, (heads + 3) * width), float("nan"))
    fused[:, offset * width : (offset + heads) * width] = torch.randn(tokens, heads * width)
    x, w = (
        fused[:, offset * width : (offset + heads) * width].unflatten(1, (heads, width)),
        torch.randn(width),
    )
    for grad in (torch.randn(tokens, heads, width), torch.randn(heads, tokens, width).transpose(0, 1)):
        found, expected = _run("triton", x, w, grad), _run("reference", x, w, grad)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_view_of_three_strides_is_refused_and_runs_elsewhere(device):
    x, w = torch.randn(2, 6, 4, 8, device=device)[:, :2, :3], torch.ones(8, device=device)
    with pytest.raises(LmmError, match="more than two strides"):
        ops.rms_norm(x, w, backend="triton")
    assert select("rms_norm", x, w, 1e-5).name == "torch"


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 3), min_size=1, max_size=4), data=st.data())
def test_row_strides_lead_to_every_row(lengths, data):
    sizes = [*(2 * n for n in lengths), 4]
    whole = torch.arange(torch.Size(sizes).numel()).view(sizes)
    order = data.draw(st.permutations(range(len(lengths))))
    steps = [data.draw(st.sampled_from([1, 2])) for _ in lengths]
    x = whole[tuple(slice(None, None, step) for step in steps)].permute(*order, len(lengths))
    found, rows = row_strides(x), x.reshape(-1, 4)
    if found is None:
        assert len(lengths) > 2
        return
    inner, [(outer_stride, inner_stride)] = found
    starts = [r // inner * outer_stride + r % inner * inner_stride for r in range(rows.shape[0])]
    assert starts == rows[:, 0].tolist()


@pytest.mark.parametrize("width", [1, 3, 24, 128, 1152, 3584, 4096, 5120, 6144, 11008, 12288, WIDEST])
def test_tiles_hold_the_width_and_waste_little(width):
    for tile in (tile_of(width), backward_tile_of(width)):
        assert width <= tile.head + tile.tail < 1.5 * max(width, 8)
        assert all(part & (part - 1) == 0 for part in (tile.rows, tile.head, tile.tail))
        assert tile.tail == 0 or tile.head < width


def test_no_rows_give_no_rows_and_a_zero_gradient(device):
    empty, w = torch.empty(0, 16, device=device), torch.ones(16, device=device)
    y, dx, dw = _run("triton", empty, w, empty)
    assert y.shape == dx.shape == (0, 16) and not dw.any()
    assert not _run_add("triton", empty, empty, w, (empty, empty))[-1].any()


def test_a_frozen_weight_gets_no_gradient(device):
    torch.manual_seed(0)
    x, w = _random(9, 16, device=device).requires_grad_(), _random(16, device=device)
    dx = {name: torch.autograd.grad(ops.rms_norm(x, w, backend=name).square().sum(), x)[0] for name in ("triton", "reference")}
    torch.testing.assert_close(dx["triton"], dx["reference"], rtol=1e-4, atol=1e-4)


def test_gradient_of_a_sum_is_not_read_beyond_its_one_value(device):
    x, w = torch.randn(3, 16, device=device, requires_grad=True), torch.ones(16, device=device)
    ops.rms_norm(x, w, backend="triton").sum().backward()
    kernel, x.grad = x.grad, None
    ops.rms_norm(x, w, backend="reference").sum().backward()
    torch.testing.assert_close(kernel, x.grad, rtol=1e-4, atol=1e-5)


def test_gradients_are_the_same_on_every_run(device):
    torch.manual_seed(0)
    x, w, grad = (
        torch.randn(300, 64, device=device),
        torch.randn(64, device=device),
        torch.randn(300, 64, device=device),
    )
    first = _run("triton", x, w, grad)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, _run("triton", x, w, grad)))


def test_registered_ops_pass_opcheck(device):
    x, w = torch.randn(4, 3, 16, device=device)[:, :2], torch.randn(16, device=device)
    registered = torch.ops.lmmblocks
    y, rstd = registered.rms_norm_fwd(x, w, 1e-5)
    torch.library.opcheck(registered.rms_norm_fwd.default, (x, w, 1e-5, 1.0))
    for weight_grad in (True, False):
        torch.library.opcheck(registered.rms_norm_bwd.default, (x, w, rstd, y, 0.0, weight_grad))
        torch.library.opcheck(registered.add_rms_norm_bwd.default, (y, w, rstd, y, y, 0.0, weight_grad))
    torch.library.opcheck(registered.add_rms_norm_fwd.default, (x, y, w, 1e-5))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_gradient_of_the_references_is_that_of_the_formula(offset):
    x, residual, w = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (3, 5), (5,)))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm_reference(x, w, 1e-5, offset), (x, w))
    assert torch.autograd.gradcheck(lambda *given: add_rms_norm_reference(*given, 1e-5, offset), (x, residual, w))
