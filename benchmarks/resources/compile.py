"""Compile a recorded launch for an architecture and read what the machine code uses; no GPU and no driver take part."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .capture import Launch

WARP = 32
A100_REGISTERS, A100_THREADS, A100_SHARED_BYTES, A100_CTAS = 65536, 2048, 167936, 32
"""Of one multiprocessor; a CTA's shared memory is rounded up by 1 KiB for the system."""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Resources:
    """What one kernel of one launch uses.

    Attributes:
        registers: a thread.
        spill_bytes: local memory of a thread.
        shared_bytes: of a CTA.
        warps: of a CTA.
        ctas_per_sm: how many fit an A100's multiprocessor.
        loads_128: 128-bit loads from global memory, asynchronous copies included, in the code.
        stores_128: 128-bit stores.
        matrix_ops: tensor-core instructions (HMMA; warp-group MMA on sm_90).
        fp64_ops: double-precision instructions: always a mistake here.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    ctas_per_sm: int
    loads_128: int
    stores_128: int
    matrix_ops: int
    fp64_ops: int


def resources_of(launch: Launch, arch: int) -> Resources:
    """Compile for ``sm_{arch}`` and measure."""
    signature, constants, attributes = launch.source()
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, WARP), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = _cuobjdump("-res-usage", file.name), _cuobjdump("-sass", file.name)
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage).group(1)) for word in ("REG", "STACK"))  # type: ignore[union-attr]
    ops = _counted(code)
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    return Resources(
        registers,
        stack,
        shared,
        warps,
        ctas_per_multiprocessor(registers, warps, shared),
        ops["loads_128"],
        ops["stores_128"],
        ops["matrix_ops"],
        ops["fp64_ops"],
    )


def ctas_per_multiprocessor(registers: int, warps: int, shared_bytes: int) -> int:
    """Return how many CTAs an A100's multiprocessor holds at once.

    >>> ctas_per_multiprocessor(registers=255, warps=4, shared_bytes=48 * 1024)
    2
    """
    threads = warps * WARP
    by_registers = A100_REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = A100_SHARED_BYTES // (shared_bytes + 1024)
    return min(by_registers, A100_THREADS // threads, by_shared, A100_CTAS)


_PATTERNS = {
    "loads_128": re.compile(r"\b(LDG(\.\w+)*\.128|LDGSTS(\.\w+)*\.128|UBLKCP|UTMALDG)"),
    "stores_128": re.compile(r"\b(STG(\.\w+)*\.128|UTMASTG)"),
    "matrix_ops": re.compile(r"\b(HMMA|HGMMA|IMMA|DMMA)\."),
    "fp64_ops": re.compile(r"\b(DFMA|DADD|DMUL|DMMA|F2F\.F64\.\w+|MUFU\.RCP64H)\b"),
}


def _counted(code: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in code.splitlines():
        for name, pattern in _PATTERNS.items():
            found[name] += bool(pattern.search(line))
    return found


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run([str(_TOOLS / "cuobjdump"), option, path], check=True, capture_output=True, text=True).stdout
