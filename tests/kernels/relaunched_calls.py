"""Launches one kernel with many arguments, by Triton and by ours, on a driver that starts nothing; prints which differ.

Run by ``test_relaunch.py``. Arguments differ from the first ones in one place, in all that Triton may compile anew for, and come in mixed order.
"""

import json
import random
import sys
from typing import Any

import torch
import triton
import triton.language as tl
from lmmblocks.kernels.relaunch import Relaunched, relaunched

from benchmarks.host_calls import NoDriver

LAUNCHES: list[tuple[Any, ...]] = []


class Recording(NoDriver):
    """Keeps what it is asked to launch: grid, function, metadata, arguments."""

    def launcher_cls(self, *_: Any) -> Any:
        """Return a launch that is only written down."""
        return lambda *given: LAUNCHES.append((given[:3], given[5], given[9:]))


@relaunched
@triton.jit(do_not_specialize=["rows"])
def scaled_kernel(x, y, extra, rows, stride, scale, WIDTH: tl.constexpr):
    place = tl.program_id(0) * stride + tl.arange(0, 16)
    value = tl.load(x + place, mask=place < rows) * scale * WIDTH
    if extra is not None:
        value += tl.load(extra)
    tl.store(y + place, value, mask=place < rows)


def changes() -> dict[str, list[Any]]:
    """Return what may stand in each place, the first of all launches first."""
    memory, half = torch.zeros(64), torch.zeros(64, dtype=torch.bfloat16)
    numbers = [48, 16, 1, 7, 0, -1, 2**31 - 1, 2**31, 2**40 + 1, -(2**31) - 1]
    return {
        "x": [memory, memory[4:], memory[1:], half, half[1:], half[8:]],
        "y": [memory, memory[2:], half],
        "extra": [None, memory, memory[1:], half],
        "rows": numbers,
        "stride": numbers,
        "scale": [0.5, 2.0, 2, 1, 1.0, -0.0],
        "WIDTH": [2, 2.0, 1, True, 1.0],
        "num_warps": [4, 8],
    }


def main() -> None:
    """Compare, and print how often they differed and how often a launch was found again."""
    assert isinstance(scaled_kernel, Relaunched), "this Triton is not one whose rules are known"
    triton.runtime.driver.set_active(Recording())
    every = changes()
    first = {name: found[0] for name, found in every.items()}
    calls = [{**first, name: value} for name, found in every.items() for value in found] * 3
    random.Random(int(sys.argv[1])).shuffle(calls)
    differ, asked = [], []
    run = scaled_kernel.kernel.run
    for call in calls:
        given, warps = tuple(call.values())[:-1], call["num_warps"]
        expected = scaled_kernel.kernel[(3, 2)](*given, num_warps=warps)
        scaled_kernel.kernel.run = lambda *args, **options: asked.append(1) or run(*args, **options)
        found = scaled_kernel[(3, 2)](*given, num_warps=warps)
        scaled_kernel.kernel.run = run
        (grid, metadata, arguments), ours = LAUNCHES[-2:]
        same = grid == ours[0] and metadata == ours[1] and len(arguments) == len(ours[2])
        if found is not expected or not same or any(a is not b for a, b in zip(arguments, ours[2])):
            differ.append(str({name: value for name, value in call.items() if value is not first[name]}))
    print(json.dumps({"calls": len(calls), "differ": differ, "by triton": len(asked), "launches": len(LAUNCHES)}))


if __name__ == "__main__":
    main()
