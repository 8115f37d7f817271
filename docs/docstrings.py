"""Docstrings as Markdown, for the API page: doctests become code blocks, roles become code. Loaded by mkdocstrings (``mkdocs.yml``)."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([^`]+)`")


class AsMarkdown(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring with fences around its doctests and plain code instead of roles."""
    lines: list[str] = []
    indent: str | None = None  # of the doctest we are in
    for line in text.split("\n"):
        if indent is None and line.lstrip().startswith(">>> "):
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f"{indent}```pycon")
        elif indent is not None and not line.strip():
            lines.append(f"{indent}```")
            indent = None
        lines.append(_ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", line))
    if indent is not None:
        lines.append(f"{indent}```")
    return "\n".join(lines)
