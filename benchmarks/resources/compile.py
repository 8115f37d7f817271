"""Compile a recorded launch for an architecture and read what it uses; no GPU and no driver take part.

Registers, spills and shared memory are those of the machine code. Accesses and instructions are counted in the PTX: what is 128 bits wide there
stays so, a matrix product there is one on the tensor cores, and reading PTX takes no disassembler.
"""

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

from .a100 import WARP, ctas_per_multiprocessor
from .capture import Launch

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
        loads_128: 128-bit loads from global memory, asynchronous copies included.
        stores_128: 128-bit stores.
        matrix_ops: tensor-core instructions (mma; warp-group MMA on sm_90).
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
        usage = _cuobjdump("-res-usage", file.name)
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage).group(1)) for word in ("REG", "STACK"))  # type: ignore[union-attr]
    ops = _counted(compiled.asm["ptx"])
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


_PATTERNS = {
    "loads_128": re.compile(r"\b(ld\.global[\w.:]*\.(v4\.[busf]32|v2\.[busf]64)|cp\.async\.c[ag]\.shared\.global[^;]*, (0x10|16)\b|cp\.async\.bulk)"),
    "stores_128": re.compile(r"\b(st\.global[\w.:]*\.(v4\.[busf]32|v2\.[busf]64)|cp\.async\.bulk\.tensor[\w.]*\.global\.shared)"),
    "matrix_ops": re.compile(r"\b(mma\.sync|wgmma\.mma_async)\."),
    "fp64_ops": re.compile(r"\.f64\b"),
}


def _counted(ptx: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in ptx.splitlines():
        for name, pattern in _PATTERNS.items():
            found[name] += bool(pattern.search(line))
    return found


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run([str(_TOOLS / "cuobjdump"), option, path], check=True, capture_output=True, text=True).stdout
