"""What this machine has, and what each op would run on it: the facts behind ``lmmblocks doctor``."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from shutil import which
from typing import Any

import torch

from .. import __version__
from ..kernels.verified import load
from ..ops.backend import backend
from ..ops.cuda_gate import extension_report
from ..ops.dispatch import ENVIRONMENT, consider, ladders
from ..ops.example_calls import Examples
from ..spec import LmmError
from ..spec.versions import requirements, too_old

PACKAGES = (
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "triton",
    "flash_attn",
    "flash_attn_3",
    "xformers",
    "liger_kernel",
    "timm",
    "open_clip_torch",
    "peft",
)
"""Distributions that change what can run; none is imported."""


@dataclass(frozen=True)
class Choice:
    """What ``auto`` does with one example call.

    Attributes:
        call: op, and the case where an op has several.
        op: the op.
        ladder: implementations, fastest first.
        set_to: what the environment variable forces, else ``auto``.
        taken: what ``auto`` takes; None when there is no example, or it could not be made.
        refused: implementation -> why ``auto`` passes it by, of all that it doesn't take because they refuse.
        problem: why nothing is known.
    """

    call: str
    op: str
    ladder: tuple[str, ...]
    set_to: str
    taken: str | None
    refused: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything ``lmmblocks doctor`` prints.

    Attributes:
        versions: name -> version, or a word why there is none.
        devices: one line per GPU; empty without one.
        extension: whether ``lmmblocks._C`` is built, why it can't be used, and for what it was built.
        device: where the example calls were made.
        environment: the variable that forces implementations; None when it isn't set.
        problems: what is set up wrongly.
        verified: kernel -> where, when and how exactly it was proven.
        choices: per example call.
    """

    versions: dict[str, str]
    devices: list[str]
    extension: dict[str, Any]
    device: str
    environment: str | None
    problems: list[str]
    verified: dict[str, list[str]]
    choices: list[Choice]

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)


def examine() -> Report:
    """Look at the machine, and consider an example call of every op; nothing runs, nothing optional is imported unless a GPU asks for it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = os.environ.get(ENVIRONMENT)
    problems = _older_versions()
    try:
        forced = {op: backend.chosen(op) for op in ladders()}
    except LmmError as error:
        problems.append(str(error))
        forced = dict.fromkeys(ladders(), "auto")
    verified, damage = _verified()
    choices = _choices(device, forced)
    return Report(_versions(), _devices(), extension_report(), device, environment, problems + damage, verified, choices)


def _versions() -> dict[str, str]:
    found = {
        "lmmblocks": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
    }
    found["cuda"] = torch.version.cuda or "none in this build of torch"
    found["cudnn"] = str(torch.backends.cudnn.version()) if torch.version.cuda else "none in this build of torch"
    found["driver"] = _driver()
    found["nvcc"] = which("nvcc") or "none found"
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _older_versions() -> list[str]:
    """Return what is older than lmmblocks or one of its extras declares."""
    extras = dict.fromkeys(need.extra for need in requirements())
    return [problem for extra in extras for problem in too_old(extra=extra)]


def _driver() -> str:
    if which("nvidia-smi") is None:
        return "none found"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi doesn't answer ({type(error).__name__})"
    return (done.stdout.split() or ["nvidia-smi names none"])[0]


def _devices() -> list[str]:
    lines = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        lines.append(
            f"{found.name}, compute capability {found.major}.{found.minor}, {found.multi_processor_count} multiprocessors, "
            f"{found.total_memory / 2**30:.0f} GiB"
        )
    return lines


def _verified() -> tuple[dict[str, list[str]], list[str]]:
    try:
        runs = load()
    except (OSError, ValueError) as error:
        return {}, [f"the record of proven kernels can't be read: {error}"]
    kernels: dict[str, list[str]] = {}
    for run in runs:
        where = f"{run.capability[0]}.{run.capability[1]} ({run.device}, {run.date}, largest error {run.max_error:.1e})"
        kernels.setdefault(run.kernel, []).append(where)
    return kernels, []


def _choices(device: str, forced: dict[str, str]) -> list[Choice]:
    names, calls = ladders(), Examples(device).calls
    labels = [*calls, *(op for op in names if op not in calls)]
    return [_choice(label, calls.get(label), names, forced) for label in sorted(labels)]


def _choice(label: str, call: Callable[[], Any] | None, names: dict[str, tuple[str, ...]], forced: dict[str, str]) -> Choice:
    op = label.partition(" ")[0]
    ladder, set_to = names.get(op, ()), forced.get(op, "auto")
    if call is None:
        return Choice(label, op, ladder, set_to, None, problem="there is no example call")
    try:
        found = consider(call)
    except Exception as error:  # a broken installation is what this is for: told, not raised
        problem = f"the example call failed with {type(error).__name__}: {error}"
        return Choice(label, op, ladder, set_to, None, problem=problem)
    taken = next((name for name, verdict in found.verdicts if verdict is True), None)
    refused = {name: str(verdict) for name, verdict in found.verdicts if verdict is not True}
    return Choice(label, op, ladder, set_to, taken, refused)
