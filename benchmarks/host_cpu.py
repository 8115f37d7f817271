"""What a call costs the host before a kernel starts: ours with the launch stubbed, beside torch's own attention call, in one process.

``python -m benchmarks.host_cpu [--repeats 200] [--calls 30] [--out benchmarks/data/host_cpu.csv]``

No GPU: CUDA launchers are compiled with bodies that return at once (``host_stub.cpp``, needs g++ and pybind11), Triton compiles for an A100 and
gets a driver that starts nothing. All else is what runs on a GPU: checks, a ladder's verdict, autograd, allocations (on the CPU), arguments. The peer
is ``scaled_dot_product_attention`` of one row, whose compute is next to nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CSRC = Path(__file__).parents[1] / "csrc"


def stubbed_extension(folder: Path) -> Path:
    """Compile ``lmmblocks._C`` with launchers that do nothing."""
    target, stub = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", Path(__file__).with_name("host_stub.cpp")
    includes = subprocess.run([sys.executable, "-m", "pybind11", "--includes"], capture_output=True, text=True, check=True).stdout.split()
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-DLMM_SIMT", f"-I{CSRC}", "-Wno-unknown-pragmas", *includes]
    subprocess.run([os.environ.get("CXX", "g++"), *flags, str(CSRC / "bind.cpp"), str(stub), "-o", str(target)], check=True)
    return target


def main() -> None:
    """Compile the stub, measure in a process that sees it as the emulator, print the table, write the CSV."""
    with tempfile.TemporaryDirectory() as folder:
        if "--help" not in sys.argv and "-h" not in sys.argv:
            os.environ["LMMBLOCKS_CUDA_EMULATION"] = str(stubbed_extension(Path(folder)))
        from benchmarks.host_calls import measure

        measure(sys.argv[1:], __doc__.split("\n")[0])


if __name__ == "__main__":
    main()
