"""What a device has no shared memory for is refused when a call is considered, not at its gradient; and the tables say how much it is."""

import json
import re
from pathlib import Path

import pytest
import torch
from lmmblocks.kernels.attention_tiles import tiles_for
from lmmblocks.kernels.device import LEAST_SHARED_BYTES, assumed

from lmmblocks import ops
from lmmblocks.ops import triton_gate
from lmmblocks.ops.attention import triton as attention_triton
from lmmblocks.spec import LmmError, Segments

BUDGETS = json.loads((Path(__file__).parents[2] / "kernels" / "resources.json").read_text(encoding="utf-8"))["kernels"]
SMALL_DEVICES = [((8, 6), 84), ((8, 9), 128), ((12, 0), 170)]
ATTENTION = re.compile(r"attention / E=(\d+)(.*) / attention_(fwd|dkdv|dq)_kernel / sm_(\d)(\d)")


@pytest.mark.parametrize("key", [key for key in BUDGETS if ATTENTION.match(key)])
def test_tables_say_no_less_shared_memory_than_the_compiler_found(key):
    width, case, kernel, *capability = ATTENTION.match(key).groups()
    tiles = tiles_for(int(width), torch.float32 if "fp32" in case else torch.bfloat16, tuple(map(int, capability)))
    said = tiles.forward_bytes if kernel == "fwd" else tiles.backward_bytes
    assert BUDGETS[key]["shared_bytes"] <= said <= BUDGETS[key]["shared_bytes"] + 2**16


@pytest.mark.parametrize("key", [key for key in BUDGETS if key.endswith("sm_80") and not ATTENTION.match(key)])
def test_kernels_that_nobody_asks_about_fit_every_device(key):
    assert BUDGETS[key]["shared_bytes"] <= LEAST_SHARED_BYTES


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_every_forward_fits_the_devices_that_its_tiles_are_for(capability, kind):
    from lmmblocks.kernels.device import SHARED_BYTES

    for width in (8, 64, 72, 96, 128, 192, 256):
        assert 0 < tiles_for(width, kind, capability).forward_bytes <= SHARED_BYTES.get(capability, LEAST_SHARED_BYTES)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Triton's gate takes CPU tensors; what is remembered of a device is found out anew."""
    monkeypatch.setattr(triton_gate, "_device_refusal", lambda device: None)
    attention_triton.tiles_refusal.cache_clear()
    yield
    attention_triton.tiles_refusal.cache_clear()


def _verdict(width, dtype=torch.bfloat16, gradient=True):
    tensors = [torch.zeros(4, 1, width, dtype=dtype, requires_grad=gradient) for _ in range(3)]
    call = ops.AttentionCall(*tensors, Segments.of((4,)), True, None, width**-0.5)
    return attention_triton.triton_supports(call)


@pytest.mark.parametrize("device", SMALL_DEVICES, ids=str)
def test_a_gradient_of_wide_heads_is_refused_where_it_does_not_fit(as_on_a_gpu, device):
    with assumed(*device):
        for width in (136, 192, 256):
            assert re.match(rf"the gradient of heads of {width} takes \d+ bytes of shared memory, of which this device has 101376", _verdict(width))
            assert _verdict(width, gradient=False) is True
        for width in (64, 72, 96, 128):
            assert _verdict(width) is True and _verdict(width, torch.float32) is True


def test_an_a100_and_an_h100_have_room_for_every_gradient(as_on_a_gpu):
    for device in (((8, 0), 108), ((9, 0), 132)):
        attention_triton.tiles_refusal.cache_clear()
        with assumed(*device):
            assert all(_verdict(width) is True for width in (64, 128, 256))


def test_asking_for_the_kernels_by_name_says_so_before_the_forward(as_on_a_gpu):
    tensors = [torch.zeros(4, 1, 256, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    with assumed((8, 6), 84), pytest.raises(LmmError, match="gradient of heads of 256 .* use another backend"):
        ops.attention(*tensors, Segments.of((4,)), backend="triton")
