"""Whole numbers of a launch. Triton's own ``cdiv`` and ``next_power_of_2`` are made for its compiler, and cost the host 2 us a call."""

from __future__ import annotations


def cdiv(length: int, size: int) -> int:
    """Return how many parts of ``size`` hold ``length``.

    >>> cdiv(0, 4), cdiv(4, 4), cdiv(5, 4)
    (0, 1, 2)
    """
    return -(-length // size)


def next_power_of_2(number: int) -> int:
    """Return the lowest power of two that is not below ``number``, which is above 0.

    >>> [next_power_of_2(number) for number in (1, 2, 3, 64, 65)]
    [1, 2, 4, 64, 128]
    """
    return 1 << (number - 1).bit_length()
