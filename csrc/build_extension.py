"""Builds ``lmmblocks._C``: every ``.cu`` file by nvcc alone, ``bind.cpp`` by g++, linked by g++ with the static CUDA runtime.

Imported by ``setup.py``; imports no torch and looks for no GPU. What it reads from the environment:

- ``LMMBLOCKS_CUDA_ARCHS``: compute capabilities without the dot, joined by ``;``. Default ``80;90``. The lowest is kept as PTX too, which newer
  GPUs compile when they first run it.
- ``LMMBLOCKS_SKIP_CUDA=1``: nothing is built.
- ``LMMBLOCKS_REQUIRE_CUDA=1``: whatever prevents the build is an error, as it is where ``build_ext`` is on the command line. Otherwise it is one
  printed line, lmmblocks installs without ``_C``, and ``_C.reason.txt`` in the package says why, for ``lmmblocks doctor``.
- ``CUDA_HOME``, ``CXX``: where the toolkit lies, and the C++ compiler, if not those of the PATH.

Objects lie in ``build/csrc``; the hash in the name of one is of all it was made from: compilers, flags, the source and what it includes of
ours. So what has not changed is not compiled again, wherever the checkout lies. Beside each is what its compiler said: registers and spills.

The build ID of ``_C`` is a hash of the sources. When an install in place builds none, an earlier ``_C`` of the same sources stays in the checkout,
whatever prevented the build; one of other sources is removed, as nothing else would tell that it isn't of these.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cuda_toolkit import BuildError, Toolkit, find_compilers, find_toolkit, run
from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CSRC = Path(__file__).resolve().parent
NAME = "lmmblocks._C"
OLDEST_ARCH, DEFAULT_ARCHS = 80, "80;90"
BYTES_PER_JOB = 2 << 30
"""Of memory, for one nvcc: an estimate."""

COMMANDS = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}
"""Of setup.py, those that build; pip calls it for metadata too."""

REASON = "_C.reason.txt"
"""In the package, where there is no ``_C``: why the last build made none. Read by ``lmmblocks/ops/cuda_gate.py``."""

SKIPPED = "LMMBLOCKS_SKIP_CUDA was set"

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
HASH_LENGTH, BUILD_ID_LENGTH = 16, 40
NVCC_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden")
CXX_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall")


@dataclass(frozen=True)
class Compilation:
    """One source, how it is compiled, and to which object."""

    command: tuple[str, ...]
    source: Path
    object: Path


def extensions() -> list[Extension]:
    """Return what ``setup`` shall build: ``_C``, or nothing where that is impossible; an error where it was asked for."""
    if not COMMANDS & set(sys.argv) or not (CSRC / "bind.cpp").is_file():
        return []
    archs()
    skip, require = flag("LMMBLOCKS_SKIP_CUDA"), flag("LMMBLOCKS_REQUIRE_CUDA")
    if skip and require:
        sys.exit("error: LMMBLOCKS_SKIP_CUDA and LMMBLOCKS_REQUIRE_CUDA are both set: unset one of them")
    reason = obstacle()
    if reason is None:
        return [Extension(NAME, [os.path.relpath(CSRC / "bind.cpp", CSRC.parent)])]
    if reason != SKIPPED:
        insist(reason)
    return []


def obstacle() -> str | None:
    """Return why nothing will be compiled, as far as that is known before."""
    if flag("LMMBLOCKS_SKIP_CUDA"):
        return SKIPPED
    try:
        find_compilers()
    except BuildError as error:
        return str(error)
    return None


class BuildPython(build_py):
    """Copies the modules; setuptools runs no ``build_ext`` where it knows of no extension, so why there is none is told here."""

    def run(self) -> None:
        """Copy them, and tell."""
        super().run()
        reason = None if self.distribution.ext_modules else obstacle()
        if reason:
            do_without(reason, _package(self), self.editable_mode, str(self.distribution.get_version()))


class BuildCuda(build_ext):
    """Compiles and links ``_C``; when that fails, the rest of the package is installed all the same, unless ``_C`` was asked for."""

    def run(self) -> None:
        """Build it, and record why not, or that there is nothing to record."""
        package, in_place, version = _package(self), bool(self.inplace), str(self.distribution.get_version())
        reason = None if self.extensions else obstacle()
        try:
            super().run()
        except BuildError as error:
            if error.output:
                print(error.output, file=sys.stderr)
            reason = str(error)
            insist(reason)
            self.inplace, self.extensions, self.distribution.ext_modules = in_place, [], []
        if reason:
            do_without(reason, package, in_place, version)
        else:
            (package / REASON).unlink(missing_ok=True)

    def build_extension(self, ext: Extension) -> None:
        """Build the one extension there is."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.unlink(missing_ok=True)
        version = str(self.distribution.get_version())
        link(compile_all(CSRC.parent / "build" / "csrc", version), target, build_id(version))


