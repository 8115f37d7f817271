"""Triton's kernels compiled on a machine without a GPU, to be carried to one: compiling them there would take minutes that are paid for.

    python -m benchmarks.gpu.triton_cache FOLDER --arch 90     # every kernel that the checks and times launch, as json and cubin

Triton looks a kernel up by a hash of its source, its arguments, its options and Triton itself: the Triton here must be of the same version, and
built for the same Python, as the one there. The launches are real ones, of the checks and timings on CPU tensors, with a driver that has no device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lmmblocks.spec import first_line

from .case import OURS, Suite, is_cuda
from .correctness import cast
from .predicted import decides

ABOUT, GROUP = "about.json", "__grp__"
KEPT = (".json", ".cubin")
MULTIPROCESSORS = {80: 108, 90: 132}
MULTIPLIES = ("linear_cross_entropy",)
"""Ops with products of torch's, at whose sizes a CPU would be busy for minutes; their kernels are those of the checks."""


def unpacked(source: Path, target: Path) -> tuple[int, str]:
    """Copy a carried cache to where Triton looks; return how many kernels, and why they are of no use, or nothing.

    Triton notes beside each kernel where its files lie: those notes are written anew.
    """
    import triton

    about = json.loads((source / ABOUT).read_text()) if (source / ABOUT).is_file() else {}
    if about.get("triton") != triton.__version__:
        return 0, f"compiled by Triton {about.get('triton', 'unknown')}, here is {triton.__version__}"
    shutil.copytree(source, target, dirs_exist_ok=True)
    notes = list(target.glob(f"*/{GROUP}*.json"))
    for note in notes:
        files = {path.name: str(path.resolve()) for path in note.parent.iterdir() if not path.name.startswith(GROUP)}
        note.write_text(json.dumps({"child_paths": files}))
    return len(notes), ""


def trimmed(folder: Path) -> None:
    """Remove what isn't needed to run: intermediate code, and what was compiled for this machine."""
    for path in list(folder.rglob("*")):
        if path.is_file() and path.suffix not in KEPT:
            path.unlink()
    for place in list(folder.iterdir()):
        if place.is_dir() and not list(place.glob("*.cubin")):
            shutil.rmtree(place)


class NoDriver:
    """Triton's driver of a device that isn't there: it compiles for it, and launches nothing."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", arch, 32)
        self.launcher_cls = lambda source, metadata: lambda *arguments: None
        self.utils = self

    def get_current_target(self) -> Any:
        """Return what is compiled for."""
        return self._target

    def get_current_device(self) -> int:
        """Return the first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default one."""
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return enough for every kernel."""
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Return a module, a function, registers, spills and the most threads."""
        return 0, 0, 0, 0, 1024


@contextlib.contextmanager
def without_a_device(arch: int) -> Iterator[None]:
    """Let kernels be launched on CPU tensors inside a ``with`` block: each is compiled for ``sm_{arch}``, none runs."""
    from lmmblocks.kernels.device import assumed
    from triton.runtime.driver import driver

    from lmmblocks.ops import triton_gate

    refusal = triton_gate._device_refusal
    triton_gate._device_refusal = lambda device: None
    driver.set_active(NoDriver(arch))
    try:
        with assumed(divmod(arch, 10), MULTIPROCESSORS[arch]):
            yield
    finally:
        triton_gate._device_refusal = refusal
        driver._active = None


def compile_all(arch: int, names: list[str]) -> list[str]:
    """Launch what the checks launch, and the timings that decide; return what failed."""
    from .suites_by_name import loaded

    problems = []
    with without_a_device(arch):
        for suite in loaded(names).values():
            for name, launch in (*_checks(suite), *_timings(suite)):
                try:
                    launch()
                except Exception as error:  # what nothing computed may lead astray what follows it
                    problems.append(f"{name}: {type(error).__name__}: {first_line(error)[:100]}")
    return problems


def _checks(suite: Suite) -> Iterator[tuple[str, Callable[[], Any]]]:
    for check in suite.checks:
        for dtype in check.dtypes if not is_cuda(check.implementation) else ():
            yield (
                f"{check.kernel} {check.case} {dtype}",
                lambda check=check, dtype=dtype: check.run(check.implementation, cast(check.inputs(torch.device("cpu"), False), dtype)),  # type: ignore[misc]
            )


def _timings(suite: Suite) -> Iterator[tuple[str, Callable[[], Any]]]:
    for timing in suite.timings:
        if not decides(timing) or timing.op in MULTIPLIES:
            continue
        for provider, prepare in timing.providers.items():
            if provider.startswith(f"{OURS}triton"):
                name = f"{timing.op} {timing.mode} {timing.shape} {provider}"
                yield name, lambda timing=timing, prepare=prepare: prepare(timing.inputs(torch.device("cpu")))()  # type: ignore[misc]


def main(arguments: list[str] | None = None) -> int:
    """Fill a folder."""
    from .suites_by_name import SUITES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.triton_cache", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", type=int, choices=sorted(MULTIPROCESSORS), default=90)
    parser.add_argument("--only", nargs="+", default=list(SUITES), metavar="SUITE")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = str(options.folder.resolve())
    import triton

    problems = compile_all(options.arch, options.only)
    trimmed(options.folder)
    (options.folder / ABOUT).write_text(json.dumps({"triton": triton.__version__, "arch": options.arch, "python": sys.version.split()[0]}))
    kernels = len(list(options.folder.glob(f"*/{GROUP}*")))
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    print("\n".join(problems))
    print(f"{kernels} kernels for sm_{options.arch}, {size / 1e6:.1f} MB in {options.folder}; {len(problems)} checks didn't come to their end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
