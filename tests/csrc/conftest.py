"""Builds the kernels of `csrc/` for the CPU: g++ compiles the same sources against the emulator in `csrc/simt/`.

Objects are kept below the system's temporary folder under a hash of all they were made from, so a test session compiles what changed; a file
lock lets parallel workers build once. Without g++ or pybind11 what needs them is skipped, and says so.
"""

import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import mmap
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"
CACHE = Path(tempfile.gettempdir()) / f"lmmblocks-emulated-{os.getuid()}"
DAYS_KEPT = 3
FLAGS = [
    *("-std=c++17", "-O2", "-fPIC", "-DLMM_SIMT", f"-I{CSRC}", "-Wno-unknown-pragmas"),
    "-fno-strict-aliasing",  # kernels look at shared memory as several types, which nvcc takes
    "-ffp-contract=off",  # the same bits on every machine
    "-fno-gnu-unique",  # each library has an emulator of its own
    "-fvisibility=hidden",
]
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


@functools.cache
def compiler() -> str:
    """The path of g++; skips the test where there is none."""
    found = os.environ.get("CXX") or shutil.which("g++")
    return found or pytest.skip("the emulator of CUDA kernels is built with g++, which was not found")


@functools.cache
def compiler_version() -> str:
    done = subprocess.run([compiler(), "-dumpfullversion"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@functools.cache
def compiler_flags() -> list[str]:
    """FLAGS, and where the compiler can: variables that nobody wrote start as values that no result survives."""
    return [*FLAGS, *(["-ftrivial-auto-var-init=pattern"] if int(compiler_version().split(".")[0]) >= 12 else [])]


def closure(source: Path, text: str) -> dict[Path, str]:
    """The source and every file of csrc that it includes, with their contents."""
    found, waiting = {source: text}, [(source, text)]
    while waiting:
        place, content = waiting.pop()
        for name in INCLUDE.findall(content):
            path = next((base / name for base in (CSRC, place.parent) if (base / name).is_file()), None)
            if path and path not in found:
                found[path] = path.read_text()
                waiting.append((path, found[path]))
    return found


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@contextmanager
def locked(name: str):
    """One process at a time; the cache folder exists inside."""
    CACHE.mkdir(mode=0o700, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def made(target: Path, command: list[str]) -> Path:
    """The file `target`, made by `command -o target` unless it is there. Never half written."""
    if target.exists():
        os.utime(target)
    else:
        partial = target.with_name(f"{target.stem}.{os.getpid()}{target.suffix}")
        run([*command, "-o", str(partial)])
        partial.rename(target)
    return target


def compiled(source: Path, *flags: str) -> Path:
    """The object of one source, from the cache or fresh."""
    files = closure(source, source.read_text())
    contents = [f"{path}\0{text}" for path, text in sorted(files.items())]
    key = digest(compiler(), compiler_version(), *compiler_flags(), *flags, *contents)
    command = [compiler(), *compiler_flags(), *flags, "-c", "-x", "c++", str(source)]
    return made(CACHE / f"{source.stem}-{key}.o", command)


def forget_old() -> None:
    for path in CACHE.glob("*-*"):
        if path.stat().st_mtime < time.time() - DAYS_KEPT * 86400:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def emulated_extension() -> Path:
    """The path of `_C`, emulated: `bind.cpp` and every .cu file of csrc, linked."""
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("the emulated extension is bound with pybind11, which is not installed")
    import pybind11

    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    sources = [CSRC / "bind.cpp", *sorted((CSRC / "simt").glob("*.cpp")), *sorted(CSRC.rglob("*.cu"))]
    compiler()
    with locked("extension"), ThreadPoolExecutor(2) as pool:
        forget_old()
        objects = [str(path) for path in pool.map(lambda source: compiled(source, *includes), sources)]
        folder = CACHE / f"extension-{digest(sys.version, *objects)}"
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        return made(folder / "_C.so", [compiler(), "-shared", *objects])


@pytest.fixture(scope="module")
def cuda_emulation(emulated_extension):
    """Forced `backend="cuda"` serves CPU tensors within the module; gives the emulated `_C`."""
    from lmmblocks.ops import cuda_gate

    def forget():
        cuda_gate._loaded.cache_clear()
        cuda_gate.launcher.cache_clear()
        cuda_gate.extension_problem.cache_clear()
        cuda_gate._device_refusal.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cuda_gate.EMULATION, str(emulated_extension))
        forget()
        yield cuda_gate.extension(torch.device("cpu"))
    forget()


@pytest.fixture
def emulator_counts(emulated_extension):
    """`emulator_counts("mma", "copies")`: how often the emulated `_C` did these since the test began (csrc/simt/probe.cpp lists the names)."""
    library = ctypes.CDLL(str(emulated_extension))
    library.lmm_simt_count.restype = ctypes.c_int64
    library.lmm_simt_reset()

    def counts(*names: str) -> list[int]:
        found = [library.lmm_simt_count(name.encode()) for name in names]
        assert min(found, default=0) >= 0, f"one of {names} is not counted"
        return found

    return counts


@pytest.fixture(scope="session")
def host_library():
    """`host_library(source)`: C++ text that includes headers of csrc, compiled by g++ with the emulator and loaded by ctypes.

    Functions to call are declared `extern "C" LMM_EXPORT`.
    """

    def load(source: str, *flags: str) -> ctypes.CDLL:
        source = f'#define LMM_EXPORT __attribute__((visibility("default")))\n{source}'
        compiler()
        with locked("host"):
            path = CACHE / f"host-{digest(source)}.cpp"
            path.write_text(source)
            library = compiled(path, *flags)
            return ctypes.CDLL(str(made(library.with_suffix(".so"), [compiler(), "-shared", str(library)])))

    return load


@pytest.fixture(scope="session")
def index(host_library):
    """The index arithmetic of csrc/attention, compiled for the host: attention_index.cpp."""
    return host_library(Path(__file__).with_name("attention_index.cpp").read_text())


@pytest.fixture(params=range(6), ids=lambda seed: f"seed{seed}")
def simt_seed(request, monkeypatch):
    """Runs the test under six orders of threads and moments of copies (csrc/simt/schedule.h)."""
    monkeypatch.setenv("LMM_SIMT_SEED", str(request.param))
    return request.param


@pytest.fixture(scope="session")
def fenced():
    """`fenced(tensor)`: a copy whose last byte is the last that can be touched: the emulator refuses to read past it.

    It is 16-byte aligned when its size is.
    """
    libc = ctypes.CDLL(None)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    regions = []

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        if size == 0:
            return tensor.clone()
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        region = mmap.mmap(-1, pages + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(region))
        assert libc.mprotect(start + pages, mmap.PAGESIZE, 0) == 0
        regions.append(region)  # stays for the session: the tensor does not own it
        flat = torch.frombuffer(region, dtype=tensor.dtype, count=tensor.numel(), offset=pages - size)
        return flat.view(tensor.shape).copy_(tensor)

    return copy


@pytest.fixture
def fenced_outputs(fenced, monkeypatch):
    """`with fenced_outputs():` what a launch allocates by `new_empty` is NaN (integers: their lowest), its last byte the last to be touched."""

    @contextmanager
    def allocating():
        plain = torch.Tensor.new_empty

        def new_empty(self, *size, **options):
            made = plain(self, *size, **options)
            return fenced(made.fill_(float("nan") if made.is_floating_point() else torch.iinfo(made.dtype).min))

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "new_empty", new_empty)
            yield

    return allocating
