"""Draw every picture of the pages: ``python docs/figures/draw.py``, in the root of the checkout."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import batch  # noqa: E402
import layers  # noqa: E402
import sample  # noqa: E402
import walks  # noqa: E402

PICTURES: dict[str, Callable[[], str]] = {
    **layers.PICTURES,
    **batch.PICTURES,
    **walks.PICTURES,
    **sample.PICTURES,
}


def main() -> None:
    """Write the pictures beside this file."""
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
        print(HERE / name)


if __name__ == "__main__":
    main()
