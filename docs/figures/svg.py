"""The few shapes that the pictures are made of, as text of SVG: no library, the same bytes everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

FONT = "font-family:ui-sans-serif,system-ui,Helvetica,Arial,sans-serif"
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
TEXT_FILL, IMAGE_FILL, LEARNED_FILL = "#dbeafe", "#fde7c3", "#c9f0d3"
CHARACTER = 0.56  # width of a letter in units of its size


def box(x: float, y: float, width: float, height: float, *, fill: str = PAPER, stroke: str = INK, dash: str = "") -> str:
    """Return a rectangle with round corners."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}" stroke="{stroke}"{dashed}/>'


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: float = 13,
    anchor: str = "start",
    fill: str = INK,
    bold: bool = False,
) -> str:
    """Return a line of text; ``y`` is its base line."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{weight}>{escape(content)}</text>'


def labelled(x: float, y: float, width: float, height: float, content: str, *, size: float = 13, **look: str) -> str:
    """Return a box with text in its middle."""
    return box(x, y, width, height, **look) + text(x + width / 2, y + height / 2 + size * 0.35, content, size=size, anchor="middle")


def arrow(x1: float, y1: float, x2: float, y2: float, *, stroke: str = INK) -> str:
    """Return a straight line with a head at its end."""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{stroke}" marker-end="url(#head)"/>'


def width_of(content: str, size: float = 13) -> float:
    """Return about how wide a text is."""
    return len(content) * size * CHARACTER


def picture(width: float, height: float, title: str, shapes: Iterable[str]) -> str:
    """Return the whole file.

    Args:
        width: in px.
        height: in px.
        title: what readers of the screen say.
        shapes: of the functions above.
    """
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>'
    )
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" style="{FONT}">'
    lines = [
        start,
        f"<title>{escape(title)}</title>",
        head,
        box(0.5, 0.5, width - 1, height - 1, stroke="none"),
        *shapes,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
