"""Plants faults one at a time, runs their tests and says what became of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from .fault import Fault
from .scratch import Copy, Run
from .verdicts import CAUGHT, EQUIVALENT, INVALID, MISSED, Verdict


def judge_all(
    faults: Sequence[tuple[str, Fault]], root: Path, folder: Path, *, jobs: int, limit_s: float, told: Callable[[Verdict], None]
) -> list[Verdict]:
    """Judge faults, each in a copy of the checkout.

    Args:
        faults: with the suite of each.
        root: the checkout.
        folder: where the copies lie.
        jobs: copies at work side by side.
        limit_s: a run of tests that takes longer hangs.
        told: is given each verdict as soon as it is known.

    Returns:
        The verdicts in the order of the faults.
    """
    copies: SimpleQueue[Copy] = SimpleQueue()
    made = [Copy(root, folder / str(number)) for number in range(min(jobs, len(faults)))]
    for copy in made:
        copies.put(copy)
    sound = _Sound(limit_s)

    def judge(given: tuple[str, Fault]) -> Verdict:
        copy, (suite, fault), begin = copies.get(), given, time.monotonic()
        try:
            word, by, reason = _found(fault, copy, limit_s, sound)
        finally:
            copies.put(copy)
        seconds, key = round(time.monotonic() - begin, 1), fault.key(copy.root, by)
        verdict = Verdict(suite, fault.name, fault.kind, fault.source, word, by, reason, seconds, key)
        told(verdict)
        return verdict

    try:
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(judge, faults))
    finally:
        for copy in made:
            copy.close()


class _Sound:
    """Which tests pass without any fault: only these can catch one.

    Args:
        limit_s: see :func:`judge_all`.

    Attributes:
        failing: those that are known not to.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._passing, self.failing = limit_s, set[str](), set[str]()

    def passes(self, test: str, copy: Copy) -> bool:
        """Say whether a test passes in a copy without a fault; it is run once."""
        if test not in self._passing | self.failing:
            (self.failing if copy.run([test], self._limit_s).failed else self._passing).add(test)
        return test in self._passing


def _found(fault: Fault, copy: Copy, limit_s: float, sound: _Sound) -> tuple[str, str, str]:
    """Return the verdict on a fault, the test that caught it, and the reason if none did."""
    while True:
        with copy.planted(fault):
            if problem := _python_problem(copy.root / fault.source):
                return INVALID, "", problem
            run = copy.run(fault.tests, limit_s, without=sorted(sound.failing))
        if run.broken:
            return INVALID, "", run.broken
        if not run.failed:
            break
        if "::" not in run.failed:
            passes = not copy.run(fault.tests, limit_s, without=sorted(sound.failing)).failed
            return (CAUGHT, run.failed, "") if passes else (INVALID, run.failed, "the tests end so without the fault too")
        if sound.passes(run.failed, copy):
            return CAUGHT, run.failed, ""
    if sound.failing and "passed" not in run.summary:
        return INVALID, "", f"its tests fail without the fault too, such as {min(sound.failing)}"
    if fault.equivalent:
        return EQUIVALENT, "", fault.equivalent
    return MISSED, "", fault.unseen or _unseen(fault, run, sound)


def _unseen(fault: Fault, run: Run, sound: _Sound) -> str:
    broken = [test for test in sorted(sound.failing) if test.partition("::")[0] in " ".join(fault.tests)]
    left_out = f", without {broken[0]}{f' and {len(broken) - 1} more' if broken[1:] else ''}: without the fault they fail too" if broken else ""
    return f"no test of {' '.join(fault.tests)} looks at it ({run.summary.strip('= ')}{left_out})"


def _python_problem(path: Path) -> str:
    """Why a Python file doesn't compile, or nothing."""
    if path.suffix != ".py":
        return ""
    try:
        compile(path.read_text(), str(path), "exec")
    except SyntaxError as error:
        return f"SyntaxError: {error}"
    return ""
