"""The tools: nvcc, and cuobjdump wherever one lies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[3]
CSRC = ROOT / "csrc"
ARCHITECTURES = (80, 90)


class MissingTool(Exception):
    """A compiler or disassembler that is needed and not there."""


@dataclass(frozen=True)
class Toolchain:
    """What compiles and disassembles.

    Attributes:
        nvcc: the compiler.
        cuobjdump: the disassembler.
        version: of the compiler, ``"13.0.88"``.
    """

    nvcc: Path
    cuobjdump: Path
    version: str


def toolchain() -> Toolchain:
    """Find the tools.

    Raises:
        MissingTool: when one is not there, with all the places that were looked at.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise MissingTool("no nvcc: looked in CUDA_HOME, the PATH and /usr/local/cuda; install the CUDA toolkit or set CUDA_HOME")
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return Toolchain(nvcc, _cuobjdump(nvcc), re.search(r"\bV(\d+\.\d+\.\d+)", said)[1])  # type: ignore[index]


def find_nvcc() -> Path | None:
    """Return nvcc, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [Path(home) / "bin" / "nvcc" for home in homes if home]
    places += [Path(found) for found in [shutil.which("nvcc")] if found]
    places.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((place for place in places if place.is_file()), None)


def _cuobjdump(nvcc: Path) -> Path:
    """Beside nvcc (which may be a script that starts another), in the PATH, or the copy in Triton's wheel."""
    dry = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    here = re.search(r"_HERE_=(.+)", dry)
    places = [nvcc.resolve().parent, *([Path(here[1].strip())] if here else [])]
    places += [Path(found).parent for found in [shutil.which("cuobjdump")] if found]
    if (spec := find_spec("triton")) is not None:
        places += [Path(place) / "backends" / "nvidia" / "bin" for place in spec.submodule_search_locations or []]
    for place in places:
        if (place / "cuobjdump").is_file():
            return place / "cuobjdump"
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise MissingTool(
        f"no cuobjdump to read machine code with: looked in {looked}, the PATH and Triton's wheel; "
        "install the toolkit's cuobjdump (package cuda-cuobjdump) or Triton in this environment"
    )
