"""What a chat template could compare contents with: the words and numbers in its program.

Motivation: a program may write a message in a way of its own where it holds some word (`/nothink`, `<tool_response>`) or is long. Nobody can
guess the words, but they stand in the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .pieces import IMAGE_MARKER

_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
"""A tag of transformers that Jinja itself doesn't know; it writes nothing."""
_LONGEST = 20_000  # characters; a larger number is no length of a message
_SHORTEST = 500


def compared_contents(source: str) -> list[str]:
    """Return contents for which the branches of a program differ: each word that it compares or replaces, alone and around others, and a long text.

    >>> compared_contents("{{ c if c.endswith('/x') else c + '!' }}")[:2]
    ['/x', '/xword/x']
    """
    from jinja2 import Environment, TemplateError, nodes

    try:
        program = Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(_GENERATION.sub("", source))
    except TemplateError:
        return []  # rendering it says what is wrong
    words, numbers = dict[str, None](), [0]
    for node in program.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test, nodes.Slice)):
        for constant in _constants(node, nodes):
            if isinstance(constant, str) and constant and IMAGE_MARKER not in constant:  # pictures are looked at apart
                words[constant] = None
            elif isinstance(constant, int) and constant <= _LONGEST:
                numbers.append(constant)
    long = "a word " * (max(_SHORTEST, *numbers) // 7 + 20) + "end"
    return [content for word in words for content in (word, f"{word}word{word}")] + [long]


def _constants(node: Any, nodes: Any) -> Iterator[Any]:
    """What a node names itself: arguments and operands, not what is called or filtered."""
    given = list(node.iter_child_nodes(exclude=("node",)))
    if isinstance(node, nodes.Compare):
        given = [node.expr, *(operand.expr for operand in node.ops)]
    yield from (entry.value for entry in given if isinstance(entry, nodes.Const))
