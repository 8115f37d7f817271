"""``lmmblocks inspect``: what a folder holds, without loading its weights."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ..spec import LmmError
from .text import wrapped

if TYPE_CHECKING:
    from ..weights.inspection import Inspection, Part

_WIDTH = 110


def add_cli(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", metavar="PATH", help="folder of a model, an encoder or a language model; or a hub id, which is downloaded")
    parser.add_argument("--base", metavar="DIR", help="what a projector or a LoRA adapter lies over (default: what its config names)")
    parser.add_argument("--vision-tower", metavar="DIR", help="tower of an original checkpoint (default: what its config names)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 when the model can't be loaded as it is.

    Raises:
        LmmError: nothing there, a damaged file, or a base for what needs none.
    """
    from ..weights.inspect import inspect
    from ..weights.systems.all import SYSTEMS

    report = inspect(args.path, base=args.base, vision_tower=args.vision_tower)
    if args.base is not None and report.layout not in [system.name for system in SYSTEMS if system.over_base]:
        raise LmmError(f"{report.path} ({report.layout}) lies over no base, as a projector or a LoRA adapter does: leave --base {args.base!r} out")
    print(json.dumps(report.to_dict(), indent=2) if args.json else text(report))
    return 1 if report.problems else 0


def text(report: Inspection) -> str:
    """Return a report as aligned text."""
    lines = [f"{report.path}: {report.layout}", ""]
    lines += _parts(report)
    details = dict(report.settings)
    if report.image_tokens:
        counts = ", ".join(f"{rows} for {size} px" for size, rows in report.image_tokens.items())
        details = {"image rows": counts, **details}
    for title, entries in (("missing", report.missing), ("problem", report.problems)):
        details |= {title if index == 0 else " " * index: entry for index, entry in enumerate(entries)}
    width = max([len(name) for name in details] + [0])
    lines += [""] + [line for name, value in details.items() for line in _wrapped(name, value, width)]
    return "\n".join(lines).rstrip()


def _parts(report: Inspection) -> list[str]:
    rows = [("part", "parameters", "on disk", "what"), *map(_row, report.parts)]
    total = [part.parameters for part in report.parts if part.parameters is not None]
    if len(report.parts) > 1:
        rows.append(("all", short_count(sum(total)), size(report.weight_bytes), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for name, parameters, disk, what in rows:
        start = f"{name:<{widths[0]}}  {parameters:>{widths[1]}}  {disk:<{widths[2]}}  "
        lines += wrapped(what, start, " " * len(start), _WIDTH)
    if len(report.parts) == 1:
        lines.append(f"weight files: {size(report.weight_bytes)}")
    return lines


def _row(part: Part) -> tuple[str, str, str, str]:
    counted = "" if part.parameters is None else short_count(part.parameters)
    disk = "+".join(part.dtypes) or ("not inside" if part.source else "")
    return part.name, counted, disk, part.what or (part.source or "unknown")


def _wrapped(name: str, value: str, width: int) -> list[str]:
    start = f"{name.strip():<{width}}  "
    lines: list[str] = []
    for index, line in enumerate(value.splitlines()):
        first = start if index == 0 else " " * (width + 2)
        lines += wrapped(line, first, " " * (width + 2), _WIDTH)
    return lines


def short_count(count: int) -> str:
    """Return a number of parameters in three digits.

    >>> short_count(6_738_415_616), short_count(20_979_712), short_count(512)
    ('6.74 B', '21.0 M', '512')
    """
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            value = count / unit
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {letter}"
    return str(count)


def size(bytes_: int) -> str:
    """Return a number of bytes in three digits.

    >>> size(13_518_910_809), size(0)
    ('13.5 GB', '0 B')
    """
    return f"{short_count(bytes_).replace(' B', ' G')}B" if bytes_ >= 1000 else f"{bytes_} B"
