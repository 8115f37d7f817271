"""Which GPU kernel was proven on which device: the reader of ``verified.json``.

A kernel that was never run on a GPU of some compute capability is not chosen there by ``backend="auto"``. The file beside this one is the
only record; a run of the GPU tests adds entries to it, nobody writes them by hand. Its form::

    {"schema": 1,
     "runs": [{"kernel": "rms_norm.triton",                 # "<op>.<implementation>"
               "device": "NVIDIA A100-SXM4-80GB",
               "capability": [8, 0],
               "date": "2026-01-31",                         # day of the run, ISO 8601
               "versions": {"torch": "2.11.0", "triton": "3.6.0"},
               "max_error": 1.5e-3}]}                        # largest absolute difference from the reference

Registers nothing and imports neither torch nor Triton.
"""

from __future__ import annotations

import datetime
import functools
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SCHEMA = 1
RECORD = Path(__file__).with_name("verified.json")


@dataclass(frozen=True)
class Verification:
    """One kernel that passed its tests on one device.

    Attributes:
        kernel: ``"<op>.<implementation>"``, for example ``rms_norm.triton``.
        device: the device's name as the driver gives it.
        capability: compute capability, ``(major, minor)``.
        date: day of the run.
        versions: package -> version it ran with.
        max_error: largest absolute difference from the reference that the tests saw.
    """

    kernel: str
    device: str
    capability: tuple[int, int]
    date: datetime.date
    versions: dict[str, str]
    max_error: float


def is_verified(kernel: str, capability: tuple[int, int]) -> bool:
    """Return whether ``kernel`` passed its tests on a device of exactly this compute capability.

    >>> is_verified("rms_norm.nobody_wrote_this", (8, 0))
    False
    """
    return any(run.kernel == kernel and run.capability == tuple(capability) for run in load())


@functools.cache
def load(path: Path = RECORD) -> tuple[Verification, ...]:
    """Return every entry of the record, in the order of the file.

    Args:
        path: another record of the same form.

    Raises:
        ValueError: the file is not of this form; the message names the entry and the field.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not isinstance(record.get("runs"), list):
        raise ValueError(f"{path}: expected {{'schema': {SCHEMA}, 'runs': [...]}}, found {str(record)[:80]}")
    return tuple(_verification(f"{path}: run {index}", run) for index, run in enumerate(record["runs"]))


def _verification(where: str, run: Any) -> Verification:
    expected = {field.name for field in fields(Verification)}
    if not isinstance(run, dict) or set(run) != expected:
        found = sorted(run) if isinstance(run, dict) else run
        raise ValueError(f"{where}: expected exactly the fields {sorted(expected)}, found {found}")
    kernel, capability, versions = run["kernel"], run["capability"], run["versions"]
    if not isinstance(kernel, str) or kernel.count(".") != 1:
        raise ValueError(f"{where}: kernel must be '<op>.<implementation>', found {kernel!r}")
    if not isinstance(capability, list) or [type(n) for n in capability] != [int, int]:
        raise ValueError(f"{where}: capability must be [major, minor], found {capability!r}")
    if not isinstance(versions, dict) or "torch" not in versions:
        raise ValueError(f"{where}: versions must name at least torch, found {versions!r}")
    try:
        date, max_error = datetime.date.fromisoformat(run["date"]), float(run["max_error"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: date must be YYYY-MM-DD and max_error a number: {error}") from error
    return Verification(kernel, str(run["device"]), (capability[0], capability[1]), date, dict(versions), max_error)