def _package(command: BuildPython | BuildCuda) -> Path:
    """Return where a command puts what belongs to the package: into the checkout, or into the folder that becomes a wheel."""
    in_place = command.editable_mode or getattr(command, "inplace", False)
    return (CSRC.parent if in_place else Path(command.build_lib)) / "lmmblocks"


def insist(reason: str) -> None:
    """End with an error where ``_C`` was asked for; nothing in the checkout has changed."""
    if flag("LMMBLOCKS_REQUIRE_CUDA"):
        sys.exit(f"error: LMMBLOCKS_REQUIRE_CUDA is set, but {reason}")
    if "build_ext" in sys.argv:
        sys.exit(f"error: build_ext was asked for, but {reason} (to build no {NAME}, set LMMBLOCKS_SKIP_CUDA=1)")


def do_without(reason: str, package: Path, in_place: bool, version: str) -> None:
    """Say and record why no ``_C`` was built; an earlier one in the checkout stays if it is of these sources, and is removed otherwise."""
    module, record = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", package / REASON
    older = in_place and module.is_file()
    if older and bytes.fromhex(build_id(version)) in module.read_bytes():
        record.unlink(missing_ok=True)
        if reason != SKIPPED:
            say(f"lmmblocks: its CUDA kernels were not built again, as {reason}; {module.name}, built earlier of the same sources, stays")
        return
    module.unlink(missing_ok=True)
    package.mkdir(parents=True, exist_ok=True)
    record.write_text(f"{reason}\n", encoding="utf-8")
    gone = f"; {module.name} of an earlier build is removed: it is of other sources" if older else ""
    if gone or reason != SKIPPED:
        say(f"lmmblocks: installed without its CUDA kernels, as {reason}; everything else works{gone}")


def say(line: str) -> None:
    """Print a line where a person sees it: pip shows the output of a build that succeeds only with -v, so it goes to the terminal if there is one."""
    try:
        terminal = os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        print(line, file=sys.stderr, flush=True)
    else:
        with os.fdopen(terminal, "w") as stream:
            stream.write(f"\n{line}\n")


def flag(name: str) -> bool:
    """Return whether a variable is set to 1; unset, empty and 0 are no."""
    found = os.environ.get(name, "")
    if found not in ("", "0", "1"):
        sys.exit(f"error: {name}={found!r}: expected 0 or 1")
    return found == "1"


def archs() -> list[int]:
    """Return the architectures to compile for, lowest first."""
    text = os.environ.get("LMMBLOCKS_CUDA_ARCHS") or DEFAULT_ARCHS
    found = [word.strip() for word in text.split(";")]
    if not all(re.fullmatch(r"\d{2,3}", word) and int(word) >= OLDEST_ARCH for word in found):
        sys.exit(
            f"error: LMMBLOCKS_CUDA_ARCHS={text!r}: expected compute capabilities of at least {OLDEST_ARCH} without a dot, joined by ';', "
            f"such as {DEFAULT_ARCHS!r} for A100 and H100"
        )
    return sorted({int(word) for word in found})


def known_archs(toolkit: Toolkit) -> list[int]:
    """Return the architectures to compile for, all of which nvcc knows."""
    told = run([toolkit.nvcc, "--list-gpu-arch"], "nvcc does not run")
    known = sorted(int(number) for number in re.findall(r"^compute_(\d+)$", told, re.MULTILINE))
    unknown = [number for number in archs() if number not in known]
    if unknown:
        usable = ", ".join(str(number) for number in known if number >= OLDEST_ARCH) or "none of ours"
        reason = f"nvcc {toolkit.version} does not compile for {', '.join(map(str, unknown))}: set LMMBLOCKS_CUDA_ARCHS to some of {usable}"
        if os.environ.get("LMMBLOCKS_CUDA_ARCHS"):
            sys.exit(f"error: {reason}")
        raise BuildError(reason)
    return archs()


def compile_all(folder: Path, version: str) -> list[Path]:
    """Compile what has changed, in parallel, and return all objects."""
    nvcc, compiler = find_compilers()
    toolkit = find_toolkit(nvcc)
    work = compilations(toolkit, compiler, folder, version)
    stale = [one for one in work if not one.object.is_file()]
    kernels = sum(one.source.suffix == ".cu" for one in stale)
    if kernels:
        say(f"lmmblocks: compiling {kernels} files of CUDA kernels, {jobs()} at a time; LMMBLOCKS_SKIP_CUDA=1 installs without them")
    with ThreadPoolExecutor(jobs()) as pool:
        list(pool.map(_compile, stale))
    return [one.object for one in work]


