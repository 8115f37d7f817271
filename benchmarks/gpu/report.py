"""What a call prints: its plan, results as they come, and tables of kernels, predictions and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from .case import OURS, Suite, Target
from .journal import Event, results
from .predicted import EXPECTED, MACHINES, machine_of, range_ms
from .record import Row, expected_items, own_verdicts, rows_of
from .rehearsal import DEVICE as REHEARSED
from .steps import Stage, left
from .timing import GIGA, TERA

NOT_MEASURED = "not measured"


def line_of(event: Event) -> str:
    """Return what is printed when the journal gets an event; empty = nothing."""
    make = LINES.get(event["event"])
    return make(event) if make else ""


def _verdict(event: Event) -> str:
    where = f"{event['step'].partition(':')[0]:<7}{event['item']}"
    errors = f"error {_number(event.get('error'))}  torch {_number(event.get('torch_error'))}"
    apart = "" if event.get("apart") is None else f"from {event['peer']} {_number(event['apart'])}"
    return f"{'FAIL' if event['problem'] else 'ok  '} {where:<80} {errors}  {apart:<29}{event['problem']}".rstrip()


def _number(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.3g}"


def _outcome(event: Event) -> str:
    return f"{'FAIL' if event['problem'] else 'ok  '} {event['step']}: {event['item']} {event['problem']}".rstrip()


def _time(event: Event) -> str:
    place = f"     {event['op']:<22}{event['shape']:<38}{event['mode']:<8}{event['provider']:<26}"
    if event.get("ms_median") is None:
        return f"{place}{event.get('note') or NOT_MEASURED}"
    memory = "" if event["peak_mb"] is None else f"{event['peak_mb']:8.0f} MB"
    return f"{place}{event['ms_median']:9.4f} ms ({event['ms_p20']:.4f}-{event['ms_p80']:.4f})  host {event['host_us']:5.0f} us{memory}"


def _ceilings(event: Event) -> str:
    if "copy_bytes_per_s" not in event:
        return f"FAIL ceilings: {event['problem']}"
    return f"     copy {event['copy_bytes_per_s'] / GIGA:.0f} GB/s, bf16 GEMM {event['gemm_flops_per_s'] / TERA:.0f} TFLOP/s"


def _sanitized(event: Event) -> str:
    outcomes = [f"     {each['tool']:<12}{each['kernel']:<28}{each['text']}" for each in event.get("outcomes", [])]
    return "\n".join(outcomes) or f"     sanitizer: {event.get('problem') or 'nothing was said'}"


LINES: dict[str, Callable[[Event], str]] = {
    "verdict": _verdict,
    "instruction": _outcome,
    "built": _outcome,
    "profile": lambda event: f"{_outcome(event)} {event.get('file', '')}",
    "row": _time,
    "ceilings": _ceilings,
    "sanitized": _sanitized,
    "left out": lambda event: f"     {event['step']}: left out: {event['why']}",
    "end": lambda event: f"---- {event['step']}: {event['how']}, {event['made']} made in {event['seconds']:.1f} s",
}
"""By the name of an event."""


def plan_of(stages: Iterable[Stage], events: list[Event], budget_s: float) -> list[str]:
    """Return the table of what a call will do: steps, what is left of each, seconds that it should take, and whether there is time."""
    lines, spent = [f"{'':<5}{'step':<34}{'to do':>12}{'seconds':>9}{'until':>8}"], 0.0
    for stage in stages:
        todo = [(step, len(left(step, events))) for step in stage.steps]
        rest = replace(stage, steps=[replace(step, seconds=step.seconds * count / len(step.items)) for step, count in todo if count])
        spent += rest.seconds
        when = "" if not rest.steps else f"{spent:>8.0f}" + ("" if spent <= budget_s else "  as far as there is time; the rest by the next call")
        aside = f", {stage.lanes} at a time" if len(stage.steps) > 1 and stage.lanes > 1 else ""
        lines.append(f"{stage.title + aside:<51}{rest.seconds:>9.0f}{when}")
        for step, count in todo:
            done = "" if count else "  done by an earlier call"
            lines.append(f"{'':<5}{step.name:<34}{f'{count} of {len(step.items)}':>12}{step.seconds * count / len(step.items):>9.0f}{done}")
    return lines


def summary_of(suites: dict[str, Suite], stages: Iterable[Stage], events: list[Event], about: Event) -> list[str]:
    """Return the report of a journal: kernels, times beside what was predicted, targets, what is missing. A rehearsal has no times."""
    rehearsed = about["device"] == REHEARSED
    rows = [] if rehearsed else rows_of(events)
    targets = [target for suite in suites.values() for target in suite.targets]
    return [
        *_kernels(expected_items(suites.values()), events, about),
        *_predictions(rows, events, about),
        *(["", f"targets: {len(targets)}, which need a GPU: a rehearsal measures nothing"] if rehearsed else _targets(targets, rows)),
        *_missing(stages, events),
    ]


def _kernels(expected: dict[str, set[str]], events: list[Event], about: Event) -> list[str]:
    """Of each kernel: checks passed, on this device's path and on an A100's."""
    verdicts = [event for event in results(events).values() if event["event"] == "verdict"]
    own = {event["item"]: event for event in own_verdicts(events, about["arch"])}
    other = {event["item"]: event for event in verdicts if event["arch"] not in ("", about["arch"])}
    lines = ["", f"{'kernel':<32}{'passed':>10}{'failed':>8}{'of':>6}   the build for sm_80 alone"]
    for kernel, items in expected.items():
        tried = [own[item] for item in items if item in own]
        good = sum(not event["problem"] for event in tried)
        again = [other[item] for item in items if item in other]
        beside = f"{sum(not event['problem'] for event in again)} of {len(items)} passed" if again else ""
        lines.append(f"{kernel:<32}{good:>10}{len(tried) - good:>8}{len(items):>6}   {beside}".rstrip())
    return lines + [_verdict(event) for event in verdicts if event["problem"]]


def _predictions(rows: list[Row], events: list[Event], about: Event) -> list[str]:
    """What was predicted, beside what was measured."""
    machine = machine_of(about["device"]) or next(iter(MACHINES))
    sizes = {(e["op"], e["mode"], e["shape"]): e for e in events if e["event"] == "row"}
    lines = ["", f"{'timing':<62}{f'predicted, {machine}':>22}{'measured':>12}   {'against':<28}{'predicted':>12}{'measured':>10}"]
    for each in EXPECTED:
        size = sizes.get((each.op, each.mode, each.shape))
        if size is None:
            lines.append(f"{f'{each.op} {each.mode} {each.shape}':<62}{NOT_MEASURED:>22}")
            continue
        low, high = range_ms(each, machine, size["bytes"], size["flops"])
        here = [row for row in rows if (row.op, row.mode, row.shape) == (each.op, each.mode, each.shape) and row.ms_median]
        ours = min((row.ms_median for row in here if row.provider.startswith(each.ours)), default=None)
        peer = next((row.ms_median for row in here if row.provider == each.peer), None)
        ratio = f"{peer / ours:10.2f}" if ours and peer else f"{'-':>10}"
        measured = f"{ours:9.4f} ms" if ours else f"{'-':>12}"
        predicted = f"{low:.3f} to {high:.3f} ms"
        lines.append(
            f"{f'{each.op} {each.mode} {each.shape}':<62}{predicted:>22}{measured}   "
            f"{each.peer:<28}{f'{each.ratio[0]:g} to {each.ratio[1]:g}':>12}{ratio}"
        )
    return lines


def _missing(stages: Iterable[Stage], events: list[Event]) -> list[str]:
    rest = {step.name: len(left(step, events)) for stage in stages for step in stage.steps}
    why = {event["step"]: event["why"] for event in events if event["event"] == "left out"}
    lines = [f"     {name}: {count}{f', left out: {why[name]}' if name in why else ''}" for name, count in rest.items() if count]
    return ["", "missing:", *lines] if lines else ["", "nothing is missing"]


def reached(target: Target, rows: Iterable[Row]) -> list[tuple[str, float | None]]:
    """Return for each size of a target what our row reached (of several, the fastest); None where a row is missing."""
    mine = [row for row in rows if (row.op, row.mode) == (target.op, target.mode) and row.shape.startswith(target.shape)]
    results = []
    for shape in dict.fromkeys(row.shape for row in mine):
        here = [row for row in mine if row.shape == shape and row.ms_median is not None]
        ours = min((row for row in here if row.provider.startswith(target.ours)), key=lambda row: row.ms_median or 0.0, default=None)
        results.append((shape, None if ours is None else _ratio(target, ours, here)))
    return results


def _ratio(target: Target, ours: Row, here: list[Row]) -> float | None:
    if target.against in ("copy", "gemm"):
        return ours.share_of_copy if target.against == "copy" else ours.share_of_gemm
    mine = getattr(ours, target.measure)
    if target.against == "limit":
        return mine
    peer = next((row for row in here if row.provider == target.against), None)
    theirs = None if peer is None else getattr(peer, target.measure)
    return theirs / mine if theirs and mine else None


def _wanted(target: Target) -> str:
    if target.against == "limit":
        return f"{target.measure} at most {target.at_least:g}"
    if target.against in ("copy", "gemm"):
        return f"at least {target.at_least:g} of the {target.against} rate"
    return f"{target.measure}: {target.against}'s at least {target.at_least:.2g} times ours"


def _holds(target: Target, value: float) -> bool:
    return value <= target.at_least if target.against == "limit" else value >= target.at_least


def _targets(targets: Iterable[Target], rows: list[Row]) -> list[str]:
    """Each target beside what was reached."""
    lines = ["", f"{'target':<110}reached"]
    for target in targets:
        for shape, value in reached(target, rows) or [(target.shape, None)]:
            whose = "" if target.ours == OURS else f" {target.ours.removeprefix(OURS)}"
            text = f"{target.op}{whose} {target.mode} {shape}: {_wanted(target)}"
            found = NOT_MEASURED if value is None else f"{value:.2f} {'yes' if _holds(target, value) else 'MISSED'}"
            lines.append(f"{text:<110}{found}")
    return lines
