"""Activations in Triton against their formulas in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import experimental, ops
from lmmblocks.experimental.bias_gelu import bias_gelu_reference
from lmmblocks.ops.activations import SIGMOID_ARGUMENTS

OPS = {name: getattr(ops, name) for name in ("swiglu", "geglu", "quick_gelu")} | {"bias_gelu": experimental.bias_gelu}
GATED = ["swiglu", "geglu"]
NAN = float("nan")


def _run(op, backend, inputs, grad):
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = OPS[op](*leaves, backend=backend)
    return (y.detach(), *torch.autograd.grad(y, leaves, grad))


def _inputs(op, shape, dtype=torch.float32, device="cpu", seed=0):
    """Values up to 12 in size, where sigmoids have long been flat, and the gradient."""
    torch.manual_seed(seed)
    x, up, grad = (torch.randn(shape, device=device).mul(3).to(dtype) for _ in range(3))
    if op == "bias_gelu":
        up = up.flatten(0, -2)[0].clone()
    return ([x] if op == "quick_gelu" else [x, up]), grad


@pytest.mark.parametrize("op", [*GATED, "quick_gelu", "bias_gelu"])
@pytest.mark.parametrize("shape", [(7, 24), (130, 72), (2, 3, 2500)])
def test_kernel_is_as_exact_as_torch(op, shape, dtype, device, as_exact_as_torch):
    inputs, grad = _inputs(op, shape, dtype, device)
    exact = _run(op, "reference", [x.double() for x in inputs], grad.double())
    as_exact_as_torch(_run(op, "triton", inputs, grad), _run(op, "reference", inputs, grad), exact)


@settings(max_examples=20, deadline=None)
@given(
    op=st.sampled_from([*GATED, "quick_gelu"]), images=st.integers(1, 3), rows=st.integers(1, 9), width=st.integers(1, 40),
    skipped=st.integers(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_halves_of_a_fused_projection_are_read_where_they_lie(op, images, rows, width, skipped, seed):
    """Images without their CLS row: two row strides, and the other half between the rows."""
    torch.manual_seed(seed)
    fused = torch.randn(images, rows + skipped, 2 * width)
    if skipped:
        fused[:, 0] = NAN
    inputs = list(fused[:, skipped:].chunk(2, -1))[: 1 if op == "quick_gelu" else 2]
    grad = torch.randn(images, rows, width)
    for a, b in zip(_run(op, "triton", inputs, grad), _run(op, "reference", [x.clone() for x in inputs], grad)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_fused_halves_are_not_copied(monkeypatch, device):
    from lmmblocks.kernels import activations

    seen, plain = [], activations.row_strides
    monkeypatch.setattr(
        activations,
        "row_strides",
        lambda *tensors: (seen.extend(x.data_ptr() for x in tensors), plain(*tensors))[1],
    )
    gate, up = torch.randn(4, 32, device=device).chunk(2, -1)
    ops.swiglu(gate, up, backend="triton")
    assert seen == [gate.data_ptr(), up.data_ptr()]


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(0, 40), width=st.integers(1, 70), stride=st.integers(0, 5), seed=st.integers(0, 99))
def test_rows_of_a_biased_gelu_may_lie_apart(rows, width, stride, seed):
    torch.manual_seed(seed)
    inputs, grad = (
        [torch.randn(rows, width + stride)[:, :width], torch.randn(width)],
        torch.randn(rows, width),
    )
    for a, b in zip(_run("bias_gelu", "triton", inputs, grad), _run("bias_gelu", "reference", inputs, grad)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", [*GATED, "quick_gelu", "bias_gelu"])
def test_no_rows_give_no_rows(op, device):
    inputs, _ = _inputs(op, (2, 16), device=device)
    inputs[0] = inputs[0][:0]
    if op in GATED:
        inputs[1] = inputs[1][:0]
    y, *grads = _run(op, "triton", inputs, torch.empty(0, 16, device=device))
    assert y.shape == (0, 16) and [g.shape for g in grads] == [x.shape for x in inputs] and not any(g.any() for g in grads)


@pytest.mark.parametrize("op", [*GATED, "quick_gelu", "bias_gelu"])
def test_gradient_of_a_sum_is_not_read_beyond_its_one_value(op, device):
    inputs, _ = _inputs(op, (3, 16), device=device)
    leaves = [x.requires_grad_() for x in inputs]
    found, expected = (torch.autograd.grad(OPS[op](*leaves, backend=backend).sum(), leaves) for backend in ("triton", "reference"))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bias_gradient_is_the_same_on_every_run(device):
    inputs, grad = _inputs("bias_gelu", (300, 64), device=device)
    first = _run("bias_gelu", "triton", inputs, grad)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, _run("bias_gelu", "triton", inputs, grad)))


def test_only_the_product_is_kept_for_the_backward(device):
    kept = []
    x, bias = (
        torch.randn(5, 16, device=device, requires_grad=True),
        torch.randn(16, device=device, requires_grad=True),
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.data_ptr()) or saved, lambda saved: saved):
        experimental.bias_gelu(x, bias, backend="triton")
    assert sorted(kept) == sorted([x.data_ptr(), bias.data_ptr()])


@pytest.mark.parametrize("dtype_of_x", [torch.float16, torch.float32])
def test_a_bias_of_another_dtype_keeps_its_own_gradient_dtype(dtype_of_x, device):
    x, bias = torch.randn(5, 16, device=device).to(dtype_of_x), torch.randn(16, device=device)
    y, dx, db = _run("bias_gelu", "triton", [x, bias], torch.ones(5, 16, device=device).to(dtype_of_x))
    assert y.dtype == dx.dtype == dtype_of_x and db.dtype == torch.float32


@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        ("swiglu", (torch.ones(2, 4), torch.ones(2, 1)), "one shape: found gate .2, 4., up .2, 1."),
        ("swiglu", (torch.ones(2, 4), torch.ones(2, 4).half()), "up is torch.float16"),
        ("quick_gelu", (torch.ones(4, 2).t(),), "last dimension"),
        ("quick_gelu", (torch.ones(2, 3, 4, 5).permute(1, 0, 2, 3)[:, :, :2],), "more than two strides"),
        ("bias_gelu", (torch.ones(2, 4), torch.ones(3)), "a bias .D,.: found x .2, 4., bias .3,."),
        ("bias_gelu", (torch.ones(2, 3, 4)[:, 1:], torch.ones(4)), "more than one stride"),
    ],
)
def test_what_the_kernels_cannot_read_is_refused_with_the_reason(op, inputs, reason):
    with pytest.raises(ValueError, match=reason):
        OPS[op](*inputs, backend="triton")


def test_registered_ops_pass_opcheck(device):
    gate, up = torch.randn(4, 16, device=device).chunk(2, -1)
    grad, library = torch.randn(4, 8, device=device), torch.ops.lmmblocks
    torch.library.opcheck(library.activation_fwd.default, (gate, up, *SIGMOID_ARGUMENTS["geglu"]))
    torch.library.opcheck(library.activation_bwd.default, (gate, up, grad, *SIGMOID_ARGUMENTS["geglu"]))
    torch.library.opcheck(library.activation_bwd.default, (gate, None, grad, *SIGMOID_ARGUMENTS["quick_gelu"]))
    torch.library.opcheck(library.bias_gelu_fwd.default, (gate, grad[0]))
    torch.library.opcheck(library.bias_gelu_bwd.default, (gate, grad[0], grad))


def test_reference_gradient_is_that_of_the_formula():
    x, bias = (
        torch.randn(3, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(5, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(bias_gelu_reference, (x, bias))
    expected = (x + bias) * (1 + torch.erf((x + bias) / 2**0.5)) / 2
    torch.testing.assert_close(bias_gelu_reference(x, bias), expected)
