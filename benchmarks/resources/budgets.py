"""Budgets of compiled kernels: what a kernel may use at most, kept in ``kernels/resources.json``.

A budget is the most (registers, spills, shared memory) and the least (CTAs of a multiprocessor, wide accesses, tensor-core instructions) that
any of the Triton versions it was written with gave. Compilers differ by a few registers, so an unknown version is held to the same budget.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .compile import Resources

FILE = Path(__file__).parents[2] / "kernels" / "resources.json"
AT_MOST = ("registers", "spill_bytes", "shared_bytes", "fp64_ops")
AT_LEAST = ("ctas_per_sm", "loads_128", "stores_128", "matrix_ops")

Budgets = dict[str, dict[str, Any]]
"""``"family / case / kernel / sm_80"`` -> ``{"warps", "triton", registers, ...}``."""


def read(path: Path = FILE) -> Budgets:
    """Return the committed budgets."""
    return json.loads(path.read_text(encoding="utf-8"))["kernels"] if path.exists() else {}


def write(budgets: Budgets, path: Path = FILE) -> None:
    """Write budgets, sorted, one kernel a line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(budgets[key])}" for key in sorted(budgets)]
    path.write_text('{"schema": 1, "kernels": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def widened(budget: dict[str, Any] | None, found: Resources, triton_version: str) -> dict[str, Any]:
    """Return a budget that also covers what was found with one more version of Triton; a version seen before starts it anew."""
    fresh = {**asdict(found), "triton": [triton_version]}
    if budget is None or budget["triton"] == [triton_version]:
        return fresh
    for name in AT_MOST:
        fresh[name] = max(fresh[name], budget[name])
    for name in AT_LEAST:
        fresh[name] = min(fresh[name], budget[name])
    fresh["triton"] = sorted({*budget["triton"], triton_version})
    return fresh


def exceeded(key: str, budget: dict[str, Any] | None, found: Resources) -> Iterator[str]:
    """Yield each way in which a kernel breaks its budget."""
    if budget is None:
        yield f"{key}: has no budget: look at the table, then write one with `python -m benchmarks.resources --write`"
        return
    values = asdict(found)
    for name in AT_MOST:
        if values[name] > budget[name]:
            yield f"{key}: {name} {values[name]}, budget at most {budget[name]}"
    for name in AT_LEAST:
        if values[name] < budget[name]:
            yield f"{key}: {name} {values[name]}, budget at least {budget[name]}"
