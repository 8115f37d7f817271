"""Builds ``lmmblocks._C``: every ``.cu`` file by nvcc alone, ``bind.cpp`` by g++, linked by g++ with the static CUDA runtime.

Imported by ``setup.py``; imports no torch and looks for no GPU. What it reads from the environment:

- ``LMMBLOCKS_CUDA_ARCHS``: compute capabilities without the dot, joined by ``;``. Default ``80;90``. The lowest is kept as PTX too, which newer
  GPUs compile when they first run it.
- ``LMMBLOCKS_SKIP_CUDA=1``: nothing is built.
- ``LMMBLOCKS_REQUIRE_CUDA=1``: whatever prevents the build is an error. Otherwise it is one printed line, and lmmblocks installs without ``_C``.
- ``CUDA_HOME``, ``CXX``: where the toolkit lies, and the C++ compiler, if not those of the PATH.

Objects lie in ``build/csrc``, each beside a key made of its command, its source and all headers: what has not changed is not compiled again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

CSRC = Path(__file__).resolve().parent
NAME = "lmmblocks._C"
OLDEST_ARCH, DEFAULT_ARCHS = 80, "80;90"
BYTES_PER_JOB = 2 << 30
"""Of memory, for one nvcc: an estimate."""

COMMANDS = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}
"""Of setup.py, those that build; pip calls it for metadata too."""

NVCC_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden")
CXX_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall")


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


def extensions() -> list[Extension]:
    """Return what ``setup`` shall build: ``_C``, or nothing, after saying why."""
    if not COMMANDS & set(sys.argv) or not (CSRC / "bind.cpp").is_file():
        return []
    archs()
    skip, require = flag("LMMBLOCKS_SKIP_CUDA"), flag("LMMBLOCKS_REQUIRE_CUDA")
    if skip and require:
        sys.exit("error: LMMBLOCKS_SKIP_CUDA and LMMBLOCKS_REQUIRE_CUDA are both set: unset one of them")
    if skip:
        return []
    try:
        find_compilers()
    except BuildError as error:
        give_up(error)
        return []
    return [Extension(NAME, [os.path.relpath(CSRC / "bind.cpp", CSRC.parent)])]


class BuildCuda(build_ext):
    """Compiles and links ``_C``; when that fails, the rest of the package is installed all the same."""

    def build_extension(self, ext: Extension) -> None:
        """Build the one extension there is."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.unlink(missing_ok=True)
        try:
            link(compile_all(CSRC.parent / "build" / "csrc", str(self.distribution.get_version())), target)
        except BuildError as error:
            give_up(error)
            self.extensions = self.distribution.ext_modules = []


def give_up(error: BuildError) -> None:
    """Say why there is no ``_C``, or end with it where it is required."""
    if error.output:
        print(error.output, file=sys.stderr)
    if flag("LMMBLOCKS_REQUIRE_CUDA"):
        sys.exit(f"error: LMMBLOCKS_REQUIRE_CUDA is set, but {error}")
    say(f"lmmblocks: installed without its CUDA kernels, as {error}; everything else works")


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
        raise BuildError("pybind11 is not installed, which a build without isolation needs")
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


def compile_all(folder: Path, version: str) -> list[Path]:
    """Compile what has changed, in parallel, and return all objects."""
    nvcc, compiler = find_compilers()
    toolkit, numbers = find_toolkit(nvcc), archs()
    names = [*(f"sm_{number}" for number in numbers), f"compute_{numbers[0]}"]
    code = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers[1:]]
    code.append(f"-gencode=arch=compute_{numbers[0]},code=[sm_{numbers[0]},compute_{numbers[0]}]")
    compilers = f"nvcc {toolkit.version}, {run([*compiler, '--version'], 'the C++ compiler does not run').splitlines()[0]}"
    facts = {"LMM_VERSION": version, "LMM_ARCHS": ";".join(names), "LMM_COMPILERS": compilers}
    bind = [*compiler, *CXX_FLAGS, *(f'-D{name}="{value}"' for name, value in facts.items()), *_bind_includes(toolkit)]
    device = [nvcc, *NVCC_FLAGS, *code]
    headers = hashlib.sha256(b"".join(path.read_bytes() for path in sources(".h", ".cuh"))).hexdigest()
    work = [(bind, CSRC / "bind.cpp"), *((device, source) for source in sources(".cu"))]
    with ThreadPoolExecutor(jobs()) as pool:
        return list(pool.map(lambda item: _compile(*item, folder, f"{compilers} {headers}"), work))


def sources(*suffixes: str) -> list[Path]:
    """Return the files of csrc with one of the endings, less the emulator's, which only tests compile."""
    return sorted(path for path in CSRC.rglob("*") if path.suffix in suffixes and path.relative_to(CSRC).parts[0] != "simt")


def jobs() -> int:
    """Return how many compilers may run at once."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_PER_JOB))


def _bind_includes(toolkit: Toolkit) -> list[str]:
    import pybind11

    folders = [pybind11.get_include(), *sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")}), str(toolkit.include)]
    return [word for folder in folders for word in ("-isystem", folder)]


def _compile(command: list[str], source: Path, folder: Path, surroundings: str) -> Path:
    target = folder / source.relative_to(CSRC).with_suffix(".o")
    key, seal = target.with_suffix(".key"), hashlib.sha256(source.read_bytes())
    seal.update("\0".join([*command, surroundings]).encode())
    if not (target.is_file() and key.is_file() and key.read_text() == seal.hexdigest()):
        key.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        words = [*command, "-I", str(CSRC), "-c", str(source), "-o", str(target)]
        run(words, f"{Path(command[0]).name} failed on csrc/{source.relative_to(CSRC)}")
        key.write_text(seal.hexdigest())
    return target


def link(objects: Sequence[Path], target: Path) -> None:
    """Link objects and the static runtime to a module that exports nothing but its initialisation."""
    nvcc, compiler = find_compilers()
    target.parent.mkdir(parents=True, exist_ok=True)
    runtime = find_toolkit(nvcc).library / "libcudart_static.a"
    options = ["-shared", "-Wl,--exclude-libs,ALL", f"-Wl,--version-script={CSRC / 'exports.map'}"]
    run([*compiler, *options, *map(str, objects), str(runtime), "-ldl", "-lrt", "-lpthread", "-o", str(target)], "linking failed")


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
