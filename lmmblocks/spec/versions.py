"""The oldest versions that lmmblocks runs with, as ``pyproject.toml`` declares them, against those that are installed.

pip looks at these bounds once, when it installs lmmblocks; what is installed later may be older, and then fails somewhere in the middle. The
bounds are read from the metadata of the installed package, so they stand in one place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from .errors import LmmError

_REQUIREMENT = re.compile(r"""(?P<package>[\w.-]+)(?:\[[^\]]*\])?>=(?P<oldest>[\d.]+)(?:\s*;.*?extra == ["'](?P<extra>[\w-]+)["'].*)?""")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")


@dataclass(frozen=True)
class Requirement:
    """What ``pyproject.toml`` says of a package.

    Attributes:
        package: name of the distribution.
        oldest: the first version that will do.
        extra: the extra that asks for it; None = lmmblocks itself.
    """

    package: str
    oldest: str
    extra: str | None


def requirements() -> tuple[Requirement, ...]:
    """Return every package that lmmblocks or one of its extras asks for; empty where lmmblocks runs without being installed."""
    try:
        declared = requires("lmmblocks") or []
    except PackageNotFoundError:
        return ()
    found = (_REQUIREMENT.fullmatch(line) for line in declared)
    return tuple(Requirement(match["package"], match["oldest"], _underscored(match["extra"])) for match in found if match)


def too_old(*, extra: str | None = None) -> list[str]:
    """Return a sentence for each installed package that is older than declared.

    Args:
        extra: look at the packages of this extra; None = at those that lmmblocks itself needs.
    """
    return [sentence for need in requirements() if need.extra == extra and (sentence := _problem(need))]


def refuse_older_versions() -> None:
    """Look at what is installed beside lmmblocks.

    Raises:
        LmmError: something is older than lmmblocks needs; all of it is listed.
    """
    problems = too_old()
    if problems:
        raise LmmError("; ".join(problems))


def refuse_older_than(oldest: str, package: str, what: str) -> None:
    """Look at the version of a package that a part of lmmblocks needs newer than the whole does.

    Args:
        oldest: the first version that will do.
        package: name of the distribution.
        what: the part, in the message.

    Raises:
        LmmError: what is installed is older.
    """
    if _older(package, oldest):
        raise LmmError(f"{what} needs {package} {oldest} or newer, {version(package)} is installed: pip install --upgrade '{package}>={oldest}'")


def release(text: str) -> tuple[int, ...]:
    """Return the numbers of a version; a build before a release, as vendors ship, counts as the release.

    >>> release("2.6.0a0+ecf3bae40a.nv25.01"), release("4.50")
    ((2, 6, 0), (4, 50))
    """
    found = _RELEASE.match(text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _problem(need: Requirement) -> str | None:
    package, oldest = need.package, need.oldest
    if not _older(package, oldest):
        return None
    return f"{package} {version(package)} is installed, lmmblocks needs {oldest} or newer: pip install --upgrade '{package}>={oldest}'"


def _older(package: str, oldest: str) -> bool:
    try:
        found, needed = release(version(package)), release(oldest)
    except PackageNotFoundError:  # importing it says so
        return False
    width = max(len(found), len(needed))
    return bool(found) and _padded(found, width) < _padded(needed, width)


def _underscored(extra: str | None) -> str | None:
    """Return an extra as ``pyproject.toml`` writes it; metadata has hyphens."""
    return extra and extra.replace("-", "_")


def _padded(numbers: tuple[int, ...], width: int) -> tuple[int, ...]:
    return numbers + (0,) * (width - len(numbers))


if __name__ == "__main__":  # constraints for pip: everything as old as it may be
    print("\n".join(f"{need.package}=={need.oldest}" for need in requirements()))
