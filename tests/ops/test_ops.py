"""The other references, each against an independent formula in fp64."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.ops.linear_cross_entropy import CHUNK_ROWS
from lmmblocks.ops.rope import rope_table
from lmmblocks.spec import LmmError


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_rms_norm_equals_the_formula(name):
    x, weight = torch.randn(5, 16), torch.randn(16)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5, backend=name).double(), expected, atol=1e-6, rtol=1e-6)


def test_rope_turns_each_pair_by_its_angle():
    positions = torch.tensor([0, 3, 1000])
    q, k = torch.randn(3, 2, 8), torch.randn(3, 1, 8)
    q_out, k_out = ops.rope(q, k, *rope_table(positions, 8, 10000.0))
    for x, out in ((q, q_out), (k, k_out)):
        for t, position in enumerate(positions.tolist()):
            for i in range(4):
                angle = position * 10000.0 ** (-2 * i / 8)
                a, b = x[t, 0, i].item(), x[t, 0, i + 4].item()
                assert math.isclose(out[t, 0, i].item(), a * math.cos(angle) - b * math.sin(angle), abs_tol=1e-4)
                assert math.isclose(out[t, 0, i + 4].item(), b * math.cos(angle) + a * math.sin(angle), abs_tol=1e-4)


def test_activations_equal_their_formulas():
    x, y = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(ops.swiglu(x, y), x / (1 + (-x).exp()) * y)
    torch.testing.assert_close(ops.quick_gelu(x), x / (1 + (-1.702 * x).exp()))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 9), reduction=st.sampled_from(["mean", "sum", "none"]), weighted=st.booleans())
def test_linear_cross_entropy_equals_the_formula(rows, reduction, weighted):
    hidden, head = torch.randn(rows, 6), torch.randn(11, 6)
    targets, weights = torch.randint(0, 11, (rows,)), torch.rand(rows) + 0.1
    logits = hidden.double() @ head.double().T
    each = torch.logsumexp(logits, -1) - logits.gather(-1, targets[:, None])[:, 0]
    scaled = each * weights if weighted else each
    norm = weights.double().sum() if weighted else rows
    expected = {"none": scaled, "sum": scaled.sum(), "mean": scaled.sum() / (norm or 1)}[reduction]
    found = ops.linear_cross_entropy(hidden, head, targets, weights=weights if weighted else None, reduction=reduction)
    torch.testing.assert_close(found.double(), torch.as_tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_chunked_loss_and_gradients_equal_the_plain_ones():
    rows = 2 * CHUNK_ROWS + 17
    hidden, head, targets = torch.randn(rows, 8), torch.randn(13, 8), torch.randint(0, 13, (rows,))
    results = {}
    for name in ("torch", "reference"):
        leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        loss = ops.linear_cross_entropy(*leaves, targets, backend=name)
        loss.backward()
        results[name] = [loss.detach(), *(leaf.grad for leaf in leaves)]
    for ours, theirs in zip(*results.values()):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_chunked_loss_passes_gradcheck_in_fp64(monkeypatch):
    monkeypatch.setattr(sys.modules["lmmblocks.ops.linear_cross_entropy"], "CHUNK_ROWS", 2)
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    head = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 1, 1, 2])
    assert torch.autograd.gradcheck(
        lambda h, w: ops.linear_cross_entropy(h, w, targets, reduction="none", backend="torch"), (hidden, head)
    )


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_chunked_loss_under_autocast_equals_the_plain_one(hidden_dtype):
    rows = CHUNK_ROWS + 5
    hidden, head, targets = torch.randn(rows, 8, dtype=hidden_dtype), torch.randn(13, 8), torch.randint(0, 13, (rows,))
    results = {}
    for name in ("torch", "reference"):
        leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = ops.linear_cross_entropy(*leaves, targets, backend=name)
        loss.backward()
        results[name] = [loss.detach(), *(leaf.grad for leaf in leaves)]
    for ours, theirs in zip(*results.values()):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.float(), theirs.float(), atol=2e-3, rtol=2e-2)


def test_wrong_reductions_and_shapes_are_refused():
    hidden, head = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(LmmError, match="reduction 'avg'"):
        ops.linear_cross_entropy(hidden, head, torch.zeros(2, dtype=torch.long), reduction="avg")
    with pytest.raises(LmmError, match="2 targets"):
        ops.linear_cross_entropy(hidden, head, torch.zeros(3, dtype=torch.long))
