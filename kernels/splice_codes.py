"""What the splice kernels write into plans besides rows: no row at all, and errors found on the device.

Imports neither torch nor Triton, so that both sides of the device may read it.
"""

from __future__ import annotations

from enum import IntEnum

NOWHERE = -(2**31)
"""``source`` of a row that nothing belongs to: slack after the last segment, or a token that is not in the vocabulary. Becomes zeros."""

STATUS_WORDS = 4
"""int32 words of a status: code and index of the first error, packed rows in use, rows truncated away."""


class PlanFault(IntEnum):
    """Codes of a status word, the gravest first; the index says where."""

    NONE = 0
    IMAGE_BOUNDS = 1
    """``image_cu_rows`` doesn't climb from 0 to the number of image rows; index: of the boundary."""
    TOKEN = 2
    """A token is neither in the vocabulary nor the image mark; index: flat, in the token ids as given."""
    LABEL = 3
    """A label is neither a token nor -100; index: flat."""
    MISSING_IMAGES = 4
    """The text marks more images (or image rows) than there are; index: marks found."""
    UNUSED_IMAGES = 5
    """The text marks fewer images (or image rows) than there are; index: marks found."""
    TOO_LONG = 6
    """A sample has more rows than ``max_length``, and truncation was not asked for; index: the sample."""
    CAPACITY = 7
    """The packed batch has more rows than the plan has room for; index: the rows it has."""
