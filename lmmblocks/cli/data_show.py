"""``lmmblocks data show FILE --index I``: print one sample as training reads it, in colours on a terminal, with marks elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.find_problems import errors_of
from ..data.problems import Problem
from ..data.read_json import BrokenJson, read_records
from ..data.record_form import form_of
from ..data.record_rules import image_problem, record_problems
from ..data.records import Records
from ..data.sample_reader import sample_reader
from ..data.stretches import Stretch, stretches
from ..spec import LmmError
from .options import add_reader

POLICIES = ("turn", "right", "drop")


def add_cli(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``show`` command to the subparsers of ``lmmblocks data``, and return its parser."""
    parser = subparsers.add_parser(
        "show",
        help="print one sample as training reads it",
        description="Print one record as training reads it: what is text, image rows, learned, cut off.",
        epilog="Colours on a terminal; marks where the output goes elsewhere, or NO_COLOR is set.",
    )
    parser.add_argument("file", metavar="FILE", help="list of records (.json), or one per line (.jsonl)")
    parser.add_argument(
        "--index",
        type=int,
        default=0,
        metavar="I",
        help="place of the record in the file, from 0 (default: %(default)s)",
    )
    parser.add_argument("--images", metavar="DIR", help="folder the image paths are relative to (default: that of FILE)")
    add_reader(parser)
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="show what is cut off a sample of more rows than this; needs --tokenizer",
    )
    parser.add_argument(
        "--truncate",
        choices=POLICIES,
        default="turn",
        help="how it is cut, as the setting of a stage: after the last answer that fits, anywhere, or the whole sample (default: %(default)s)",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Run ``lmmblocks data show``.

    Raises:
        LmmError: the record can't be read, or an option makes no sense.
    """
    if args.max_length is not None and args.tokenizer is None:
        raise LmmError("--max-length counts tokens: give --tokenizer DIR, the folder of a tokenizer or model, as well")
    images_dir = args.images if args.images is not None else os.path.dirname(args.file) or "."
    record = _record(args.file, args.index)
    notes = _notes(record, images_dir, f"record {args.index} of {args.file}")
    sample = Records([record], images_dir)[0]
    reader = sample_reader(args.tokenizer, template=args.template, image_rows=args.image_rows)
    style = Style.of(sys.stdout, os.environ)
    name = "" if sample.id is None else f", id {_visible(repr(sample.id))}"
    found = stretches(sample, reader, max_length=args.max_length, truncate=args.truncate)
    print(f"record {args.index} of {args.file}{name}; template {reader.template.name!r}\n")
    print(written(found, sample.images, style))
    print(f"\n{style.legend()}\n{_totals(found, args.max_length, args.truncate)}")
    for problem in notes:
        print(f"{problem.code}: {problem.detail}")


def _record(path: str, index: int) -> Any:
    records = read_records(path)
    if not 0 <= index < len(records):
        last = f"0 to {len(records) - 1}" if records else "none"
        raise LmmError(f"--index {index}: {path} holds {_count(len(records), 'record')}: expected {last}")
    if isinstance(records[index], BrokenJson):
        raise records[index]
    return records[index]


def _notes(record: Any, images_dir: str, name: str) -> list[Problem]:
    """Return what ``data check`` says of a record without opening pictures.

    Raises:
        LmmError: training refuses the record for it.
    """
    problems = record_problems(record)
    if isinstance(record, dict) and not any(problem.code == "wrong_type" for problem in problems):
        problems += [problem for image in form_of(record).images if (problem := image_problem(images_dir, image)) is not None]
    if errors := errors_of(problems):
        raise LmmError(f"{name} can't be trained on: " + "; ".join(f"{problem.code}: {problem.detail}" for problem in errors))
    return problems


def _totals(found: Sequence[Stretch], max_length: int | None, truncate: str) -> str:
    """Return what the rows add up to."""
    if any(stretch.rows is None for stretch in found):
        return "rows aren't counted without a tokenizer: give --tokenizer DIR"

    def total(wanted: Iterable[Stretch]) -> int:
        return sum(stretch.rows or 0 for stretch in wanted)

    images = total(s for s in found if s.image is not None)
    learned = total(s for s in found if s.learned and not s.cut)
    told = f"{_count(total(found), 'row')}: {total(found) - images} of text, {images} of images; {learned} learned"
    cut = total(s for s in found if s.cut)
    if max_length is None:
        return told
    policy = f" by --truncate {truncate}" if cut else ""
    return f"{told}; {cut} cut off{policy} at --max-length {max_length}"


@dataclass(frozen=True)
class Style:
    """How stretches are told apart on a screen: by colours, or by marks where there are none.

    Attributes:
        coloured: whether terminal colours are written.
    """

    coloured: bool

    @classmethod
    def of(cls, stream: Any, environment: Mapping[str, str]) -> Style:
        """Return colours for a terminal, unless ``NO_COLOR`` is set or the terminal is ``dumb``; else marks."""
        return cls(stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb")

    def dressed(self, text: str, *, learned: bool = False, image: bool = False, cut: bool = False) -> str:
        """Return a text in the dress of its kind.

        >>> Style(False).dressed("Red", learned=True), Style(False).dressed("Red", learned=True, cut=True)
        ('{+Red+}', '[-{+Red+}-]')
        >>> Style(True).dressed("Red", learned=True)
        '\\x1b[1;32mRed\\x1b[0m'
        """
        if not self.coloured:
            text = f"{{+{text}+}}" if learned else text
            return f"[-{text}-]" if cut else text
        kinds = (
            ("1", learned),
            ("32", learned and not cut),
            ("36", image and not cut),
            ("31", cut),
            ("9", cut),
        )
        codes = ";".join(code for code, on in kinds if on)
        if not codes:
            return text
        # Pagers forget colours at the end of a line, so each line has its own.
        return "\n".join(f"\x1b[{codes}m{line}\x1b[0m" if line else "" for line in text.split("\n"))

    def legend(self) -> str:
        """Return one line that says what the kinds look like."""
        shown = [
            "only read",
            self.dressed("learned", learned=True),
            self.dressed("<image: rows>", image=True),
            self.dressed("cut off", cut=True),
            self.dressed("cut off, would be learned", learned=True, cut=True),
        ]
        return f"legend: {' | '.join(shown)}"


def written(found: Sequence[Stretch], images: Sequence[Any], style: Style) -> str:
    """Return stretches as text for a screen.

    Args:
        found: the stretches of one sample.
        images: its images: paths, or anything else.
        style: colours or marks.

    >>> written([Stretch("Which? "), Stretch(image=0, rows=4), Stretch("Red", rows=1, learned=True)], ["a.png"], Style(False))
    'Which? <image 1: 4 rows, a.png>{+Red+}'
    """
    parts = []
    for stretch in found:
        text = _visible(stretch.text) if stretch.image is None else _image(stretch, images)
        parts.append(style.dressed(text, learned=stretch.learned, image=stretch.image is not None, cut=stretch.cut))
    return "".join(parts)


def _image(stretch: Stretch, images: Sequence[Any]) -> str:
    assert stretch.image is not None
    image = images[stretch.image] if stretch.image < len(images) else None
    name = f", {_visible(os.path.basename(image))}" if isinstance(image, str) else ""
    rows = "" if stretch.rows is None else f": {_count(stretch.rows, 'row')}"
    return f"<image {stretch.image + 1}{rows}{name}>"


def _visible(text: str) -> str:
    """Return a text whose control characters are spelled: none reaches the terminal, but for ends of lines.

    >>> print(_visible("a\\x1b[2J\\tb"))
    a\\x1b[2J\\tb
    """
    return "".join(char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
