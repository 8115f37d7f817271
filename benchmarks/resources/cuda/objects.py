"""Compile the files of ``csrc/`` once for each content, and keep what was found in ``build/resources/``.

What a file is compiled from is its text, that of every header it includes, the compiler and the flags: the name of a kept result is their hash. So a
second run compiles nothing, and a changed header compiles what includes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .toolchain import ARCHITECTURES, CSRC, ROOT, Toolchain

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


def compiled(tools: Toolchain) -> list[Compiled]:
    """Compile every kernel file, as many at once as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: _compiled(source, tools), kernel_files()))


def _compiled(source: Path, tools: Toolchain) -> Compiled:
    generate = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    options = [*tools.flags, *generate, "-Xptxas", "-v", "-I", str(CSRC)]
    stem = source.relative_to(CSRC).with_suffix("").as_posix().replace("/", "-")
    target = place(stem, [source], [tools.version, *options], "o")
    log = target.with_suffix(".log")
    if not (target.exists() and log.exists()):
        partial = target.with_suffix(f".{os.getpid()}.o")
        log.write_text(run([tools.nvcc, "-c", source, "-o", partial, *options], source), encoding="utf-8")
        partial.replace(target)
    return Compiled(source, target, log.read_text(encoding="utf-8"))


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
