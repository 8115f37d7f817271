"""When a CUDA kernel of ``lmmblocks._C`` can run, when ``auto`` may choose it, and what every launch of one needs.

The same two questions as in ``triton_gate``: :func:`cuda_refusal` is about this call and binds everyone, :func:`cuda_distrust` is about proof and
binds ``auto`` only. ``lmmblocks._C`` is built by ``setup.py`` where nvcc is found; without it every call is refused with the reason, which the build
left in ``_C.reason.txt``. Importing it needs no driver. Tests set ``LMMBLOCKS_CUDA_EMULATION`` to an extension that g++ made of the same sources:
it runs on CPU tensors, when a backend is forced, and on nothing else.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..spec import LmmError
from .constant import constant
from .triton_gate import first_device, layout_refusal, unverified

EMULATION = "LMMBLOCKS_CUDA_EMULATION"
NAME = "lmmblocks._C"
PACKAGE = Path(__file__).parents[1]
REASON = "_C.reason.txt"
"""What ``csrc/build_extension.py`` leaves in the package when it builds no extension: why, in one line."""

DTYPES = (torch.float16, torch.bfloat16)


def cuda_refusal(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = DTYPES, aligned: int = 0) -> str | None:
    """Return why no CUDA kernel can take these tensors, or None.

    Args:
        tensors: inputs of the call; None stands for one that is not given. Their last dimension must be contiguous and their dtype one of
            ``dtypes``; integer tensors need neither.
        dtypes: what the kernel computes.
        aligned: so many of the tensors, from the first on, are read 16 bytes at a time.
    """
    return extension_problem() or _device_refusal(first_device(tensors)) or layout_refusal(tensors, dtypes, aligned)


def cuda_distrust(op: str, tensor: Tensor, name: str = "cuda") -> str | None:
    """Return why ``auto`` must not choose the CUDA kernel of ``op`` on the tensor's device, or None."""
    if tensor.device.type != "cuda":
        return f"the emulator of CUDA kernels is for tests: ask for {name!r} by name"
    return unverified(f"{op}.{name}", tensor.device)


def extension(device: torch.device) -> ModuleType:
    """Return ``lmmblocks._C``, to launch something on ``device``.

    Raises:
        LmmError: it isn't there, or can't serve this device: an op was called without asking :func:`cuda_refusal`.
    """
    problem = extension_problem() or _device_refusal(device)
    if problem is not None:
        raise LmmError(problem)
    return _loaded()


@functools.cache
def launcher(name: str, device: torch.device, order: str) -> Callable[..., int]:
    """Return a launcher of ``lmmblocks._C`` to be called by position, which costs a tenth of names.

    Args:
        name: of the launcher.
        device: that it is launched on.
        order: names of its arguments in the order in which they will be given, the stream included.

    Raises:
        LmmError: the extension has another order: it was built from other sources.
    """
    found = getattr(extension(device), name)
    expected = re.findall(r"(\w+):", found.__doc__.split("->")[0])
    if expected != order.split():
        raise LmmError(f"{NAME}.{name} takes {' '.join(expected)}, not {order}: it was built from other sources: install lmmblocks again")
    return found


def pointers(*tensors: Tensor | None) -> list[int]:
    """Return where tensors begin as launchers take it, 0 for None."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def raw_stream(device: torch.device) -> int:
    """Return torch's current stream on ``device`` as launchers take it."""
    if device.type != "cuda":
        return 0  # the emulator has no streams
    current = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return current(device.index) if current else torch.cuda.current_stream(device).cuda_stream


def check(code: int, op: str) -> None:
    """Raise LmmError with the meaning of a code that a launcher returned, unless it is 0."""
    if code:
        raise LmmError(f"{op}: the CUDA launch failed with code {code}: {_loaded().error_message(code)}")


@constant
def extension_problem() -> str | None:
    """Return why ``lmmblocks._C`` can't be used, on whatever device, or None."""
    try:
        facts = _loaded().facts()
    except ImportError as error:
        return _import_problem(error)
    if os.environ.get(EMULATION):
        return None if facts["emulated"] else f"{EMULATION} must name an emulated extension, {_loaded().__file__} is for GPUs"
    if facts["version"] != __version__:
        return f"{NAME} was built for lmmblocks {facts['version']}, this is {__version__}: install it again"
    return None


def extension_report() -> dict[str, Any]:
    """Return what ``lmmblocks doctor`` tells: ``built``, ``problem`` or None, and what the extension knows about itself, if it can be imported."""
    problem = extension_problem()
    try:
        return {"built": True, "problem": problem, **_loaded().facts()}
    except ImportError:
        return {"built": False, "problem": problem}


@functools.cache
def _loaded() -> ModuleType:
    path = os.environ.get(EMULATION)
    if not path:
        return importlib.import_module(NAME)
    spec = spec_from_file_location("_C", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"it must end in .so, found {path}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _import_problem(error: ImportError) -> str:
    if os.environ.get(EMULATION):
        return f"{EMULATION}: {error}"
    if not isinstance(error, ModuleNotFoundError) or error.name != NAME:
        return f"{NAME} can't be imported ({error}): install lmmblocks again"
    reason = _recorded_reason()
    if reason:
        return f"{NAME} was not built when lmmblocks was installed: {reason}. Change that and install it again (csrc/README.md)"
    others = sorted(path.name for path in PACKAGE.glob("_C.*.so"))
    if others:
        return f"{NAME} is not built for this Python, only as {', '.join(others)}: install lmmblocks again"
    return f"{NAME} is not built: install lmmblocks from its sources where nvcc is found (csrc/README.md)"


def _recorded_reason() -> str:
    """Return why the last build made no extension; empty where none was tried, or it can't be read."""
    try:
        return " ".join((PACKAGE / REASON).read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return ""


@constant
def _device_refusal(device: torch.device) -> str | None:
    if os.environ.get(EMULATION):
        return None if device.type == "cpu" else f"{EMULATION} is set: it computes on cpu, tensors are on {device.type}"
    if device.type != "cuda":
        return f"tensors are on {device.type}: CUDA kernels need a CUDA device"
    facts, capability = _loaded().facts(), torch.cuda.get_device_capability(device)
    if not serves(facts["archs"].split(";"), capability):
        return f"{NAME} was built for {facts['archs']}, not for compute capability {capability[0]}.{capability[1]}: set LMMBLOCKS_CUDA_ARCHS"
    if facts["driver"] // 1000 < facts["cuda"] // 1000:
        driver, cuda = (f"{facts[what] // 1000}.{facts[what] % 1000 // 10}" for what in ("driver", "cuda"))
        return f"{NAME} was built with CUDA {cuda}, the driver serves {driver}: update the driver, or build it with an older nvcc"
    return None


def serves(archs: list[str], capability: tuple[int, int]) -> bool:
    """Return whether code for ``archs`` runs on a device: its own generation's up to its minor version, or PTX of any older one.

    >>> serves(["sm_80", "sm_90", "compute_80"], (8, 6)), serves(["sm_90", "compute_90"], (8, 0)), serves(["sm_80"], (9, 0))
    (True, False, False)
    """
    for arch in archs:
        kind, _, number = arch.partition("_")
        major, minor = divmod(int(number), 10)
        if (major, minor) <= capability and (kind == "compute" or major == capability[0]):
            return True
    return False
