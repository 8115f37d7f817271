"""A call from its options to its report."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .journal import CALL, Event, Journal

RESERVE_S = 8.0
"""Of the budget: for the report, and for processes to go."""

ABOUT_S = 60.0
"""That the device may take to say what it is."""

MADE_UP = "REHEARSAL: times and rates are made up, and CUDA kernels may be stood for by the reference; nothing here says anything of a GPU"
VERIFIED, LOG, REPORT = "verified.json", "log.txt", "report.txt"
CACHE, PEERS = "triton_cache", "peers"
IDENTITY = ("device", "capability", "source", "torch", "triton")


def run(options: argparse.Namespace, began: float) -> int:
    """Make one call; 1 when something is wrong, 2 when it can't run here."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.resume is not None and not (options.out / "journal.jsonl").is_file():
        shutil.copytree(options.resume, options.out, dirs_exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lmmblocks-gpu-") as scratch, logged(options.out / LOG) as (screen, ending):
        cached = prepared(options, Path(scratch), screen)
        from .cuda_kernels import cuda_alone
        from .machine import Gpu
        from .rehearsal import Fault, Rehearsal
        from .suites_by_name import SUITES, loaded

        machine = Rehearsal(options.out, Fault(*options.plant) if options.plant else None) if options.rehearse else Gpu(options.out)
        about = asked(machine.about)
        if isinstance(about, str):
            screen(f"can't run here: {about}")
            return 2
        everything = machine.suites(loaded(SUITES))
        chosen = {name: cuda_alone(everything[name]) if options.cuda_only else everything[name] for name in options.only}
        return _worked(options, began, machine, about, everything, chosen, cached, screen, ending)


def _worked(
    options: argparse.Namespace, began: float, machine: Any, about: Event, everything: dict[str, Any], chosen: dict[str, Any], cached: bool,
    screen: Callable[[str], None], ending: Callable[[], None],
) -> int:  # fmt: skip
    from . import record, report
    from .call import Call
    from .steps import stages

    journal = Journal(options.out)
    journal.mend()
    identity = {name: about.get(name) for name in IDENTITY}
    events = journal.events(identity)
    work = stages(chosen, about["arch"], options, cached)
    screen("  ".join(f"{name} {value}" for name, value in about.items()))
    if options.rehearse:
        screen(MADE_UP)
    for line in report.plan_of(work, events, options.budget_s - RESERVE_S):
        screen(line)
    if options.plan:
        return 0
    expected = record.expected_items(everything.values())
    journal.append(CALL, identity=identity, about=about, budget_s=options.budget_s)
    journal.fresh()

    def tell(event: Event) -> None:
        line = report.line_of(event)
        if line:
            screen(f"{time.monotonic() - began:5.0f} {line}")
        if event["event"] in ("verdict", "sanitized"):
            record.update_verified(options.out / VERIFIED, events, expected, about)

    record.update_verified(options.out / VERIFIED, events, expected, about)
    try:
        Call(chosen, machine, journal, events, began + options.budget_s - RESERVE_S, tell, screen, ending).run(work)
    finally:
        lines = report.summary_of(chosen, work, events, about)
        (options.out / REPORT).write_text("\n".join(lines) + "\n", encoding="utf-8")
        for line in [*lines, *([MADE_UP] if options.rehearse else [])]:
            screen(line)
        screen(f"\n{time.monotonic() - began:.0f} s; results are in {options.out}; the same command goes on with what is missing")
    return int(wrong(events))


def wrong(events: list[Event]) -> bool:
    """Return whether a kernel or an instruction was found to be wrong."""
    from .journal import results
    from .record import accused

    return bool(accused(events)) or any(event.get("problem") for event in results(events).values() if event["event"] in ("verdict", "instruction"))


def recorded(options: argparse.Namespace) -> int:
    """Enter what a folder holds into the checkout's record and data, and print its report."""
    from . import record, report
    from .rehearsal import DEVICE
    from .steps import stages
    from .suites_by_name import SUITES, loaded

    events = Journal(options.out).events()
    about = next((event["about"] for event in reversed(events) if event["event"] == CALL), None)
    if about is None or about["device"] == DEVICE:
        print(f"nothing to record: {options.out} holds " + ("no results" if about is None else "a rehearsal"))
        return 2
    if about["source"] != record.source_of(record.ROOT):
        print("not recorded: the results are of other sources than this checkout's (csrc, kernels, lmmblocks, benchmarks/gpu)")
        return 2
    suites = loaded(SUITES)
    record.update_verified(record.VERIFIED, events, record.expected_items(suites.values()), about)
    table = record.DATA / f"gpu_{about['device'].lower().replace(' ', '_')}.csv"
    record.write_csv(table, record.rows_of(events), about)
    print("\n".join(report.summary_of(suites, stages(suites, about["arch"], options, True), events, about)))
    print(f"\nrecorded in {record.VERIFIED} and {table}")
    return int(wrong(events))


def prepared(options: argparse.Namespace, scratch: Path, screen: Callable[[str], None]) -> bool:
    """Set up the process before torch and Triton are imported; return whether Triton finds kernels that were compiled beforehand."""
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    if options.wheels is not None:
        for wheel in sorted(options.wheels.glob("*-none-any.whl")):
            zipfile.ZipFile(wheel).extractall(scratch / PEERS)
        places = [str(scratch / PEERS), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
        sys.path.append(places[0])
    if options.triton_cache is None or options.rehearse:
        return False
    from .triton_cache import unpacked

    os.environ["TRITON_CACHE_DIR"] = str(scratch / CACHE)
    count, problem = unpacked(options.triton_cache, scratch / CACHE)
    screen(f"Triton: {count} kernels compiled beforehand{f'; not used: {problem}' if problem else ''}")
    return not problem


def asked(question: Callable[[], Event]) -> Event | str:
    """Return what a process of its own answers, as this one must not touch the device; or why it doesn't."""
    import multiprocessing

    from .machine import problem_of

    def answer(pipe: Any) -> None:
        try:
            pipe.send(question())
        except BaseException as error:
            pipe.send(problem_of(error))

    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=answer, args=(there,))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(ABOUT_S) else f"the device said nothing for {ABOUT_S:.0f} s"
    except EOFError:
        return "the process that asks the device died"
    finally:
        process.kill()
        process.join()


@contextmanager
def logged(path: Path) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Give what prints a line, and writes it to the log, and what ends the call if that was asked for, so that the report is still written.

    A request is remembered until then: an exception raised in the handler would be lost where it meets what runs around a fork.
    """
    requests: list[int] = []

    def ends(number: int, frame: Any) -> None:
        requests.append(number)

    def ending() -> None:
        if requests:
            number = requests[-1]
            requests.clear()
            raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, ends)
    try:
        with path.open("a", encoding="utf-8", buffering=1) as file:

            def screen(line: str) -> None:
                print(line, flush=True)
                file.write(f"{line}\n")

            yield screen, ending
    finally:
        signal.signal(signal.SIGTERM, before)
