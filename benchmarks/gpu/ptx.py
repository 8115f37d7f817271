"""Whether the instructions of ``csrc/common/ptx.cuh`` do on this GPU what the kernels take them to do: the first thing to run on one.

    python -m benchmarks.gpu.ptx            # compile ptx_kernels.cu for this GPU, print a verdict for each instruction, exit 1 when one is wrong

Each check runs one kernel of ``ptx_kernels.cu`` and compares with what the PTX ISA says, written down here element by element. A CPU runs the same
checks on the emulator's instructions (tests/csrc/test_ptx_kernels.py), which is how these expectations are tested.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmmblocks.spec import first_line

SOURCE = Path(__file__).with_name("ptx_kernels.cu")
CSRC = Path(__file__).parents[2] / "csrc"
CTAS = 600
"""More than fit any GPU at once at 128 threads: turns are waited for."""


@dataclass(frozen=True)
class Verdict:
    """Of one check: what was found wrong, or None."""

    name: str
    problem: str | None


class Kernels:
    """The functions of ``ptx_kernels.cu``, called with tensors for pointers; a code other than 0 raises RuntimeError."""

    def __init__(self, library: ctypes.CDLL, device: torch.device) -> None:
        self.device = device
        self._library = library
        library.ptx_message.restype = ctypes.c_char_p

    def run(self, name: str, *arguments: Tensor | int) -> None:
        """Launch, and wait until it is done."""
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0
        plain = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else ctypes.c_int(x) for x in arguments]
        code = getattr(self._library, f"ptx_run_{name}")(*plain, ctypes.c_size_t(stream))
        if code:
            raise RuntimeError(self._library.ptx_message(code).decode())
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def to(self, tensor: Tensor) -> Tensor:
        """Return it on the device."""
        return tensor.contiguous().to(self.device)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return memory of ones in every bit."""
        return torch.full((*shape, dtype.itemsize), 255, dtype=torch.uint8, device=self.device).view(dtype).squeeze(-1)


def _differ(found: Tensor, expected: Tensor, within: float = 0.0) -> str | None:
    apart = (found.cpu().double() - expected.double()).abs()
    wrong = ~(apart <= within)  # NaN is wrong too
    if not wrong.any():
        return None
    first = tuple(wrong.nonzero()[0].tolist())
    values = f"found {found.cpu()[first].item()}, expected {expected[first].item()}"
    return f"{int(wrong.sum())} of {wrong.numel()} values are wrong, the first at {first}: {values}"


def _mma(kernels: Kernels, dtype: torch.dtype) -> str | None:
    """All three operands have different values everywhere."""
    generator = torch.Generator().manual_seed(0)
    a, b, d = (torch.randn(shape, generator=generator) for shape in ((16, 16), (16, 8), (16, 8)))
    a, b = a.to(dtype), b.to(dtype)
    a_lanes, b_lanes = torch.empty(32, 8, dtype=dtype), torch.empty(32, 4, dtype=dtype)
    exact, d_lanes, expected = a.double() @ b.double() + d, torch.empty(32, 4), torch.empty(32, 4, dtype=torch.float64)
    for lane in range(32):
        group, pair = lane // 4, 2 * (lane % 4)
        for i in range(8):
            a_lanes[lane, i] = a[group + (8 if i in (2, 3, 6, 7) else 0), pair + i % 2 + (8 if i >= 4 else 0)]
        for i in range(4):
            b_lanes[lane, i] = b[pair + i % 2 + (8 if i >= 2 else 0), group]
            place = group + (8 if i >= 2 else 0), pair + i % 2
            d_lanes[lane, i], expected[lane, i] = d[place], exact[place]
    found = kernels.to(d_lanes)
    kernels.run("mma", kernels.to(a_lanes), kernels.to(b_lanes), found, int(dtype == torch.bfloat16))
    return _differ(found, expected, 1e-4)  # products are exact, sums rounded or cut in fp32


def _ldmatrix(kernels: Kernels, matrices: int, transposed: bool) -> str | None:
    smem = torch.arange(4 * 64, dtype=torch.int16).view(4, 8, 8)
    found = kernels.empty(32, matrices, 2, dtype=torch.int16)
    kernels.run("ldmatrix", kernels.to(smem), found, matrices, int(transposed))
    held = smem.transpose(1, 2) if transposed else smem
    expected = torch.stack([held[i].reshape(32, 2) for i in range(matrices)], 1)  # lane l: row l / 4, columns 2 (l % 4) and + 1
    return _differ(found, expected)


def _cp_async(kernels: Kernels, valid: int) -> str | None:
    rows = torch.arange(1, 1 + 4 * 128, dtype=torch.int32).view(128, 4)
    found = kernels.empty(128, 4, dtype=torch.int32)
    kernels.run("cp_async", kernels.to(rows), found, valid)
    whole = torch.where(torch.arange(128)[:, None] < valid, rows, 0)
    return _differ(found, torch.cat([whole[:64].flip(0), whole[64:].view(32, 2, 4).flip(1).reshape(64, 4)]))


