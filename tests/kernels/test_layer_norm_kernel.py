"""Layer norm in Triton against the formula in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.ops.layer_norm import layer_norm_reference


def _run(backend, x, w, b, grad):
    inputs = [t.detach().requires_grad_() for t in (x, w, b)]
    y = ops.layer_norm(*inputs, 1e-5, backend=backend)
    return (y.detach(), *torch.autograd.grad(y, inputs, grad))


def _formula(x, w, b, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w + b


@pytest.mark.parametrize("shape", [(1, 8), (7, 24), (130, 64), (5, 1152), (2, 1408), (2, 3, 160)])
def test_kernel_is_as_exact_as_torch(shape, dtype, device, as_exact_as_torch):
    torch.manual_seed(0)
    x, w, b, grad = (torch.randn(size, device=device).to(dtype) for size in (shape, shape[-1:], shape[-1:], shape))
    x = x + 3  # far from centred, where a variance of squares would cancel
    inputs = [t.double().requires_grad_() for t in (x, w, b)]
    y = _formula(*inputs, 1e-5)
    exact = (y.detach(), *torch.autograd.grad(y, inputs, grad.double()))
    as_exact_as_torch(_run("triton", x, w, b, grad), _run("reference", x, w, b, grad), exact)


@settings(max_examples=20, deadline=None)
@given(
    images=st.integers(0, 4),
    tokens=st.integers(1, 9),
    width=st.integers(2, 70),
    prefix=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_images_without_their_prefix_need_no_copy(images, tokens, width, prefix, seed):
    torch.manual_seed(seed)
    whole = torch.full((images, prefix + tokens, width), float("nan"))
    whole[:, prefix:] = torch.randn(images, tokens, width)
    w, b, grad = torch.randn(width), torch.randn(width), torch.randn(images, tokens, width)
    found, expected = (_run(backend, whole[:, prefix:], w, b, grad) for backend in ("triton", "reference"))
    for a, e in zip(found, expected):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)


def test_a_constant_row_gives_the_bias_and_no_gradient(device):
    w, b, x = (
        torch.randn(48, device=device),
        torch.randn(48, device=device),
        torch.full((3, 48), 7.0, device=device),
    )
    y, dx, dw, _ = _run("triton", x, w, b, torch.ones_like(x))
    torch.testing.assert_close(y, b.expand(3, 48))
    assert not dw.any() and dx.isfinite().all()


def test_no_rows_give_zero_gradients(device):
    empty, w = torch.empty(0, 16, device=device), torch.ones(16, device=device)
    y, dx, dw, db = _run("triton", empty, w, w, empty)
    assert y.shape == dx.shape == (0, 16) and not dw.any() and not db.any() and dw.shape == db.shape == (16,)


@pytest.mark.parametrize("trained", [(True, False), (False, True), (False, False)])
def test_frozen_weights_get_no_gradient(trained, device):
    torch.manual_seed(0)
    x, w, b = (
        torch.randn(9, 16, device=device),
        torch.randn(16, device=device),
        torch.randn(16, device=device),
    )
    found = []
    for name in ("triton", "reference"):
        inputs = [
            x.clone().requires_grad_(),
            *(t.clone().requires_grad_(flag) for t, flag in zip((w, b), trained)),
        ]
        ops.layer_norm(*inputs, backend=name).square().sum().backward()
        found.append([t.grad for t in inputs])
    for a, e in zip(*found):
        assert (a is None) == (e is None)
        if a is not None:
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_gradients_are_the_same_on_every_run(device):
    torch.manual_seed(0)
    x, w, grad = (
        torch.randn(300, 64, device=device),
        torch.randn(64, device=device),
        torch.randn(300, 64, device=device),
    )
    first = _run("triton", x, w, w, grad)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, _run("triton", x, w, w, grad)))


def test_registered_ops_pass_opcheck(device):
    x, w = torch.randn(4, 16, device=device), torch.randn(16, device=device)
    y, mean, rstd = torch.ops.lmmblocks.layer_norm_fwd(x, w, w, 1e-5)
    torch.library.opcheck(torch.ops.lmmblocks.layer_norm_fwd.default, (x, w, w, 1e-5))
    for weight_grads in (True, False):
        torch.library.opcheck(torch.ops.lmmblocks.layer_norm_bwd.default, (x, w, mean, rstd, y, weight_grads))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_module_on_cpu_gives_the_bits_of_torch(kind):
    torch.manual_seed(0)
    own, twin = ops.LayerNorm(24, eps=1e-3).to(kind), torch.nn.LayerNorm(24, eps=1e-3).to(kind)
    for a, b in zip(own.parameters(), twin.parameters()):
        torch.nn.init.normal_(a)
        b.data.copy_(a.data)
    x, grads = torch.randn(2, 7, 24).to(kind).requires_grad_(), []
    for module in (own, twin):
        y = module(x)
        grads.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, *module.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    assert own.state_dict().keys() == twin.state_dict().keys()


def test_gradient_of_the_reference_is_that_of_the_formula():
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (5,), (5,))]
    assert torch.autograd.gradcheck(lambda *given: layer_norm_reference(*given, 1e-5), inputs)
    torch.testing.assert_close(layer_norm_reference(*inputs, 1e-5), _formula(*inputs, 1e-5))
