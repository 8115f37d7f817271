"""A run of the ops as a table and a picture beside it: ``python -m benchmarks.plot RUN.json --out benchmarks/data/ops_cpu.csv``.

``RUN.json`` is what ``pytest benchmarks --benchmark-only --benchmark-json RUN.json`` writes. A line of the table is one provider of one case, with
its median, the time of the fastest peer of the same case over its own (above 1 = faster than what people use), and its share of the machine's copy or
matrix product; date, machine, versions and command stand in every line. The picture shows the ratios of ours.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from .gpu.case import OURS

Row = dict[str, Any]
COMMAND = "pytest benchmarks --benchmark-only --benchmark-json RUN.json"
FASTER, SLOWER = "#1a7f5a", "#b5482f"


def main() -> None:
    """Write the table and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--out", type=Path, required=True, help="the table, a .csv; the picture lies beside it as .png")
    options = parser.parse_args()
    if options.out.suffix != ".csv":
        parser.error(f"--out {options.out}: expected a name that ends in .csv")
    rows = table(json.loads(options.run.read_text()))
    if not rows:
        sys.exit(f"error: {options.run} holds no case of benchmarks/test_ops.py: was everything skipped?")
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    picture(rows, options.out.with_suffix(".png"))
    print(f"{len(rows)} lines in {options.out}, {options.out.with_suffix('.png')}")


def table(run: Row) -> list[Row]:
    """Return a line for each timing of a run, in the run's order."""
    cases = defaultdict(list)
    for timing in run["benchmarks"]:
        if "provider" in timing["extra_info"]:
            cases[timing["group"]].append(timing)
    return [_line(run, timing, best_peer(case)) for case in cases.values() for timing in case]


def best_peer(case: list[Row]) -> Row | None:
    """Return the fastest timing of a case that isn't ours; None = nobody else was timed."""
    peers = [timing for timing in case if not timing["extra_info"]["provider"].startswith(OURS)]
    return min(peers, key=lambda timing: timing["stats"]["median"], default=None)


def _line(run: Row, timing: Row, peer: Row | None) -> Row:
    found, median = timing["extra_info"], timing["stats"]["median"]
    return {
        "op": found["op"],
        "shape": found["shape"],
        "mode": found["mode"],
        "provider": found["provider"],
        "ms_median": f"{median * 1e3:.4g}",
        "ms_min": f"{timing['stats']['min'] * 1e3:.4g}",
        "peer": peer["extra_info"]["provider"] if peer else "",
        "peer_over_own": f"{peer['stats']['median'] / median:.3g}" if peer else "",
        "share_of_copy": found.get("share_of_copy", ""),
        "share_of_gemm": found.get("share_of_gemm", ""),
        "bytes": found["bytes"],
        "flops": found["flops"],
        "date": run["datetime"][:10],
        "machine": found["machine"],
        "torch": found["torch"],
        "command": COMMAND,
    }


def picture(rows: list[Row], path: Path) -> None:
    """Draw the ratio of the fastest peer to each of ours, one bar a line, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["peer"] and row["provider"].startswith(OURS)][::-1]
    ratios = [float(row["peer_over_own"]) for row in shown]
    figure, axes = pyplot.subplots(figsize=(11, 1.6 + 0.24 * len(shown)), layout="constrained")
    axes.barh(range(len(shown)), [ratio - 1 for ratio in ratios], left=1, color=[FASTER if ratio >= 1 else SLOWER for ratio in ratios], height=0.7)
    labels = [f"{row['op']} {row['mode']}, {row['shape']}: {row['provider'].removeprefix(OURS)}" for row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(min([0.5, *ratios]) / 1.3, max([2.0, *ratios]) * 3)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    for place, (row, ratio) in enumerate(zip(shown, ratios)):
        axes.text(max(ratio, 1) * 1.04, place, f"{ratio:.2f}x {row['peer']}", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of the fastest peer / ours, same run (right of 1 = ours is faster)", fontsize=8)
    axes.set_title(f"{rows[0]['machine']}, torch {rows[0]['torch']}, {rows[0]['date']}", fontsize=9)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