def _red(kernels: Kernels) -> str | None:
    sums = kernels.to(torch.arange(64, dtype=torch.float32))
    kernels.run("red", sums, CTAS)
    return _differ(sums, torch.arange(64.0) + CTAS * (CTAS - 1) / 2)


def _red_vector(kernels: Kernels) -> str | None:
    sums = kernels.to(torch.arange(256, dtype=torch.float32).view(64, 4))
    kernels.run("red_vector", sums, CTAS)
    return _differ(sums, torch.arange(256.0).view(64, 4) + CTAS * (CTAS - 1) / 2 + CTAS * torch.arange(4.0))


def _turns(kernels: Kernels) -> str | None:
    count = 1000
    ticket, turn = (kernels.to(torch.zeros(1, dtype=torch.int32)) for _ in range(2))
    values = kernels.to(torch.arange(count, dtype=torch.int32))
    kernels.run("turns", ticket, turn, values, count, CTAS)
    expected = torch.arange(count, dtype=torch.int64)
    for number in range(CTAS):
        expected = (3 * expected + number) % 2**32
    return _differ(values.cpu().long() % 2**32, expected)


def _stream(kernels: Kernels) -> str | None:
    rows = torch.arange(1, 1 + 4 * 64, dtype=torch.int32).view(64, 4)
    found = kernels.empty(128, 4, dtype=torch.int32)
    kernels.run("stream", kernels.to(rows), found, 40)
    return _differ(found, torch.cat([torch.where(torch.arange(64)[:, None] < 40, rows, 0), rows[:1].expand(64, 4)]))


def _numbers(kernels: Kernels, dtype: torch.dtype) -> str | None:
    values = torch.cat([torch.logspace(-6, 4, 30), -torch.logspace(-6, 1.5, 30), torch.tensor([0.0, float("-inf"), 1.0, 65504.0])])
    powers, logs = (kernels.empty(64, dtype=torch.float32) for _ in range(2))
    pairs, back = kernels.empty(64, 2, dtype=dtype), kernels.empty(64, 2, dtype=torch.float32)
    kernels.run("numbers", kernels.to(values), powers, logs, pairs, back, int(dtype == torch.bfloat16))
    mates = torch.stack([values, values.view(32, 2).flip(1).reshape(64)], 1).to(dtype)
    if not torch.equal(pairs.cpu(), mates) or not torch.equal(back.cpu(), mates.float()):
        return f"pairs of {dtype} are not those that torch rounds to"
    few, positive = values < 100, values > 0
    wanted, found = values[few].double().exp2(), powers.cpu()[few].double()
    if not ((found - wanted).abs() <= 2.0**-21 * wanted).all():
        return f"ex2 is off by {((found - wanted) / wanted).abs().nan_to_num().max():.1e} of its value"
    return _differ(logs[kernels.to(positive)], values[positive].double().log2(), 2.0**-20 * 14)


def checks() -> dict[str, Callable[[Kernels], str | None]]:
    """Return each check by its name."""
    halves = {"fp16": torch.float16, "bf16": torch.bfloat16}
    found: dict[str, Callable[[Kernels], str | None]] = {f"mma {name}": lambda k, d=dtype: _mma(k, d) for name, dtype in halves.items()}  # type: ignore[misc]
    for matrices in (4, 2):
        found[f"ldmatrix x{matrices}"] = lambda k, m=matrices: _ldmatrix(k, m, False)  # type: ignore[misc]
        found[f"ldmatrix x{matrices} trans"] = lambda k, m=matrices: _ldmatrix(k, m, True)  # type: ignore[misc]
    for valid in (128, 70, 0):
        found[f"cp.async, {valid} of 128 valid"] = lambda k, v=valid: _cp_async(k, v)  # type: ignore[misc]
    found |= {"red": _red, "red, four values": _red_vector, "acquire and release": _turns, "streaming loads and stores": _stream}
    return found | {f"ex2, lg2, pairs of {name}": lambda k, d=dtype: _numbers(k, d) for name, dtype in halves.items()}  # type: ignore[misc]


def verdicts(kernels: Kernels) -> Iterator[Verdict]:
    """Run every check, one after the other; after an error of CUDA the rest fails too."""
    for name, check in checks().items():
        try:
            yield Verdict(name, check(kernels))
        except RuntimeError as error:
            yield Verdict(name, first_line(error))


def compiled(arch: str, folder: Path, nvcc: str = "nvcc") -> Path:
    """Compile the kernels for one architecture (``"90"``) into a library."""
    target = folder / f"ptx_kernels_{arch}.so"
    generate = f"arch=compute_{arch},code=sm_{arch}"
    subprocess.run([nvcc, "-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "-I", CSRC, "-gencode", generate, SOURCE, "-o", target], check=True)
    return target


def main() -> int:
    """Compile for the GPU that is here, check, print; 1 when an instruction is wrong."""
    device = torch.device("cuda")
    major, minor = torch.cuda.get_device_capability(device)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(str(compiled(f"{major}{minor}", Path(folder))))
        print(f"compiled in {time.monotonic() - began:.1f} s", flush=True)
        wrong = False
        for verdict in verdicts(Kernels(library, device)):
            wrong |= verdict.problem is not None
            print(f"{verdict.name}: {verdict.problem or 'right'}", flush=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
