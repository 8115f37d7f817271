"""A fault to plant: one passage of one source file replaced by another, and the tests that should notice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """One textual replacement.

    Attributes:
        name: unique over all suites.
        kind: what is wrong, in a word or two: the score is also told by kind.
        right: the passage, which must occur exactly once in the source.
        wrong: what stands there instead.
        equivalent: why the replacement changes nothing that anybody could see; such faults are not counted.
        unseen: why no test can see a fault that does change something; for the report, it counts as missed.
        source: the file, from the root of the checkout.
        tests: files or tests that are run, the fastest and likeliest first.
    """

    name: str
    kind: str
    right: str
    wrong: str
    equivalent: str = ""
    unseen: str = ""
    source: str = ""
    tests: tuple[str, ...] = ()

    def planted_in(self, text: str) -> str:
        """Return the source with the fault.

        Raises:
            ValueError: the passage isn't there, or more than once: the source has changed, and the fault has to follow it.
        """
        count = text.count(self.right)
        if count != 1:
            raise ValueError(f"fault {self.name!r}: expected {self.right!r} once in {self.source}, found it {count} times: follow the source")
        return text.replace(self.right, self.wrong)

    def key(self, root: Path, by: str = "") -> str:
        """Return what the verdict follows from, as a hash: the source, the fault, its tests and what they share; ``by``: the one that caught it."""
        tests, files = (by,) if "::" in by else self.tests, {root / self.source}
        for test in tests:
            path = root / test.partition("::")[0]
            files |= {path, *(folder / "conftest.py" for folder in path.relative_to(root).parents)}
        texts = [path.read_text() for path in sorted(root / file for file in files) if path.is_file()]
        return hashlib.sha256("\0".join([self.right, self.wrong, *tests, *texts]).encode()).hexdigest()[:16]


def in_file(source: str, tests: str, *faults: Fault) -> list[Fault]:
    """Return faults of one source; ``tests``, apart by spaces, are those of every fault that names none."""
    return [replace(fault, source=source, tests=fault.tests or tuple(tests.split())) for fault in faults]


def run_by(tests: str, *faults: Fault) -> list[Fault]:
    """Return faults that these tests should notice, not those of their file."""
    return [replace(fault, tests=tuple(tests.split())) for fault in faults]
