"""Installations to look at: copies of the checkout, interpreters of their own, and what runs in them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ("lmmblocks", "kernels", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
OURS = ("PYTHONPATH", "LMMBLOCKS_SKIP_CUDA", "LMMBLOCKS_REQUIRE_CUDA", "LMMBLOCKS_CUDA_ARCHS", "LMMBLOCKS_CUDA_EMULATION", "LMMBLOCKS_BACKEND")
"""Variables of this process that no installation sees."""


@dataclass(frozen=True)
class Installation:
    """An interpreter, the checkout it was installed from, and the environment variables it needs."""

    python: Path
    checkout: Path
    environment: dict[str, str] = field(default_factory=dict)

    def attempt(self, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter; offline, and without a terminal, to which an installation would write."""
        kept = {key: value for key, value in os.environ.items() if key not in OURS}
        pip = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
        everything = {**kept, "PYTHONDONTWRITEBYTECODE": "1", **pip, **self.environment, **environment}
        command = [str(self.python), *words]
        return subprocess.run(command, cwd=cwd, env=everything, capture_output=True, text=True, timeout=900, start_new_session=True)

    def run(self, *words: str, cwd: Path, **environment: str) -> str:
        """Return what the interpreter prints; it must succeed."""
        done = self.attempt(*words, cwd=cwd, **environment)
        assert done.returncode == 0, f"{words} in {cwd} left with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *options: str, **environment: str) -> str:
        """Install the checkout as the documentation says: without build isolation and dependencies."""
        always = ["--no-deps", "--no-build-isolation", "--ignore-installed"]
        return self.run("-m", "pip", "install", *always, *options, cwd=self.checkout.parent, **environment)

    @property
    def site_packages(self) -> Path:
        """Where packages are installed."""
        (folder,) = self.python.parent.parent.glob("lib/python*/site-packages")
        return folder


def _copy_checkout(target: Path) -> Path:
    """Copy what setup.py packages, so that a build writes nothing into the checkout under test."""
    target.mkdir(parents=True)
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "_C.*"))
        else:
            shutil.copy(ROOT / name, target / name)
    return target


def _fresh_interpreter(folder: Path) -> Path:
    """Make a virtual environment that sees this one's packages (torch, pip, setuptools) but not its editable installs.

    It also has somebody else's package named ``kernels``, as Hugging Face's is.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    outer = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site_packages / "outer.pth").write_text("".join(f"{path}\n" for path in outer))
    (site_packages / "kernels").mkdir()
    (site_packages / "kernels" / "__init__.py").write_text("OWNER = 'somebody else'\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def copy_checkout() -> Callable[[Path], Path]:
    """`copy_checkout(target)`: what setup.py packages, nothing built."""
    return _copy_checkout


@pytest.fixture(scope="session")
def new_installation(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Installation]:
    """`new_installation(name, checkout=a fresh copy, **environment)`: an interpreter of its own; nothing is installed yet."""

    def make(name: str, checkout: Path | None = None, **environment: str) -> Installation:
        folder = tmp_path_factory.mktemp(name)
        return Installation(_fresh_interpreter(folder / "venv"), checkout or _copy_checkout(folder / "checkout"), environment)

    return make


@pytest.fixture(scope="session")
def in_this_environment() -> Callable[..., Installation]:
    """`in_this_environment(checkout, **environment)`: the interpreter that runs the tests; nothing is to be installed."""
    return lambda checkout, **environment: Installation(Path(sys.executable), checkout, environment)


@pytest.fixture(scope="session")
def nvcc() -> str:
    """nvcc, where the build looks for it; what needs it is skipped without, and without the other tools of the build."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not found or not shutil.which("g++") or importlib.util.find_spec("pybind11") is None:
        pytest.skip("lmmblocks._C is built with nvcc, g++ and pybind11, one of which was not found")
    return found
