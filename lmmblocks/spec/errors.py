"""A mistake the user can mend, and how messages name what was meant and list what was found."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Sequence

_NAMED_AT_MOST = 8


class LmmError(ValueError):
    """A mistake the user can mend: says what was found, what was expected and what to change.

    The command line prints it without a traceback and exits with 2.
    """

    def at(self, place: str) -> LmmError:
        """Return the same error, of the same class, with the place where it was met in front.

        >>> print(LmmError("found 3, expected 2").at("sample 'a'"))
        sample 'a': found 3, expected 2
        """
        placed = copy.copy(self)
        placed.args = (f"{place}: {self}",)
        return placed


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, else an empty string.

    Args:
        name: what was written.
        known: what could have been.
        cutoff: how alike they must be, difflib's ratio.

    >>> closest("vicunna_v1", ["plain", "vicuna_v1"])
    "; did you mean 'vicuna_v1'?"
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {match[0]!r}?" if match else ""


def refuse_unknown(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Refuse names that nobody reads, all of them in one message, each with the closest known one.

    Args:
        what: what they are names of, as the beginning of the message.
        names: what was written.
        known: what could have been.

    >>> refuse_unknown("stage: unknown keys", ["sed"], ["seed", "name"])
    Traceback (most recent call last):
    lmmblocks.spec.errors.LmmError: stage: unknown keys 'sed'; did you mean 'seed'?; known: seed, name
    """
    unknown = [f"{name!r}{closest(str(name), known)}" for name in names if name not in known]
    if unknown:
        raise LmmError(f"{what} {', '.join(unknown)}; known: {', '.join(known) or 'none'}")


def first_line(error: BaseException) -> str:
    """Return what an exception says in its first line, its name if it says nothing.

    >>> first_line(OSError("no space\\nleft"))
    'no space'
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def some(names: list[str]) -> str:
    """Return the first few names of a list, and how many more there are.

    >>> some(["a", "b"])
    'a, b'
    """
    rest = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")
