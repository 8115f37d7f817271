"""Ignored rows and normalizers of the linear cross-entropy, in the implementations that need no kernel."""

import sys

import pytest
import torch
import torch.nn.functional as F

from lmmblocks import ops
from lmmblocks.spec import LmmError


@pytest.fixture(params=["torch", "reference"])
def backend(request, monkeypatch):
    monkeypatch.setattr(sys.modules["lmmblocks.ops.linear_cross_entropy"], "CHUNK_ROWS", 2)
    return request.param


def _leaves():
    torch.manual_seed(0)
    shapes = ((5, 3), (7, 3), (7,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_ignored_rows_have_no_part_in_loss_mean_and_gradients(backend, softcap):
    (hidden, head, bias), targets = _leaves(), torch.tensor([3, -100, 6, -100, 0])
    loss = ops.linear_cross_entropy(hidden, head, targets, softcap=softcap, bias_V=bias, backend=backend)
    expected = F.cross_entropy(ops.softcapped(F.linear(hidden, head, bias), softcap), targets)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(*(torch.autograd.grad(x, (hidden, head, bias)) for x in (loss, expected))):
        torch.testing.assert_close(a, b)


def test_weights_of_ignored_rows_are_not_counted(backend):
    (hidden, head, _), targets, weights = (
        _leaves(),
        torch.tensor([3, -100, 6, 1, 0]),
        torch.tensor([1.0, 50, 2, 3, 4]),
    )
    kept = targets != -100
    each = F.cross_entropy(F.linear(hidden, head), targets, reduction="none")
    found = ops.linear_cross_entropy(hidden, head, targets, weights=weights, backend=backend)
    torch.testing.assert_close(found, (each * weights)[kept].sum() / weights[kept].sum())


@pytest.mark.parametrize("normalizer", [4, 4.0, torch.tensor(4)])
def test_a_normalizer_takes_the_place_of_the_count(backend, normalizer):
    (hidden, head, _), targets = _leaves(), torch.tensor([3, 5, 6, 1, 0])
    total = ops.linear_cross_entropy(hidden, head, targets, reduction="sum", backend=backend)
    torch.testing.assert_close(ops.linear_cross_entropy(hidden, head, targets, normalizer=normalizer, backend=backend), total / 4)


def test_a_batch_without_a_supervised_row_gives_zero_not_nan(backend):
    (hidden, head, _), targets = _leaves(), torch.full((5,), -100)
    loss = ops.linear_cross_entropy(hidden, head, targets, backend=backend)
    assert loss == 0 and not any(grad.any() for grad in torch.autograd.grad(loss, (hidden, head)))


def test_a_normalizer_beside_another_reduction_is_refused():
    (hidden, head, _), targets = _leaves(), torch.zeros(5, dtype=torch.long)
    with pytest.raises(LmmError, match="a normalizer is what 'mean' divides by, reduction is 'sum'"):
        ops.linear_cross_entropy(hidden, head, targets, reduction="sum", normalizer=3)


def test_a_target_beyond_the_vocabulary_raises_on_the_cpu(backend):
    (hidden, head, _), targets = _leaves(), torch.tensor([3, 5, 7, 1, 0])
    with pytest.raises(IndexError, match="7 is out of bounds"):
        ops.linear_cross_entropy(hidden, head, targets, backend=backend)
