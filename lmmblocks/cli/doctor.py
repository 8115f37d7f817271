"""``lmmblocks doctor``: versions, devices, and what each op would run here, with the reason for each refusal."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .machine import Choice, Report

NARROWEST, WIDEST = 80, 120


def add_cli(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Print what was found; always 0, as a machine without a GPU is no mistake."""
    from .machine import examine

    report = examine()
    width = min(max(shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)
    print(json.dumps(report.to_dict(), indent=2) if args.json else text(report, width))
    return 0


def text(report: Report, width: int = 100) -> str:
    """Return a report as text of at most ``width`` columns."""
    from ..ops.dispatch import ENVIRONMENT

    facts = [*report.versions.items()]
    facts += [(f"gpu {index}", line) for index, line in enumerate(report.devices)] or [
        ("gpu", "none that torch can use")
    ]
    facts.append(("lmmblocks._C", _extension(report.extension)))
    facts.append((ENVIRONMENT, report.environment or "not set"))
    facts += [("problem", problem) for problem in report.problems]
    lines = _listed(facts, width)
    lines += ["", *_verified(report, width), ""]
    lines += textwrap.wrap(
        f"What auto would run on {report.device} in bfloat16, and why not what stands before it:", width
    )
    for choice in report.choices:
        lines += _choice(choice, width)
    return "\n".join(lines)


def _extension(found: dict[str, Any]) -> str:
    if not found["built"]:
        return found["problem"]
    driver = f"driver for CUDA {found['driver'] // 1000}.{found['driver'] % 1000 // 10}" if found["driver"] else "no driver"
    what = "emulated" if found["emulated"] else f"built for {found['archs'].replace(';', ', ')}"
    told = f"{what} by {found['compilers']}; {driver}"
    return f"{told}; {found['problem']}" if found["problem"] else told


def _listed(facts: list[tuple[str, str]], width: int) -> list[str]:
    column = max(len(name) for name, _ in facts) + 2
    return [
        line for name, value in facts for line in _wrapped(value, name.ljust(column), " " * column, width)
    ]


def _verified(report: Report, width: int) -> list[str]:
    if not report.verified:
        what = "none: auto takes no kernel of ours, each can be asked for by name (backend='triton' or 'cuda')"
        return _wrapped(what, "Kernels proven on a GPU: ", "  ", width)
    return [
        "Kernels proven on a GPU, by compute capability:",
        *_listed([(f"  {name}", "; ".join(at)) for name, at in report.verified.items()], width),
    ]


def _choice(choice: Choice, width: int) -> list[str]:
    from ..ops.explain import grouped

    head = f"{choice.call}: {choice.taken or 'unknown'}"
    if choice.set_to != "auto":
        head += f", but set to {choice.set_to}"
    lines = [f"  {head}"]
    if choice.call == choice.op and len(choice.ladder) > 1:
        lines = _wrapped(" > ".join(choice.ladder), f"  {head}   [", "      ", width - 1)
        lines[-1] += "]"
    before = choice.ladder[: choice.ladder.index(choice.taken)] if choice.taken else choice.ladder
    for who, reason in grouped((name, choice.refused[name]) for name in before if name in choice.refused):
        lines += _wrapped(reason, f"      {who}: ", "        ", width)
    return lines + (_wrapped(choice.problem, "      ", "        ", width) if choice.problem else [])


def _wrapped(value: str, first: str, rest: str, width: int) -> list[str]:
    wrapper = textwrap.TextWrapper(width, first, rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(value) or [first.rstrip()]
