"""Rotary embedding in Triton, alone and after the norm of each head, against the formula in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.ops.backend import backend as chosen
from lmmblocks.ops.dispatch import select
from lmmblocks.ops.qk_norm_rope import qk_norm_rope_reference
from lmmblocks.ops.rope import rope_reference
from lmmblocks.spec import LmmError


def _heads(tokens, heads, kv_heads, width, dtype, device="cpu"):
    """Queries and keys as views of a fused projection whose other columns are NaN."""
    fused = torch.full((tokens, heads + 2 * kv_heads + 1, width), float("nan"), device=device, dtype=dtype)
    fused[:, 1 : 1 + heads + kv_heads] = torch.randn(tokens, heads + kv_heads, width, device=device).to(dtype)
    return fused[:, 1 : 1 + heads], fused[:, 1 + heads : 1 + heads + kv_heads]


def _table(tokens, width, device="cpu"):
    return ops.rope_table(torch.arange(tokens, device=device) % 7 * 5, width, 100.0)


def _run(op, name, tensors, table, grads, **options):
    inputs = [t.detach().requires_grad_() for t in tensors]
    outs = op(*inputs, *table, backend=name, **options)
    return (*(y.detach() for y in outs), *torch.autograd.grad(outs, inputs, grads))


def _norm_and_rope(q, k, q_weight, k_weight, cos, sin, **options):
    return ops.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, 1e-6, **options)


def _compare(op, tensors, table, check, **options):
    """Check an op whose first two tensors are queries and keys; fp64 sees the table as the reference rounds it."""
    grads = [torch.randn(t.shape, device=t.device).to(t.dtype) for t in tensors[:2]]
    found, own = (_run(op, name, tensors, table, grads, **options) for name in ("triton", "reference"))
    rounded = [part.to(tensors[0].dtype).double() for part in table]
    exact = _run(op, "reference", [t.double() for t in tensors], rounded, [g.double() for g in grads], **options)
    check(found, own, exact)


CASES = [
    (1, 1, 1, 8, 8),
    (9, 4, 2, 16, 16),
    (5, 3, 1, 24, 16),
    (33, 6, 6, 10, 10),
    (3, 14, 2, 64, 64),
    (4, 8, 8, 80, 32),
]


@pytest.mark.parametrize("tokens, heads, kv_heads, width, turned", CASES)
def test_rope_is_as_exact_as_torch(tokens, heads, kv_heads, width, turned, dtype, device, as_exact_as_torch):
    torch.manual_seed(0)
    _compare(
        ops.rope,
        _heads(tokens, heads, kv_heads, width, dtype, device),
        _table(tokens, turned, device),
        as_exact_as_torch,
    )


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("tokens, heads, kv_heads, width", [(1, 1, 1, 8), (9, 4, 2, 16), (33, 6, 6, 10), (3, 14, 2, 64)])
def test_norm_and_rope_are_as_exact_as_torch(tokens, heads, kv_heads, width, offset, dtype, device, as_exact_as_torch):
    torch.manual_seed(0)
    weights = [torch.randn(width, device=device).to(dtype) for _ in range(2)]
    tensors = (*_heads(tokens, heads, kv_heads, width, dtype, device), *weights)
    _compare(_norm_and_rope, tensors, _table(tokens, width, device), as_exact_as_torch, offset=offset)


def test_norm_and_rope_give_the_bits_of_the_two_kernels(dtype, device):
    torch.manual_seed(0)
    heads, weights = (
        _heads(9, 4, 2, 16, dtype, device),
        [torch.randn(16, device=device).to(dtype) for _ in range(2)],
    )
    table = _table(9, 16, device)
    fused = ops.qk_norm_rope(*heads, *weights, *table, backend="triton")
    normed = [ops.rms_norm(x, w, 1e-6, backend="triton") for x, w in zip(heads, weights)]
    apart = ops.rope(*normed, *table, backend="triton")
    for a, b in zip(fused, apart):  # the mean of squares is summed in another order: rarely, a last bit differs
        assert (a == b).float().mean() > 0.9
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["triton", "reference"])
@pytest.mark.parametrize("turned", [16, 6])
def test_in_place_writes_the_same_and_touches_nothing_else(name, turned, device):
    torch.manual_seed(0)
    q, k = _heads(9, 4, 2, 16, torch.float32, device)
    table, around = _table(9, turned, device), q._base
    expected = ops.rope(q, k, *table, backend=name)
    out = ops.rope(q, k, *table, inplace=True, backend=name)
    assert out[0] is q and out[1] is k
    assert torch.equal(q, expected[0]) and torch.equal(k, expected[1])
    assert around[:, :1].isnan().all() and around[:, 7:].isnan().all()


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_in_place_gradients_pass_through_a_projection(name, device):
    torch.manual_seed(0)
    x, weights, table = (
        torch.randn(5, 8, device=device),
        torch.randn(2, 12, 8, device=device),
        _table(5, 6, device),
    )
    found = []
    for inplace in (True, False):
        given = weights.clone().requires_grad_()
        q, k = ((x @ weight.T).unflatten(1, (2, 6)) for weight in given)
        q, k = ops.rope(q, k, *table, inplace=inplace, backend=name)
        found.append(torch.autograd.grad((q.square() * 2 + k.sin()).sum(), given)[0])
    torch.testing.assert_close(*found)


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(0, 6), heads=st.integers(1, 3), group=st.integers(1, 3), pairs=st.integers(1, 9), kept=st.integers(0, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_adjoint_undoes_the_rotation(tokens, heads, group, pairs, kept, seed):
    torch.manual_seed(seed)
    q, k = _heads(tokens, heads * group, heads, 2 * pairs + kept, torch.float32)
    table, registered = _table(tokens, 2 * pairs), torch.ops.lmmblocks
    turned = registered.rope_apart(q, k, *table)
    for a, b in zip(turned, rope_reference(q, k, *table)):
        torch.testing.assert_close(a, b)
    for back, x in zip(registered.rope_apart(*turned, *table, True), (q, k)):
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)


def test_halves_of_a_table_may_differ(device, as_exact_as_torch):
    torch.manual_seed(0)
    table = [torch.randn(9, 16, device=device) for _ in range(2)]
    _compare(ops.rope, _heads(9, 4, 2, 16, torch.float32, device), table, as_exact_as_torch)


def test_what_a_kernel_cannot_do_is_refused_with_the_reason(device):
    q, k = _heads(5, 2, 1, 16, torch.float32, device)
    weight, half = torch.ones(16, device=device), _table(5, 8, device)
    with pytest.raises(LmmError, match="turns a part of 16"):
        ops.qk_norm_rope(q, k, weight, weight, *half, backend="triton")
    assert select("qk_norm_rope", q, k, weight, weight, *half, 1e-6).name == "composed"
    with pytest.raises(LmmError, match="keys are torch.float64"):
        ops.rope(q, k.double(), *half, backend="triton")
    with pytest.raises(LmmError, match=r"tables cos, sin \(T,W\) .*cos \(4, 8\)"):
        ops.rope(q, k, half[0][:4], half[1][:4], backend="triton")


def test_composed_asks_the_ladders_of_its_parts(device):
    torch.manual_seed(0)
    heads, weight, table = (
        _heads(5, 2, 1, 16, torch.float32, device),
        torch.randn(16, device=device),
        _table(5, 16, device),
    )
    with chosen(rms_norm="reference", rope="reference"):
        composed = ops.qk_norm_rope(*heads, weight, weight, *table, backend="composed")
    assert all(torch.equal(a, b) for a, b in zip(composed, qk_norm_rope_reference(*heads, weight, weight, *table, 1e-6)))


def test_gradients_are_the_same_on_every_run(device):
    torch.manual_seed(0)
    heads, weights = (
        _heads(90, 4, 2, 16, torch.float32, device),
        [torch.randn(16, device=device) for _ in range(2)],
    )
    grads, table = [torch.randn_like(t) for t in heads], _table(90, 16, device)
    first, again = (_run(_norm_and_rope, "triton", (*heads, *weights), table, grads) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_registered_ops_pass_opcheck(device):
    torch.manual_seed(0)
    q, k = (t.contiguous() for t in _heads(4, 2, 1, 8, torch.float32, device))
    w, table, registered = torch.randn(8, device=device), _table(4, 8, device), torch.ops.lmmblocks
    torch.library.opcheck(registered.rope_apart.default, (q, k, *table, True))
    torch.library.opcheck(registered.rope_in_place.default, (q, k, *table))
    torch.library.opcheck(registered.rope_in_place.default, (q, None, *table, True))
    torch.library.opcheck(registered.qk_norm_rope_fwd.default, (q, k, w, w, *table, 1e-6))
    for weight_grads in (True, False):
        torch.library.opcheck(registered.qk_norm_rope_bwd.default, (q, k, w, w, *table, q, k, 1e-6, 0.0, weight_grads))


def test_gradient_of_the_references_is_that_of_the_formula():
    q, k, q_weight, k_weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2, 4), (3, 1, 4), (4,), (4,)))
    table = [part.double() for part in _table(3, 4)]
    assert torch.autograd.gradcheck(lambda q, k: rope_reference(q, k, *table), (q, k))
    assert torch.autograd.gradcheck(lambda *given: qk_norm_rope_reference(*given, *table, 1e-6), (q, k, q_weight, k_weight))