def compilations(toolkit: Toolkit, compiler: list[str], folder: Path, version: str) -> list[Compilation]:
    """Return how every source is compiled, and the object below ``folder`` that comes of it."""
    import pybind11

    numbers = known_archs(toolkit)
    names = [*(f"sm_{number}" for number in numbers), f"compute_{numbers[0]}"]
    code = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers[1:]]
    code.append(f"-gencode=arch=compute_{numbers[0]},code=[sm_{numbers[0]},compute_{numbers[0]}]")
    compilers = f"nvcc {toolkit.version}, {run([*compiler, '--version'], 'the C++ compiler does not run').splitlines()[0]}"
    facts = {"LMM_VERSION": version, "LMM_ARCHS": ";".join(names), "LMM_COMPILERS": compilers}
    bind = (*compiler, *CXX_FLAGS, *(f'-D{name}="{value}"' for name, value in facts.items()))
    headers = (pybind11.get_include(), *sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")}), str(toolkit.include))
    places = tuple(word for path in headers for word in ("-isystem", path))
    device = (toolkit.nvcc, *NVCC_FLAGS, "-Xptxas", "-v", *code)

    def compilation(source: Path, command: tuple[str, ...], places: tuple[str, ...], *rest: str) -> Compilation:
        # Not in the hash: where pip unpacks pybind11, which is another folder each time.
        name = source.relative_to(CSRC).with_suffix(f".{_hash_of(source, *command, compilers, *rest)}.o")
        return Compilation((*command, *places), source, folder / name)

    return [
        compilation(CSRC / "bind.cpp", bind, places, pybind11.__version__, sys.version),
        *(compilation(source, device, ()) for source in sources(".cu")),
    ]


def sources(*suffixes: str) -> list[Path]:
    """Return the files of csrc with one of the endings, less the emulator's, which only tests compile."""
    return sorted(path for path in CSRC.rglob("*") if path.suffix in suffixes and path.relative_to(CSRC).parts[0] != "simt")


def build_id(version: str) -> str:
    """Return the hash of what ``_C`` is made of, whatever compiles it, as the hexadecimal digits that the linker writes into it."""
    facts = (version, *NVCC_FLAGS, *CXX_FLAGS)
    hashes = [_hash_of(source, *facts) for source in (CSRC / "bind.cpp", *sources(".cu"))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:BUILD_ID_LENGTH]


def jobs() -> int:
    """Return how many compilers may run at once."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_PER_JOB))


def _hash_of(source: Path, *rest: str) -> str:
    """Return the hash of other facts, a source, and every file it includes of ours."""
    found, waiting = {source}, [source]
    while waiting:
        path = waiting.pop()
        for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
            includes = {place.resolve() for place in (path.parent / name, CSRC / name) if place.is_file()} - found
            includes = {place for place in includes if place.relative_to(CSRC).parts[0] != "simt"}
            found |= includes
            waiting += includes
    parts = [part for path in sorted(found) for part in (str(path.relative_to(CSRC)), path.read_text(encoding="utf-8"))]
    return hashlib.sha256("\0".join([*rest, *parts]).encode()).hexdigest()[:HASH_LENGTH]


def _compile(one: Compilation) -> None:
    """Make an object, never half of one, and remove those of the source as it was before."""
    folder, stem = one.object.parent, one.source.stem
    partial = folder / f"{stem}.{os.getpid()}.partial.o"
    folder.mkdir(parents=True, exist_ok=True)
    words = [*one.command, "-I", str(CSRC), "-c", str(one.source), "-o", str(partial)]
    try:
        said = run(words, f"{Path(words[0]).name} failed on csrc/{one.source.relative_to(CSRC)}")
        for old in folder.glob(f"{stem}.{'?' * HASH_LENGTH}.*"):
            old.unlink(missing_ok=True)
        one.object.with_suffix(".log").write_text(said, encoding="utf-8")
        partial.replace(one.object)
    finally:
        partial.unlink(missing_ok=True)


def link(objects: Sequence[Path], target: Path, identity: str) -> None:
    """Link objects and the static runtime to a module that exports nothing but its initialisation, with ``identity`` as its build ID."""
    nvcc, compiler = find_compilers()
    target.parent.mkdir(parents=True, exist_ok=True)
    runtime = find_toolkit(nvcc).library / "libcudart_static.a"
    options = ["-shared", "-Wl,--exclude-libs,ALL", f"-Wl,--version-script={CSRC / 'exports.map'}", f"-Wl,--build-id=0x{identity}"]
    partial = target.with_suffix(f".{os.getpid()}.partial")
    try:
        run([*compiler, *options, *map(str, objects), str(runtime), "-ldl", "-lrt", "-lpthread", "-o", str(partial)], "linking failed")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
