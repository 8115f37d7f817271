"""``lmmblocks doctor``: versions, devices, and what each op would run here; ``doctor OP`` tells of one op every implementation and its reason."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..spec import LmmError, closest
from .text import columns, listed, wrapped

if TYPE_CHECKING:
    from .machine import Choice, Report


def add_cli(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("op", metavar="OP", nargs="?", help="tell of this op alone, and of each of its implementations why it is taken or not")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Print what was found; always 0, as a machine without a GPU is no mistake.

    Raises:
        LmmError: there is no such op.
    """
    from .machine import examine

    report = examine()
    choices = report.choices if args.op is None else [choice for choice in report.choices if choice.op == args.op]
    if not choices:
        known = sorted({choice.op for choice in report.choices})
        raise LmmError(f"there is no op {args.op!r}{closest(args.op, known)}; ops: {', '.join(known)}")
    if args.json:
        found = report.to_dict()
        print(json.dumps(found if args.op is None else [each for each in found["choices"] if each["op"] == args.op], indent=2))
    else:
        print(text(report, columns()) if args.op is None else text_of_op(report, choices, columns()))
    return 0


def text(report: Report, width: int = 100) -> str:
    """Return a report as text of at most ``width`` columns. What holds for a whole kind of implementations is said once, before the ops."""
    from ..ops.dispatch import ENVIRONMENT

    facts = [*report.versions.items()]
    facts += [(f"gpu {index}", line) for index, line in enumerate(report.devices)] or [("gpu", "none that torch can use")]
    facts.append(("lmmblocks._C", _extension(report.extension)))
    facts.append((ENVIRONMENT, report.environment or "not set"))
    facts += [("problem", problem) for problem in report.problems]
    lines = _listed_with_kernels(facts, report, width)
    lines += textwrap.wrap(f"What auto would run on {report.device} in bfloat16, and why not what stands before it; nothing has run.", width)
    lines += textwrap.wrap("'lmmblocks doctor OP' tells of one op why each of its implementations is taken or not.", width)
    shared = reasons_of_the_machine(report.choices)
    lines += ["", "Of this machine, whatever the call:"] if shared else []
    for names, reason in shared:
        lines += wrapped(reason, f"  {', '.join(names)}: ", "    ", width)
    lines += [""]
    for choice in report.choices:
        lines += _choice(choice, {reason for _, reason in shared}, width)
    return "\n".join(lines)


def text_of_op(report: Report, choices: list[Choice], width: int) -> str:
    """Return the ladder of one op, fastest first, with the reason of every implementation for each of its example calls."""
    op, ladder = choices[0].op, choices[0].ladder
    lines = wrapped(" > ".join(ladder), f"{op}, fastest first: ", "  ", width)
    lines += textwrap.wrap(f"What auto would run of it on {report.device} in bfloat16; nothing has run.", width)
    for problem in report.problems:
        lines += wrapped(problem, "problem: ", "  ", width)
    for choice in choices:
        lines += ["", *wrapped(_head(choice), "", "  ", width)]
        lines += listed([(f"  {name}", _standing(choice, name)) for name in choice.ladder], width)
        lines += wrapped(choice.problem, "  ", "  ", width) if choice.problem else []
    return "\n".join(lines)


def reasons_of_the_machine(choices: list[Choice]) -> list[tuple[list[str], str]]:
    """Return reasons that don't depend on the call, and who gives them.

    Such a reason is the only one that some implementation has, in all its calls, and it stands in calls of several ops, or several give it.
    """
    verdicts: dict[str, set[str | None]] = {}
    places: dict[str, set[tuple[str, str]]] = {}
    for choice in choices:
        for name in (each for each in choice.ladder if each == choice.taken or each in choice.refused):
            verdicts.setdefault(name, set()).add(choice.refused.get(name))
            places.setdefault(choice.refused.get(name, ""), set()).add((name, choice.op))
    constant = dict.fromkeys(reason for found in verdicts.values() if len(found) == 1 for reason in found if reason)
    names = {reason: list(dict.fromkeys(name for name, found in verdicts.items() if reason in found)) for reason in constant}
    return [(names[reason], reason) for reason in constant if len(places[reason]) > 1]


def _standing(choice: Choice, name: str) -> str:
    if name == choice.taken:
        return "auto takes it"
    return choice.refused.get(name) or ("unknown" if choice.problem else "would run, but what stands before it is taken")


def _extension(found: dict[str, Any]) -> str:
    if not found["built"]:
        return found["problem"]
    driver = f"driver for CUDA {found['driver'] // 1000}.{found['driver'] % 1000 // 10}" if found["driver"] else "no driver"
    what = "emulated" if found["emulated"] else f"built for {found['archs'].replace(';', ', ')}"
    told = f"{what} by {found['compilers']}; {driver}"
    return f"{told}; {found['problem']}" if found["problem"] else told


def _listed_with_kernels(facts: list[tuple[str, str]], report: Report, width: int) -> list[str]:
    return [*listed(facts, width), "", *_verified(report, width), ""]


def _verified(report: Report, width: int) -> list[str]:
    if not report.verified:
        what = "none: auto takes no kernel of ours, each can be asked for by name (backend='triton' or 'cuda')"
        return wrapped(what, "Kernels proven on a GPU: ", "  ", width)
    return [
        "Kernels proven on a GPU, by compute capability:",
        *listed([(f"  {name}", "; ".join(at)) for name, at in report.verified.items()], width),
    ]


def _head(choice: Choice) -> str:
    head = f"{choice.call}: {choice.taken or 'unknown'}"
    return head if choice.set_to == "auto" else f"{head}, but set to {choice.set_to}"


def _choice(choice: Choice, said: set[str], width: int) -> list[str]:
    lines = [f"  {_head(choice)}"]
    if choice.call == choice.op and len(choice.ladder) > 1:
        lines = wrapped(" > ".join(choice.ladder), f"  {_head(choice)}   [", "      ", width - 1)
        lines[-1] += "]"
    for who, reason in _reasons(choice, said):
        lines += wrapped(reason, f"      {who}: ", "        ", width)
    return lines + (wrapped(choice.problem, "      ", "        ", width) if choice.problem else [])


def _reasons(choice: Choice, said: set[str]) -> Iterator[tuple[str, str]]:
    """Yield why what stands before the one that is taken isn't, but for what was said before."""
    from ..ops.explain import grouped

    before = choice.ladder[: choice.ladder.index(choice.taken)] if choice.taken else choice.ladder
    yield from grouped((name, choice.refused[name]) for name in before if choice.refused.get(name, "") not in {"", *said})
