"""A copy of the checkout in which one fault at a time is planted; the checkout itself is only read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .fault import Fault

COPIED = ("benchmarks", "csrc", "docs", "examples", "kernels", "lmmblocks", "tests")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.so", ".hypothesis")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", re.MULTILINE)
COMPILER = re.compile(r"^\S+\.(?:cuh|cu|h|cpp)(?::\d+:\d+|\(\d+\)): (?:fatal )?error: (.*)$", re.MULTILINE)
SERVER = Path(__file__).with_name("warm.py")
STATIC = "static assertion failed"


@dataclass(frozen=True)
class Run:
    """How a run of tests ended.

    Attributes:
        failed: the first test that failed, or what else ended the run; "" = all passed.
        broken: why the program can't be run at all: it doesn't compile.
        summary: pytest's last line.
    """

    failed: str
    broken: str
    summary: str


class Copy:
    """A copy of a checkout in a folder of its own, with a folder for temporary files beside it.

    Args:
        root: the checkout.
        folder: where the copy lies; what is there already is brought up to date.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.temporary = folder / "checkout", folder / "tmp"
        self._server: subprocess.Popen[str] | None = None
        if self.root.exists():
            shutil.rmtree(self.root)
        self.root.mkdir(parents=True)
        self.temporary.mkdir(exist_ok=True)
        for path in root.iterdir():
            if path.is_dir() and path.name in COPIED:
                shutil.copytree(path, self.root / path.name, symlinks=True, ignore=LEFT_OUT)
            elif path.is_file() and path.name != ".git":
                shutil.copy2(path, self.root)

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        """The copy has the fault inside."""
        path = self.root / fault.source
        text = path.read_text()
        path.write_text(fault.planted_in(text))
        try:
            yield
        finally:
            path.write_text(text)

    def run(self, tests: Sequence[str], limit_s: float, *, without: Sequence[str] = ()) -> Run:
        """Run tests in the copy, up to the first that fails.

        Args:
            tests: files or tests.
            limit_s: seconds after which they hang.
            without: tests that are left out.

        Raises:
            RuntimeError: a test that isn't there.
        """
        options = ["-q", "-x", "-p", "no:cacheprovider", "--tb=short", *(f"--deselect={test}" for test in without), *self._seed()]
        code, output = self._in_fork([*options, *tests], limit_s)
        return Run(f"no end within {limit_s:.0f} s", "", "") if code is None else self._read(code, output)

    def _in_fork(self, arguments: list[str], limit_s: float) -> tuple[int | None, str]:
        """Return pytest's exit code, None where it had to be ended, and what it said."""
        if self._server is None:
            command, pipe = [sys.executable, "-c", SERVER.read_text()], subprocess.PIPE
            self._server = subprocess.Popen(command, cwd=self.root, env=self._environment(), text=True, stdin=pipe, stdout=pipe)
        assert self._server.stdin is not None and self._server.stdout is not None
        said = self.temporary / "output.txt"
        self._server.stdin.write(json.dumps({"arguments": arguments, "output": str(said)}) + "\n")
        self._server.stdin.flush()
        process, ended = int(self._server.stdout.readline()), threading.Event()

        def end() -> None:
            ended.set()
            os.killpg(process, signal.SIGKILL)

        timer = threading.Timer(limit_s, end)
        timer.start()
        code = int(self._server.stdout.readline())
        timer.cancel()
        return None if ended.is_set() else code, said.read_text(errors="replace")

    def close(self) -> None:
        """End the process that runs the tests."""
        if self._server is not None:
            self._server.communicate()

    def _read(self, code: int, output: str) -> Run:
        summary = output.strip().rpartition("\n")[2]
        if code == 4:
            raise RuntimeError(f"tests that aren't there:\n{output}")
        errors = COMPILER.findall(output)
        if broken := next((error for error in errors if STATIC not in error), None):
            return Run("", broken, summary)
        if errors:
            return Run(f"a static_assert: {errors[0].partition(STATIC)[2].strip(': ')}", "", summary)
        if code in (0, 5):  # 5: all were left out
            return Run("", "", summary)
        found = FAILED.search(output)
        return Run(found[1] if found else f"the process, which ended with {code} (below 0: a signal)", "", summary)

    def _environment(self) -> dict[str, str]:
        # No .pyc: one of the fault, as old and as long as the source, would be taken for the source's.
        own = {"PYTHONPATH": str(self.root), "TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        # Set before Triton is imported, or its own functions are compiled ones: the tests set it only once the server has imported Triton.
        interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
        return interpret | os.environ | own

    def _seed(self) -> list[str]:
        try:
            import hypothesis  # noqa: F401
        except ImportError:
            return []
        return ["--hypothesis-seed=0"]
