"""Budgets of compiled kernels: what a kernel may use at most, kept in a JSON file beside the kernels.

A budget is the most (registers, spills, ...) and the least (CTAs of a multiprocessor, wide accesses, ...) that a kernel may use and still pass.
``--write`` makes it exactly what this run found. ``--widen`` makes it the worse of what stood there and what this run found: so one budget covers
several compilers, each of which has been run once. Either way only what was compiled in this run is touched, and what was not launched any more
goes. Two runs at the same time lose nothing of each other: the file is read, changed and replaced under a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Entries = dict[str, dict[str, Any]]
"""Key of a kernel -> its figures and the versions of the compiler they hold for."""


@dataclass(frozen=True)
class Budgets:
    """One file of budgets.

    Attributes:
        file: where they are kept.
        at_most: figures of which more is worse.
        at_least: figures of which less is worse.
        compiler: name under which an entry lists the compiler's versions.
        command: what a user runs to write them.
    """

    file: Path
    at_most: tuple[str, ...]
    at_least: tuple[str, ...]
    compiler: str
    command: str

    def read(self) -> Entries:
        """Return the committed budgets."""
        return json.loads(self.file.read_text(encoding="utf-8"))["kernels"] if self.file.exists() else {}

    def write(self, found: Mapping[str, Any], version: str, stale: Iterator[str] | set[str] = frozenset(), *, widen: bool = False) -> None:
        """Make what was found the budgets of these kernels, or widen theirs to cover it, and remove the stale ones."""
        with _locked(self.file.parent):
            old = self.read()
            kept = {key: entry for key, entry in old.items() if key not in set(stale)}
            new = {key: self.entry(used, version, kept.get(key) if widen else None) for key, used in found.items()}
            self._replace(kept | new)

    def entry(self, found: Any, version: str, old: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the budget of what was found (a dataclass), widened by an older one if there is any."""
        new = {**asdict(found), self.compiler: [version]}
        if old is not None:
            new |= {name: max(new[name], old[name]) for name in self.at_most}
            new |= {name: min(new[name], old[name]) for name in self.at_least}
            new[self.compiler] = sorted({*old[self.compiler], version})
        return new

    def exceeded(self, key: str, budget: dict[str, Any] | None, found: Any) -> Iterator[str]:
        """Yield each way in which a kernel breaks its budget."""
        if budget is None:
            yield f"{key}: has no budget: look at the table, then write one with `{self.command} --write`"
            return
        values = asdict(found)
        for name in self.at_most:
            if values[name] > budget[name]:
                yield f"{key}: {name} {values[name]}, budget at most {budget[name]}"
        for name in self.at_least:
            if values[name] < budget[name]:
                yield f"{key}: {name} {values[name]}, budget at least {budget[name]}"

    def problems(self, found: Mapping[str, Any], stale: set[str]) -> list[str]:
        """Return every broken budget, and the budgets of kernels that are not there any more."""
        budgets = self.read()
        broken = [line for key, used in found.items() for line in self.exceeded(key, budgets.get(key), used)]
        return broken + [f"{key}: has a budget but is not launched any more: `{self.command} --write` removes it" for key in sorted(stale)]

    def _replace(self, entries: Entries) -> None:
        """Write sorted, one kernel a line, so that a reader sees the old file or the new one."""
        lines = [f"  {json.dumps(key)}: {json.dumps(entries[key])}" for key in sorted(entries)]
        partial = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        partial.write_text('{"schema": 1, "kernels": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
        partial.replace(self.file)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; it is released when the process ends, however that happens."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
