"""What ``lmmblocks data show`` prints on a terminal, in its colours: ``sample.svg``, of the record on the page about debugging."""

from __future__ import annotations

import json
import re
from html import escape
from itertools import groupby
from pathlib import Path

from svg import FAINT, box, picture, text

from lmmblocks.cli.data_show import Style, written
from lmmblocks.data.records import Records
from lmmblocks.data.sample_reader import sample_reader
from lmmblocks.data.stretches import stretches

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "debugging.md"
COLOURS = {
    "1": ("font-weight", "700"),
    "32": ("fill", "#4ade80"),
    "36": ("fill", "#67e8f9"),
    "31": ("fill", "#f87171"),
    "9": ("text-decoration", "line-through"),
}
WIDE, LINE, CHARACTER = 100, 20, 7.83
PAPER, INK = "#111827", "#e5e7eb"
_PART = re.compile(r"\x1b\[([\d;]*)m")


def sample_picture() -> str:
    """Return the picture: the text as the command colours it, broken into lines, and its legend."""
    found = re.search(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    sample = Records(json.loads(found[1]), ".")[0]
    style = Style(coloured=True)
    reader = sample_reader(ROOT / "examples" / "llava15" / "weights" / "language", image_rows=64)
    shown = written(stretches(sample, reader, max_length=120), sample.images, style)
    lines = [line for part in (shown, "", style.legend()) for line in _lines(part)]
    width, height = WIDE * CHARACTER + 32, len(lines) * LINE + 52
    shapes = [box(0.5, 0.5, width - 1, height - 1, fill=PAPER)]
    shapes.append(
        text(
            14,
            20,
            "lmmblocks data show red.json --tokenizer ... --image-rows 64 --max-length 120",
            size=11.5,
            fill=FAINT,
        )
    )
    shapes += [_line(line, 46 + number * LINE) for number, line in enumerate(lines)]
    return picture(width, height, "A sample as lmmblocks data show prints it on a terminal", shapes)


def _lines(coloured: str) -> list[list[tuple[str, str]]]:
    """Return lines of at most ``WIDE`` characters, each of (letter, codes of its colour)."""
    letters: list[tuple[str, str]] = []
    codes = ""
    for place, part in enumerate(_PART.split(coloured)):
        if place % 2:
            codes = "" if part == "0" else part
        else:
            letters += [(letter, codes) for letter in part]
    lines: list[list[tuple[str, str]]] = [[]]
    for letter in letters:
        if letter[0] == "\n":
            lines.append([])
            continue
        if len(lines[-1]) == WIDE:
            cut = max((at for at, (said, _) in enumerate(lines[-1]) if said == " "), default=WIDE - 1) + 1
            lines[-1], rest = lines[-1][:cut], lines[-1][cut:]
            lines.append(rest)
        lines[-1].append(letter)
    return lines


def _line(letters: list[tuple[str, str]], y: float) -> str:
    spans, at = [], 0
    for codes, run in groupby(letters, key=lambda letter: letter[1]):
        said = "".join(letter for letter, _ in run)
        look = ";".join(":".join(COLOURS[code]) for code in codes.split(";") if code)
        spans.append(f'<tspan x="{16 + at * CHARACTER:g}" style="{look}">{escape(said)}</tspan>')
        at += len(said)
    font = "font-family:ui-monospace,DejaVu Sans Mono,Consolas,monospace"
    return f'<text y="{y:g}" font-size="13" fill="{INK}" style="{font};white-space:pre" xml:space="preserve">{"".join(spans)}</text>'


PICTURES = {"sample.svg": sample_picture}
