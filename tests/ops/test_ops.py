"""The other references, each against an independent formula in fp64."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import experimental, ops
from lmmblocks.ops.linear_cross_entropy import CHUNK_ROWS
from lmmblocks.ops.rope import rope_table
from lmmblocks.plans.host import plan_splice
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
    inner = (2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)
    torch.testing.assert_close(ops.geglu(x, y), x / 2 * (1 + inner.tanh()) * y)
    torch.testing.assert_close(experimental.bias_gelu(x, y), (x + y) * (1 + torch.erf((x + y) / 2**0.5)) / 2)
    assert ops.softcapped(x, None) is x and (ops.softcapped(1e3 * x, 2.0).abs() <= 2).all()
    torch.testing.assert_close(ops.softcapped(x, 2.0), 2 * ((x / 2).exp() - (-x / 2).exp()) / ((x / 2).exp() + (-x / 2).exp()))


def test_a_narrow_table_turns_the_first_dimensions_only():
    positions = torch.tensor([0, 3, 1000])
    q, k = torch.randn(3, 2, 8), torch.randn(3, 1, 8)
    table = rope_table(positions, 4, 10000.0)
    narrow = ops.rope(q[..., :4], k[..., :4], *table)
    for out, x, turned in zip(ops.rope(q, k, *table), (q, k), narrow):
        assert torch.equal(out[..., :4], turned) and torch.equal(out[..., 4:], x[..., 4:])


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(0, 9),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    weighted=st.booleans(),
    softcap=st.none() | st.floats(0.5, 9),
)
def test_linear_cross_entropy_equals_the_formula(rows, reduction, weighted, softcap):
    hidden, head = torch.randn(rows, 6), torch.randn(11, 6)
    targets, weights = torch.randint(0, 11, (rows,)), torch.rand(rows) + 0.1
    logits = hidden.double() @ head.double().T
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    each = torch.logsumexp(logits, -1) - logits.gather(-1, targets[:, None])[:, 0]
    scaled = each * weights if weighted else each
    norm = weights.double().sum() if weighted else rows
    expected = {"none": scaled, "sum": scaled.sum(), "mean": scaled.sum() / (norm or 1)}[reduction]
    options = {"weights": weights if weighted else None, "reduction": reduction, "softcap": softcap}
    found = ops.linear_cross_entropy(hidden, head, targets, **options)
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


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_chunked_loss_passes_gradcheck_in_fp64(monkeypatch, softcap):
    monkeypatch.setattr(sys.modules["lmmblocks.ops.linear_cross_entropy"], "CHUNK_ROWS", 2)
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    head = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 1, 1, 2])
    options = {"reduction": "none", "softcap": softcap, "backend": "torch"}
    assert torch.autograd.gradcheck(lambda h, w: ops.linear_cross_entropy(h, w, targets, **options), (hidden, head))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_splice_scales_text_rows_and_leaves_image_rows(dtype):
    """The factor is rounded to the dtype of the table first: sqrt(3072) = 55.43 is 55.5 in bfloat16."""
    table, image = torch.randn(9, 4).to(dtype).requires_grad_(), torch.randn(2, 4).to(dtype).requires_grad_()
    plan = plan_splice([[3, -200, 3, 8]], [[2]])
    embeds, scale = ops.splice(table, image, plan, scale=3072**0.5), torch.tensor(3072**0.5, dtype=dtype)
    assert torch.equal(embeds, torch.cat([table[3:4] * scale, image, table[[3, 8]] * scale]))
    embeds.sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))
    assert torch.equal(table.grad[:, 0], torch.tensor([0, 0, 0, 2, 0, 0, 0, 0, 1]).to(dtype) * scale)
