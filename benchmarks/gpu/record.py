"""What a run leaves behind: rows of a CSV, and the entries of ``kernels/verified.json``."""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .case import Suite, is_cuda
from .journal import Event, results
from .steps import check_items

ROOT = Path(__file__).parents[2]
VERIFIED = ROOT / "kernels" / "verified.json"
DATA = ROOT / "benchmarks" / "data"
PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy", "xformers", "flash-attn")
COMPILERS = "compilers"
"""Key of what compiled the CUDA kernels, where they take part."""


@dataclass(frozen=True)
class Row:
    """One measured (or not measured) provider of one timing."""

    op: str
    shape: str
    mode: str
    provider: str
    ms_median: float | None = None
    ms_p20: float | None = None
    ms_p80: float | None = None
    host_us: float | None = None
    peak_mb: float | None = None
    share_of_copy: float | None = None
    share_of_gemm: float | None = None
    note: str = ""


def environment(device: torch.device) -> dict[str, str]:
    """Device, versions, commit and date, the same for every row of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, **versions(), "commit": _commit(), "date": datetime.date.today().isoformat()}


def versions() -> dict[str, str]:
    """Versions of everything installed that takes part."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_csv(path: Path, rows: Iterable[Row], about: dict[str, str]) -> None:
    """Write rows with the environment beside each."""
    _write(path, [field.name for field in fields(Row)], [asdict(row) for row in rows], about)


def _write(path: Path, names: list[str], rows: Iterable[dict[str, object]], about: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = {"device": about["device"], "commit": about["commit"], "date": about["date"]}
    shared["versions"] = " ".join(f"{name}={about[name]}" for name in PACKAGES if name in about)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names, *shared])
        writer.writeheader()
        for row in rows:
            writer.writerow({**{name: _cell(value) for name, value in row.items()}, **shared})


def _cell(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else value


def rows_of(events: Iterable[Event]) -> list[Row]:
    """Return the rows of a journal, with their shares of the ceilings of the same journal."""
    found = results(events).values()
    limits = next((event for event in found if event["event"] == "ceilings" and "copy_bytes_per_s" in event), {})
    return [_row(event, limits) for event in found if event["event"] == "row"]


def _row(event: Event, limits: Event) -> Row:
    known = {field.name: event[field.name] for field in fields(Row) if field.name in event}
    seconds = (event.get("ms_median") or 0.0) * 1e-3
    if not seconds or not limits:
        return Row(**known)
    copy = event["bytes"] / seconds / limits["copy_bytes_per_s"] if event["bytes"] else None
    gemm = event["flops"] / seconds / limits["gemm_flops_per_s"] if event["flops"] else None
    return Row(**known, share_of_copy=copy, share_of_gemm=gemm)


def expected_items(suites: Iterable[Suite]) -> dict[str, set[str]]:
    """Return for each kernel the checks that it must pass, all of them, to be recorded."""
    found: dict[str, set[str]] = {}
    for suite in suites:
        for cuda in (False, True):
            for item, about in check_items(suite, cuda).items():
                found.setdefault(about["kernel"], set()).add(item)
    return found


def own_verdicts(events: Iterable[Event], arch: str) -> list[Event]:
    """Return the verdicts about what runs on this device: not those of a build for another one."""
    return [event for event in results(events).values() if event["event"] == "verdict" and event["arch"] in ("", arch)]


def accused(events: Iterable[Event]) -> set[str]:
    """Return the kernels that the sanitizer complains about."""
    return {each["kernel"] for event in events if event["event"] == "sanitized" for each in event.get("outcomes", []) if each["problem"]}


def verified_runs(runs: list[Event], events: list[Event], expected: dict[str, set[str]], about: Event) -> list[Event]:
    """Return the record after what a journal found: kernels that passed all checks enter, those that failed one leave, others stay as they are.

    Args:
        runs: the record's entries.
        events: of the journal.
        expected: of :func:`expected_items`.
        about: of the device: its name, ``capability``, ``arch``, date and versions.
    """
    found = own_verdicts(events, about["arch"])
    failed = {event["kernel"] for event in found if event["problem"]} | accused(events)
    good = {event["item"] for event in found if not event["problem"]}
    passed = [kernel for kernel, items in expected.items() if items <= good and kernel not in failed]
    kept = [run for run in runs if not (run["kernel"] in failed.union(passed) and run["capability"] == about["capability"])]
    return sorted([*kept, *(_entry(kernel, found, about) for kernel in passed)], key=lambda run: (run["kernel"], run["capability"]))


def _entry(kernel: str, found: list[Event], about: Event) -> Event:
    mine = [event for event in found if event["kernel"] == kernel]
    compiler = COMPILERS if is_cuda(kernel.partition(".")[2]) else "triton"
    known = {**about, **mine[0]}
    used = {name: known[name] for name in ("torch", compiler) if name in known}
    run = {"kernel": kernel, "device": about["device"], "capability": about["capability"], "date": about["date"]}
    return {**run, "versions": used, "max_error": max(event["error"] for event in mine)}


def update_verified(path: Path, events: list[Event], expected: dict[str, set[str]], about: Event) -> None:
    """Bring a record up to date, whole or not at all; where there is none, beginning from the checkout's."""
    record = json.loads((path if path.is_file() else VERIFIED).read_text(encoding="utf-8"))
    runs = verified_runs(record["runs"], events, expected, about)
    lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text('{"schema": 1, "runs": [' + (f"\n{lines}\n" if runs else "") + "]}\n", encoding="utf-8")
    partial.replace(path)


def source_of(root: Path) -> str:
    """Return a hash of everything that results are about: where it changes, they are of something else."""
    digest = hashlib.sha256()
    for folder in ("csrc", "kernels", "lmmblocks", "benchmarks/gpu"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh", ".h", ".cpp"):
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # a machine without git
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
