"""When a Triton kernel can run, and when ``auto`` may choose it.

Two different questions: :func:`triton_refusal` is about this call (device, dtype, strides) and binds everyone; :func:`triton_distrust`
is about proof and binds ``auto`` only: a kernel that was never run on a GPU of this compute capability must be asked for by name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from ..kernels.device import shared_bytes
from .constant import constant

OLDEST_CAPABILITY = (8, 0)
"""bf16 tensor cores and asynchronous copies: A100 and newer."""

ALIGNMENT_BYTES = 16
"""Of a 128-bit access, which the kernels' budgets assume."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def interpreting() -> bool:
    """Return whether Triton's kernels run in its interpreter, as the tests of a machine without a GPU do."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


@constant
def triton_installed() -> bool:
    """Return whether Triton can be imported; nothing is."""
    return find_spec("triton") is not None


def triton_refusal(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = DTYPES, aligned: int = 0) -> str | None:
    """Return why no Triton kernel can take these tensors, or None.

    Args:
        tensors: inputs of the call; None stands for one that is not given. Their last dimension must be contiguous and their dtype one of
            ``dtypes``; integer tensors need neither.
        dtypes: what the kernel computes.
        aligned: so many of the tensors, from the first on, are read 16 bytes at a time; see :func:`misalignment`.
    """
    if not triton_installed():
        return "triton is not installed"
    return _device_refusal(first_device(tensors)) or layout_refusal(tensors, dtypes, aligned)


def first_device(tensors: Sequence[Tensor | None]) -> torch.device:
    """Return the device of the first tensor that is given."""
    for tensor in tensors:
        if tensor is not None:
            return tensor.device
    raise AssertionError("a kernel needs a tensor")


def layout_refusal(tensors: Sequence[Tensor | None], dtypes: tuple[torch.dtype, ...], aligned: int = 0) -> str | None:
    """Return what keeps a kernel from reading these tensors, or None; each is looked at once.

    That is another device than the first one's, and of floating point tensors another dtype, a last dimension that isn't contiguous, or, of the
    first ``aligned``, a row that doesn't start on 16 bytes.
    """
    device = first_device(tensors)
    for place, tensor in enumerate(tensors):
        if tensor is None:
            continue
        if tensor.device != device:
            return f"tensors lie on {sorted({str(each.device) for each in tensors if each is not None})}: move them to one device"
        dtype = tensor.dtype
        if dtype not in dtypes:
            if dtype.is_floating_point:
                return f"{dtype} is none of {', '.join(str(known) for known in dtypes)}"
            continue
        strides = tensor.stride()
        if strides and strides[-1] != 1 and tensor.shape[-1] > 1:
            return f"the last dimension of a tensor {tuple(tensor.shape)} has stride {strides[-1]}, not 1"
        if place < aligned and not starts_aligned(tensor, strides):
            return misalignment(tensor)
    return None


def starts_aligned(tensor: Tensor, strides: Sequence[int]) -> bool:
    """Return whether the data, and every row by these strides of it, start on 16 bytes."""
    elements = ALIGNMENT_BYTES // tensor.dtype.itemsize
    for place, stride in enumerate(strides[:-1]):
        if stride % elements and tensor.shape[place] > 1:
            return False
    return torch.compiler.is_compiling() or bool(tensor.storage_offset() % elements == 0)


def misalignment(*tensors: Tensor) -> str | None:
    """Return why 128-bit accesses are impossible, or None: a data pointer or a row that doesn't start on 16 bytes.

    ``torch.compile`` can't say where the data of a tensor starts, so in compiled code only the rows are looked at. Kernels promise their compiler
    no more than that: where a pointer isn't aligned, Triton sees it at the launch and takes narrower loads.
    """
    for tensor in tensors:
        if not starts_aligned(tensor, tensor.stride()):
            return f"a tensor {tuple(tensor.shape)} with strides {tensor.stride()} is not aligned to {ALIGNMENT_BYTES} bytes"
    return None


def shared_refusal(needed: int, device: torch.device, what: str) -> str | None:
    """Return that a launch takes more shared memory than the device has for a CTA, or None.

    Args:
        needed: bytes of a CTA.
        device: that it is launched on.
        what: is computed by the launch.
    """
    there = shared_bytes(device)
    if needed <= there:
        return None
    return f"{what} takes {needed} bytes of shared memory, of which this device has {there} for a CTA: use another backend"


def triton_distrust(op: str, tensor: Tensor, implementation: str = "triton") -> str | None:
    """Return why ``auto`` must not choose the Triton kernel of ``op`` on the tensor's device, or None."""
    if tensor.device.type != "cuda":
        return f"Triton's interpreter is for tests: ask for {implementation!r} by name"
    return unverified(f"{op}.{implementation}", tensor.device)


@constant
def _device_refusal(device: torch.device) -> str | None:
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        if found >= OLDEST_CAPABILITY:
            return None
        return f"compute capability {found[0]}.{found[1]} is below {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
    if device.type == "cpu" and interpreting():
        return None
    return f"tensors are on {device.type}: Triton kernels need a CUDA device"


@constant
def unverified(kernel: str, device: torch.device) -> str | None:
    """Return that the kernel was never proven on such a device, or None."""
    from ..kernels.verified import is_verified

    found = torch.cuda.get_device_capability(device)
    if is_verified(kernel, found):
        return None
    return f"never proven on compute capability {found[0]}.{found[1]} (kernels/verified.json): ask for it by name"
