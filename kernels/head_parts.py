"""How a head dim is cut for tensor cores; knows no Triton, so that tiles can be looked up where none is used."""

from __future__ import annotations

import functools

from .whole_numbers import next_power_of_2

NARROWEST, WIDEST = 16, 128
"""Columns of an operand: fewest that the tensor cores take, and most of one part."""


@functools.cache
def head_parts(width: int) -> tuple[int, int]:
    """Return ``(MAIN, REST)`` of a head dim.

    >>> [head_parts(width) for width in (8, 64, 72, 80, 96, 112, 128, 256)]
    [(16, 0), (64, 0), (64, 16), (64, 16), (64, 32), (128, 0), (128, 0), (128, 128)]
    """
    padded = max(NARROWEST, next_power_of_2(width))
    main = padded // 2
    rest = max(NARROWEST, next_power_of_2(width - main))
    whole = padded <= WIDEST and (main < NARROWEST or rest >= main)
    return (padded, 0) if whole else (main, rest)
