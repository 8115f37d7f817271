"""What launchers ask for, without a GPU: threads and dynamic shared memory of every kernel, from the launchers' own compiled host code.

The objects that nvcc made are linked with ``recorder.cpp`` in place of the CUDA runtime, and the cases of ``launches/*.cpp`` call the launchers.
There is no second table of sizes that must agree with the first.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from .objects import Compiled, CompileError, place, run
from .toolchain import CSRC, Toolchain

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Launch:
    """A launch as it was asked for: threads of a CTA, and its dynamic shared memory."""

    threads: int
    shared_bytes: int


def launches(files: list[Compiled], tools: Toolchain) -> dict[str, list[Launch]]:
    """Return the different launches of each kernel, by its mangled name."""
    sources = [HERE / "recorder.cpp", *sorted((HERE / "launches").glob("*.cpp"))]
    recorded = place("launches", sources, [tools.version, *(file.object.name for file in files)], "txt")
    if not recorded.exists():
        program = recorded.with_suffix(".run")
        objects = [file.object for file in files]
        compiler = [tools.nvcc, "-std=c++17", "-cudart", "none", "-I", CSRC, "-I", HERE]
        run([*compiler, *sources, *objects, "-o", program], HERE / "recorder.cpp")
        done = subprocess.run([program], capture_output=True, text=True)
        if done.returncode != 0:
            raise CompileError(f"launches of {HERE.name}/launches are refused:\n{done.stderr.strip()}")
        recorded.write_text(done.stdout, encoding="utf-8")
    found: dict[str, list[Launch]] = {}
    for line in sorted(set(recorded.read_text(encoding="utf-8").splitlines())):
        kernel, threads, shared_bytes = line.split()
        found.setdefault(kernel, []).append(Launch(int(threads), int(shared_bytes)))
    return found
