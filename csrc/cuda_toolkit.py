"""Where nvcc, the runtime that belongs to it, and the C++ compiler lie, for ``build_extension.py``."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


class BuildError(Exception):
    """Why there will be no ``_C``, in one line; ``output`` is what the compiler said."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output


@dataclass(frozen=True)
class Toolkit:
    """nvcc and what lies beside it."""

    nvcc: str
    version: str
    include: Path
    library: Path


def find_compilers() -> tuple[str, list[str]]:
    """Return nvcc and the words that call the C++ compiler."""
    if not sys.platform.startswith("linux"):
        raise BuildError(f"they are built on Linux only, not on {sys.platform}")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        raise BuildError(f"nvcc was not found in {home}/bin" if home else "nvcc was not found: PATH lacks it and CUDA_HOME is not set")
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(compiler[0]) is None:
        raise BuildError(f"the C++ compiler {compiler[0]} was not found")
    if find_spec("pybind11") is None:
        raise BuildError("pybind11 is not installed, which a build without isolation needs: pip install pybind11")
    return nvcc, compiler


def find_toolkit(nvcc: str) -> Toolkit:
    """Return where the runtime lies that belongs to nvcc, which may be a wrapper: its dry run names the folders."""
    told = run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull], "nvcc does not run")
    lines = dict(re.findall(r"^#\$ (TOP|INCLUDES|LIBRARIES)=(.*)$", told, re.MULTILINE))
    top = Path(lines.get("TOP") or Path(nvcc).resolve().parents[1])
    includes = [Path(word[2:]) for word in shlex.split(lines.get("INCLUDES", "")) if word.startswith("-I")]
    libraries = [Path(word[2:]) for word in shlex.split(lines.get("LIBRARIES", "")) if word.startswith("-L")]
    version = re.search(r"V(\d+\.\d+\.\d+)", run([nvcc, "--version"], "nvcc does not run"))
    return Toolkit(
        nvcc,
        version.group(1) if version else "of unknown version",
        _holding("cuda_runtime.h", [*includes, top / "include", Path("/usr/include")], nvcc),
        _holding("libcudart_static.a", [*libraries, top / "lib64", top / "lib"], nvcc),
    )


def _holding(name: str, folders: Sequence[Path], nvcc: str) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder.resolve()
    raise BuildError(f"{name} does not lie beside {nvcc}: set CUDA_HOME to a whole toolkit")


def run(words: list[str], failure: str) -> str:
    """Return what a command prints; its first complaint becomes the reason of a BuildError."""
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{failure}: {error}") from error
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
        first = next((line for line in lines if "error" in line.lower() or "fatal" in line.lower()), lines[-1])
        raise BuildError(f"{failure}: {first.strip()}", f"{shlex.join(words)}\n{done.stdout}")
    return done.stdout
