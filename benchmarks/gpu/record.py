"""What a run leaves behind: rows of a CSV, and the entries of ``kernels/verified.json``."""

from __future__ import annotations

import csv
import datetime
import json
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .case import is_cuda
from .correctness import Verdict
from .sanitize import Outcome

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


def write_outcomes(path: Path, outcomes: Iterable[Outcome], about: dict[str, str]) -> None:
    """Write what the sanitizer's tools said, likewise."""
    cells = [{"tool": each.tool, "kernel": each.kernel, "outcome": each.text} for each in outcomes]
    _write(path, ["tool", "kernel", "outcome"], cells, about)


def read_outcomes(path: Path) -> list[dict[str, str]]:
    """Return what an earlier run wrote by :func:`write_outcomes`; nothing where none did."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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


def write_verified(
    found: list[Verdict], about: dict[str, str], capability: tuple[int, int], path: Path = VERIFIED,
    accused: Collection[str] = (), unfinished: Collection[str] = (),
) -> list[str]:  # fmt: skip
    """Record each kernel all of whose checks passed; return their names. A kernel that failed loses its entry for this capability.

    Args:
        found: the verdicts of a run.
        about: of :func:`environment`.
        capability: of the device.
        path: the record.
        accused: kernels that the sanitizer complained about: they failed too.
        unfinished: kernels for whose checks there was no time: nothing new is known, unless one failed.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    kernels = {verdict.check.kernel for verdict in found}
    failed = {verdict.check.kernel for verdict in found if verdict.problem} | set(accused)
    passed = sorted(kernels - failed - set(unfinished))
    runs = [run for run in record["runs"] if not (run["kernel"] in failed.union(passed) and run["capability"] == list(capability))]
    for kernel in passed:
        worst = max(v.error for v in found if v.check.kernel == kernel)
        compiler = COMPILERS if is_cuda(kernel.partition(".")[2]) else "triton"
        used = {name: about[name] for name in ("torch", compiler) if name in about}
        run = {"kernel": kernel, "device": about["device"], "capability": list(capability), "date": about["date"]}
        runs.append({**run, "versions": used, "max_error": worst})
    runs.sort(key=lambda run: (run["kernel"], run["capability"]))
    lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    path.write_text('{"schema": 1, "runs": [' + (f"\n{lines}\n" if runs else "") + "]}\n", encoding="utf-8")
    return passed


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # a machine without git
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
