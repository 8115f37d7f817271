"""Verdicts on faults, one a line of a JSON-lines file, and what they add up to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

CAUGHT, MISSED, INVALID, EQUIVALENT = "caught", "missed", "invalid", "equivalent"


@dataclass(frozen=True)
class Verdict:
    """What became of a fault.

    Attributes:
        verdict: ``caught``, ``missed``, ``invalid`` (it doesn't compile, or its test fails without it too) or ``equivalent``.
        by: the test that caught it.
        reason: why it was missed, is invalid or changes nothing.
        key: what the verdict follows from, see ``Fault.key``.
    """

    suite: str
    name: str
    kind: str
    source: str
    verdict: str
    by: str
    reason: str
    seconds: float
    key: str


def read(path: Path) -> dict[str, Verdict]:
    """Return the latest verdict on each fault by its name; a line that was cut short is passed over."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            verdict = Verdict(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[verdict.name] = verdict
    return found


def append(path: Path, verdict: Verdict) -> None:
    """Add a line at once: a run that is ended loses nothing."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(verdict)) + "\n")


def write(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Replace the file by one line for each fault."""
    path.write_text("".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts))


def table(verdicts: Iterable[Verdict]) -> str:
    """Return the scores of suites and kinds, then each miss with its reason.

    The score is of real faults: planted ones without those that change nothing or don't compile.
    """
    verdicts = list(verdicts)
    lines = [f"{'':<34} planted   real caught missed equivalent invalid  score"]
    for suite in dict.fromkeys(verdict.suite for verdict in verdicts):
        of_suite = [verdict for verdict in verdicts if verdict.suite == suite]
        lines.append(_line(suite, of_suite))
        for kind in sorted({verdict.kind for verdict in of_suite}):
            lines.append(_line(f"  {kind}", [verdict for verdict in of_suite if verdict.kind == kind]))
    for word in (MISSED, INVALID, EQUIVALENT):
        lines += [f"{word}: {v.name} ({v.source}): {v.reason}" for v in verdicts if v.verdict == word]
    return "\n".join(lines)


def _line(title: str, verdicts: list[Verdict]) -> str:
    count = Counter(verdict.verdict for verdict in verdicts)
    real = count[CAUGHT] + count[MISSED]
    score = f"{count[CAUGHT] / real:6.1%}" if real else "     -"
    return f"{title:<34} {len(verdicts):>7} {real:>6} {count[CAUGHT]:>6} {count[MISSED]:>6} {count[EQUIVALENT]:>10} {count[INVALID]:>7} {score}"
