"""Facts of a process, found out once: what is installed, what a device can do, what was proven.

``functools.cache`` alone is not enough under ``torch.compile``, which traces through it, into package lookups and files. A function that is
marked here is called while tracing, and its answer becomes part of the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def constant(find_out: Callable[..., Answer]) -> Callable[..., Answer]:
    """Return ``find_out`` with its answers remembered, per arguments, for the whole process.

    >>> asked = []
    >>> answer = constant(lambda question: asked.append(question) or 42)
    >>> answer("what?"), answer("what?"), asked
    (42, 42, ['what?'])
    """
    remembered = functools.cache(find_out)

    def answer(*questions: Hashable) -> Answer:
        return remembered(*questions)

    answer.__name__, answer.__doc__ = find_out.__name__, find_out.__doc__
    # The mark that torch.compiler.assume_constant_result sets; calling that would import the compiler.
    marks: dict[str, Any] = {"cache_clear": remembered.cache_clear, "_dynamo_marked_constant": True}
    answer.__dict__.update(marks)
    return answer
