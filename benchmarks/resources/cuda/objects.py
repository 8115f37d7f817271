"""The objects of ``csrc/`` as the build makes them, in ``build/csrc/``, and what was found in them, kept in ``build/resources/``.

The name of a kept result is the hash of all it was made from, so that a second run does nothing again.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from .toolchain import ARCHITECTURES, CSRC, ROOT

KEPT = ROOT / "build" / "resources"
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


class CompileError(Exception):
    """The compiler refused a file."""


@dataclass(frozen=True)
class Compiled:
    """One file of ``csrc/``, compiled.

    Attributes:
        source: the file.
        object: the object, host code and machine code of every architecture.
        log: what ``ptxas -v`` said.
    """

    source: Path
    object: Path
    log: str

    @property
    def name(self) -> str:
        """The file as keys of budgets name it, ``"attention/forward"``."""
        return self.source.relative_to(CSRC).with_suffix("").as_posix()


def kernel_files() -> list[Path]:
    """Return every ``.cu`` of ``csrc/`` but those of the emulator."""
    return sorted(path for path in CSRC.rglob("*.cu") if "simt" not in path.relative_to(CSRC).parts)


def headers() -> list[Path]:
    """Return every header of ``csrc/`` but those of the emulator."""
    return sorted(path for suffix in ("*.h", "*.cuh") for path in CSRC.rglob(suffix) if "simt" not in path.relative_to(CSRC).parts)


def compiled() -> list[Compiled]:
    """Return every kernel file as the build of ``lmmblocks._C`` compiles it for these GPUs; what that has compiled already is taken as it is.

    Raises:
        CompileError: a compiler is missing, or refuses a file.
    """
    from lmmblocks import __version__

    sys.path.insert(0, str(CSRC))
    try:
        build, problem = import_module("build_extension"), import_module("cuda_toolkit").BuildError
    finally:
        sys.path.remove(str(CSRC))
    asked = os.environ.get("LMMBLOCKS_CUDA_ARCHS")
    os.environ["LMMBLOCKS_CUDA_ARCHS"] = ";".join(map(str, ARCHITECTURES))
    try:
        objects = build.compile_all(ROOT / "build" / "csrc", __version__)
    except problem as error:
        raise CompileError(f"{error}\n{error.output}".strip()) from error
    finally:
        os.environ.pop("LMMBLOCKS_CUDA_ARCHS")
        if asked is not None:
            os.environ["LMMBLOCKS_CUDA_ARCHS"] = asked
    of_source = {path.relative_to(ROOT / "build" / "csrc").as_posix().split(".", 1)[0]: path for path in objects}
    found = [(source, of_source[source.relative_to(CSRC).with_suffix("").as_posix()]) for source in kernel_files()]
    return [Compiled(source, made, made.with_suffix(".log").read_text(encoding="utf-8")) for source, made in found]


def place(stem: str, sources: Iterable[Path], with_: Iterable[str], suffix: str) -> Path:
    """Return where the result of these sources is kept, ``stem-<hash>.suffix``; results of other contents are deleted."""
    digest = hashlib.sha256("\0".join(with_).encode())
    for path in sorted({file for source in sources for file in _closure(source)}):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    name = f"{stem}-{digest.hexdigest()[:16]}"
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob(f"{stem}-{'?' * 16}.*"):
        if not old.name.startswith(name):
            old.unlink(missing_ok=True)
    return KEPT / f"{name}.{suffix}"


def _closure(source: Path) -> set[Path]:
    """Return a file and all of ours that it includes."""
    found, waiting = set(), [source]
    while waiting:
        path = waiting.pop().resolve()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            places = [place for place in (path.parent / name, CSRC / name) if place.is_file()]
            waiting += [place for place in places[:1] if place.parent.name != "simt"]
    return found


def run(command: list[object], what: Path) -> str:
    """Run a compiler and return what it said; when it fails, that is the error."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(f"{what.relative_to(ROOT)} does not compile:\n{(done.stderr + done.stdout).strip()}")
    return done.stderr + done.stdout
