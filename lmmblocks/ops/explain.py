"""How a choice between implementations is told: one op at a time, the reasons beneath it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

HEADER = ("op", "set to", "ran last", "ladder, and why not what stands before")


def table(
    rows: Sequence[tuple[str, str, Sequence[str], str, Sequence[tuple[str, str]]]],
    width: int,
    header: Sequence[str] = HEADER,
) -> str:
    """Return aligned text.

    Args:
        rows: op, what it is set to, names on its ladder, the one that runs, and ``(name, reason)`` of those that refused.
        width: columns; names are never broken, so very few columns are exceeded.
        header: titles of the four columns; the ladder and the reasons share the last one.
    """
    starts = [tuple(header[:3]), *((op, forced, taken) for op, forced, _, taken, _ in rows)]
    widths = [max(len(start[i]) for start in starts) for i in range(3)]
    margin = " " * (sum(widths) + 6)
    lines = _wrapped(header[3], "  ".join((*map(str.ljust, starts[0], widths), "")), margin, width)
    for start, (_, _, names, _, refused) in zip(starts[1:], rows):
        first = "  ".join((*map(str.ljust, start, widths), ""))
        lines += _wrapped(" > ".join(names), first, margin, width)
        for who, reason in grouped(refused):
            lines += _wrapped(f"{who}: {reason}", margin, margin + "  ", width)
    return "\n".join(line.rstrip() for line in lines)


def grouped(refused: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join the names of those that give the same reason.

    >>> grouped([("a", "too wide"), ("b", "absent"), ("c", "too wide")])
    [('a, c', 'too wide'), ('b', 'absent')]
    """
    names: dict[str, list[str]] = {}
    for name, reason in refused:
        names.setdefault(reason, []).append(name)
    return [(", ".join(each), reason) for reason, each in names.items()]


def _wrapped(text: str, first: str, rest: str, width: int) -> list[str]:
    fitting = max(width, len(rest) + 24)
    return textwrap.wrap(
        text,
        fitting,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
