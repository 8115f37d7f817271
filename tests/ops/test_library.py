"""Kernels as torch ops: called straight away where nobody listens, through torch wherever somebody does, with the same results."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lmmblocks import ops
from lmmblocks.ops.rms_norm import RMS_NORM_FWD

X, WEIGHT = torch.randn(5, 32), torch.rand(32)


class Heard(TorchDispatchMode):
    """Notes the names of all ops."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def norm(x=X, weight=WEIGHT):
    return ops.rms_norm(x, weight, backend="triton")


def test_a_call_that_nobody_watches_goes_straight_to_the_launcher(monkeypatch):
    expected = RMS_NORM_FWD.op(X, WEIGHT, 1e-5, 0.0)
    monkeypatch.setattr(RMS_NORM_FWD, "op", None)
    assert all(torch.equal(one, other) for one, other in zip(RMS_NORM_FWD(X, WEIGHT, 1e-5, 0.0), expected))


def test_a_mode_and_the_profiler_see_the_op():
    with Heard() as heard:
        norm()
    assert "lmmblocks.rms_norm_fwd.default" in heard.names
    with torch.profiler.profile() as profiler:
        norm()
    assert "lmmblocks::rms_norm_fwd" in {event.key for event in profiler.key_averages()}


def test_tensors_of_other_classes_are_never_launched_on(monkeypatch):
    monkeypatch.setattr(RMS_NORM_FWD, "_launch", None)
    fake = FakeTensorMode()
    found = RMS_NORM_FWD(fake.from_tensor(X), fake.from_tensor(WEIGHT), 1e-5, 0.0)
    assert [each.shape for each in found] == [(5, 32), (5,)] and isinstance(found[0], FakeTensor)


def test_tensors_without_data_get_shapes_and_no_launch():
    assert [each.shape for each in RMS_NORM_FWD(X.to("meta"), WEIGHT.to("meta"), 1e-5, 0.0)] == [(5, 32), (5,)]


@pytest.mark.parametrize("learning", [0, 1])
def test_with_and_without_a_gradient_the_values_are_the_same(learning):
    given = [X.clone(), WEIGHT.clone()]
    given[learning].requires_grad_()
    found = norm(*given)
    assert found.requires_grad and torch.equal(found, norm())
    with torch.no_grad():
        assert not norm(*given).requires_grad
    with torch.inference_mode():
        assert torch.equal(norm(*given), found)


def test_a_derivative_forwards_is_refused_and_never_lost():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        with pytest.raises(RuntimeError, match="jvp|forward"):
            norm(dual)


def test_a_transform_of_functions_gives_what_it_gives_of_other_ops():
    assert torch.equal(torch.func.vmap(norm)(torch.stack([X, 2 * X])), torch.stack([norm(), norm(2 * X)]))
