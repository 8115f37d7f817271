"""Write docs/parity.md from what the tests measured.

The tests note every difference they measure in the file that LMMBLOCKS_PARITY names; this makes the page from it:

    LMMBLOCKS_PARITY=/tmp/parity.jsonl python -m pytest -q
    python docs/write_parity.py /tmp/parity.jsonl
"""

from __future__ import annotations

import json
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).with_name("parity.md")


def main(path: str) -> None:
    """Write the page from a file of JSON lines; of several figures for one thing the largest counts."""
    worst: dict[tuple[str, str, str], float] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        noted = json.loads(line)
        key = (noted["block"], noted["twin"], noted["quantity"])
        worst[key] = max(worst.get(key, 0.0), noted["value"])
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines = [
        "# Parity",
        "",
        "The largest differences that the tests measured between our blocks and their twins: transformers' own code where there is such a block,",
        "else the formula of the paper, written a second time in the test. fp32, toy sizes, random weights; absolute differences unless the",
        "quantity says otherwise. 0 means bitwise equal.",
        "",
        f"Written by `docs/write_parity.py` on {date.today()} from one run of the tests: {versions}, CPU {platform.machine()}.",
        "",
        "| block | twin | quantity | largest difference |",
        "|---|---|---|---|",
    ]
    lines += [f"| {block} | {twin} | {quantity} | {value:.1e} |" for (block, twin, quantity), value in sorted(worst.items())]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(worst)} figures -> {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1])
