"""What would go wrong after the forward is refused, or kept right, before it: shared memory of the backward, lengths of a replayed graph."""

import pytest
import torch
from lmmblocks.kernels.device import assumed, shared_bytes

from lmmblocks import ops
from lmmblocks.ops.attention import cuda as attention_cuda
from lmmblocks.spec import LmmError, Segments

SMALL_DEVICES = [((8, 6), 84), ((8, 9), 128), ((12, 0), 170)]
LARGE_DEVICES = [((8, 0), 108), ((9, 0), 132), ((10, 0), 148)]


@pytest.fixture
def fresh_answers():
    """What is remembered of a device is found out anew, before and after."""
    attention_cuda.backward_refusal.cache_clear()
    yield
    attention_cuda.backward_refusal.cache_clear()


def _inputs(width, lengths=(20, 9), **options):
    torch.manual_seed(0)
    tensors = [torch.randn(sum(lengths), heads, width).bfloat16().requires_grad_(**options) for heads in (2, 1, 1)]
    return tensors, Segments.of(lengths)


@pytest.mark.parametrize("device", SMALL_DEVICES, ids=str)
def test_a_gradient_that_does_not_fit_the_device_is_refused_before_the_forward(cuda_emulation, fresh_answers, device):
    tensors, segments = _inputs(128)
    with assumed(*device):
        with pytest.raises(LmmError, match="gradient of heads of 128 takes 165376 bytes of shared memory, of which this device has 101376"):
            ops.attention(*tensors, segments, backend="cuda")
        with torch.no_grad():
            ops.attention(*tensors, segments, backend="cuda")
        narrow, segments = _inputs(64)
        ops.attention(*narrow, segments, backend="cuda").sum().backward()
    assert all(x.grad.isfinite().all() for x in narrow)


@pytest.mark.parametrize("device", LARGE_DEVICES, ids=str)
def test_on_devices_with_room_for_it_the_gradient_is_served(cuda_emulation, fresh_answers, device):
    tensors, segments = _inputs(128)
    with assumed(*device):
        ops.attention(*tensors, segments, backend="cuda").sum().backward()


def test_the_limit_is_what_the_driver_says_and_by_capability_where_torch_does_not(monkeypatch):
    from types import SimpleNamespace

    from lmmblocks.kernels import device

    found = SimpleNamespace(major=8, minor=6, multi_processor_count=84, shared_memory_per_block_optin=77777)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    for expected in (77777, 101376):
        device._properties.cache_clear()
        assert shared_bytes(torch.device("cuda", 0)) == expected
        vars(found).pop("shared_memory_per_block_optin", None)
    device._properties.cache_clear()


@pytest.mark.parametrize("later", [(150, 50), (200, 0)])
def test_a_captured_launch_writes_all_rows_when_even_lengths_become_others(cuda_emulation, monkeypatch, later):
    """A replay is the same launch on what the tensors hold then."""
    tensors, segments = _inputs(64, (100, 100), requires_grad=False)
    calls = []

    def recorded(name, device, order):
        return lambda *given: calls.append((name, given)) or getattr(cuda_emulation, name)(*given)

    monkeypatch.setattr(attention_cuda, "launcher", recorded)
    monkeypatch.setattr(attention_cuda, "capturing", lambda device: True)
    out, lse = ops.attention(*tensors, segments, backend="cuda", return_lse=True)
    ((name, given),) = calls
    segments.cu_q.copy_(Segments.of(later).cu_q)
    out.fill_(float("nan"))
    assert getattr(cuda_emulation, name)(*given) == 0
    exact = ops.attention(*(x.double() for x in tensors), Segments.of(later), backend="reference")
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-2)


def test_outside_of_a_capture_even_lengths_are_divided_not_looked_for(cuda_emulation, monkeypatch):
    tensors, segments = _inputs(64, (100, 100), requires_grad=False)
    even = []

    def seen(name, device, order):
        place = order.split().index("even")
        return lambda *given: even.append(given[place]) or getattr(cuda_emulation, name)(*given)

    monkeypatch.setattr(attention_cuda, "launcher", seen)
    ops.attention(*tensors, segments, backend="cuda")
    assert even == [1]


@pytest.mark.parametrize("backend", ["reference", "torch", "cuda"])
def test_autocast_makes_bf16_of_fp32_in_every_implementation_as_in_torch_attention(cuda_emulation, backend):
    tensors, segments = _inputs(64, (20, 20))
    wide = [x.detach().float().requires_grad_() for x in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.attention(*wide, segments, backend=backend)
        own = torch.nn.functional.scaled_dot_product_attention(*(x[:20].transpose(0, 1) for x in wide), is_causal=True, enable_gqa=True)
    assert found.dtype == own.dtype == torch.bfloat16
    torch.testing.assert_close(found[:20].transpose(0, 1), own, rtol=0.05, atol=0.05)
    assert torch.equal(found, ops.attention(*tensors, segments, backend=backend))
    found.sum().backward()
    assert all(x.grad.dtype == torch.float32 and x.grad.isfinite().all() for x in wide)


def test_autocast_leaves_fp64_alone(cuda_emulation):
    tensors, segments = _inputs(64)
    wide = [x.detach().double() for x in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.attention(*wide, segments)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, ops.attention(*wide, segments, backend="reference"), rtol=0, atol=1e-12)
