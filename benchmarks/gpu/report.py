"""What a run prints: verdicts as they come, a table of times, and each target with what was reached."""

from __future__ import annotations

from collections.abc import Iterable

from .case import OURS, Target
from .correctness import Verdict
from .record import Row

NOT_MEASURED = "not measured"


def print_verdict(verdict: Verdict) -> None:
    """Print one line about one check."""
    name = f"{verdict.check.kernel} {verdict.check.case} {str(verdict.dtype).removeprefix('torch.')}"
    outcome = "ok  " if not verdict.problem else "FAIL"
    errors = f"error {verdict.error:9.3g}  torch {verdict.torch_error:9.3g}"
    apart = "" if verdict.apart is None else f"from {verdict.check.peer} {verdict.apart:9.3g}"
    print(f"{outcome} {name:<72} {errors}  {apart:<29}{verdict.problem}".rstrip(), flush=True)


def print_row(row: Row) -> None:
    """Print one timing of one provider."""
    if row.ms_median is None:
        print(f"{row.op:<22}{row.shape:<34}{row.mode:<8}{row.provider:<24}{row.note or NOT_MEASURED}", flush=True)
        return
    shares = [f"{share:4.0%} of {name}" for share, name in ((row.share_of_copy, "copy"), (row.share_of_gemm, "GEMM")) if share is not None]
    memory = [] if row.peak_mb is None else [f"{row.peak_mb:8.0f} MB"]
    print(
        f"{row.op:<22}{row.shape:<34}{row.mode:<8}{row.provider:<24}{row.ms_median:9.4f} ms "
        f"({row.ms_p20:.4f}-{row.ms_p80:.4f})  {'  '.join(shares + memory)}",
        flush=True,
    )


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


def print_targets(targets: Iterable[Target], rows: list[Row]) -> None:
    """Print each target beside what was reached."""
    print(f"\n{'target':<110}reached")
    for target in targets:
        for shape, value in reached(target, rows) or [(target.shape, None)]:
            whose = "" if target.ours == OURS else f" {target.ours.removeprefix(OURS)}"
            text = f"{target.op}{whose} {target.mode} {shape}: {_wanted(target)}"
            found = NOT_MEASURED if value is None else f"{value:.2f} {'yes' if _holds(target, value) else 'MISSED'}"
            print(f"{text:<110}{found}")


def print_outcomes(outcomes: Iterable[dict[str, str]]) -> None:
    """Print what compute-sanitizer said about each kernel, as :func:`~benchmarks.gpu.record.read_outcomes` gives it."""
    print("\nsanitizer")
    for each in outcomes:
        print(f"{each['tool']:<12}{each['kernel']:<28}{each['date']}  {each['commit']:<10}{each['outcome']}")
