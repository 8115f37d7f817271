"""Small calls of every CUDA kernel, to be run under compute-sanitizer: ``python -m benchmarks.gpu.sanitized_calls [folder of a build]``.

Inputs are made on the CPU and copied, so that on the device nothing runs but our kernels. Each kernel says when it begins, when a result is not the
reference's, and when it is done; what the sanitizer prints in between is about it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmmblocks import experimental, ops
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import Segments

from .cuda_kernels import use

BEGIN, WRONG, DONE = "begin: ", "wrong: ", "done: "
TOLERANCE = 0.05
"""Of the largest value: rounding is far below, and garbage is not."""

SETTLING_S = 1.0
"""The sanitizer prints from a process of its own, which may lag after."""

Results = list[Tensor]


def _gradients(out: Tensor, leaves: list[Tensor]) -> Results:
    grad = torch.sin(torch.arange(out.numel(), dtype=torch.float32)).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype).to(out.device))]


def splice_calls(device: torch.device, backend: str) -> Iterator[Results]:
    """A frequent id, rows that were truncated away, even and odd widths, a main gradient."""
    plan = plan_splice([[1, -200, *[3] * 150, 5], [-200, 7]], [[9], [4]], max_length=155, truncate="right").to(device)
    for dtype, width in ((torch.bfloat16, 520), (torch.float32, 33)):
        table, images = (torch.randn(rows, width).to(dtype).to(device).requires_grad_() for rows in (11, 13))
        yield _gradients(ops.splice(table, images, plan, scale=2.0, backend=backend), [table, images])
        main = torch.zeros(11, width).to(device)
        embeds = experimental.splice_into(table, images, plan, main_grad_VD=main, backend=backend)
        embeds.backward(torch.ones(plan.total_rows, width).to(dtype).to(device))
        yield [main]


def attention_calls(device: torch.device, backend: str) -> Iterator[Results]:
    """Uneven and even segments, one of them empty, slack, all masks, both head widths, a group of heads; forward and backward.

    Those of 400 rows have tiles of keys that are neither the first nor the last of a row: only these add to what others have added.
    """
    short = ((64, "full", (97, 97)), (64, "causal", (150, 0, 33, 1)), (128, "causal", (140, 21)), (128, "image", (140, 21)))
    long = tuple((width, mask, (400, 21)) for width, mask in ((64, "full"), (64, "image"), (128, "causal"), (128, "image")))
    for width, mask, lengths in (*short, *long):
        rows = sum(lengths) + 5
        q, k, v = (torch.randn(rows, heads, width).bfloat16().to(device).requires_grad_() for heads in (4, 2, 2))
        ends = torch.cat([torch.arange(1, sum(lengths) + 1).clamp_min(40), torch.zeros(5)]).int().to(device)
        out = ops.attention(
            q, k, v, Segments.of(lengths, device=device), causal=mask == "causal", kv_end=ends if mask == "image" else None, backend=backend
        )
        yield _gradients(out, [q, k, v])


def decode_calls(device: torch.device, backend: str) -> Iterator[Results]:
    """Split and whole keys, one row and several, every head width, a window and a softcap."""
    options: tuple[dict[str, Any], ...] = ({}, {"window": 100, "softcap": 20.0})
    for width, rows in ((64, 1), (128, 3), (256, 2)):
        for extra in options:
            keys = (700, 40, rows)
            q = torch.randn(3 * rows, 4, width).bfloat16().to(device)
            k, v = (torch.randn(sum(keys), 2, width).bfloat16().to(device) for _ in range(2))
            yield [ops.attention(q, k, v, Segments.of((rows,) * 3, keys, device=device), backend=backend, **extra)]


def paged_calls(device: torch.device, backend: str) -> Iterator[Results]:
    """Pages in a mixed order, a sequence without keys, parts of a given and of a chosen size."""
    table = torch.randperm(50).int().view(2, 25)
    table, lengths = torch.cat([table, table[:1]]).to(device), torch.tensor([390, 33, 0], dtype=torch.int32).to(device)
    for width, part_keys in ((64, None), (128, 64)):
        q = torch.randn(6, 4, width).bfloat16().to(device)
        k, v = (torch.randn(50, 16, 2, width).bfloat16().to(device) for _ in range(2))
        yield [ops.paged_attention(q, k, v, table, lengths, part_keys=part_keys, backend=backend)]


CALLS: dict[str, Callable[[torch.device, str], Iterator[Results]]] = {
    "splice.cuda": splice_calls,
    "attention.cuda": attention_calls,
    "attention.cuda_decode": decode_calls,
    "paged_attention.cuda": paged_calls,
}
"""By the kernels' names in ``kernels/verified.json``."""


def differences(calls: Callable[[torch.device, str], Iterator[Results]], kernel: str, device: torch.device) -> Iterator[float]:
    """Yield for each result its distance from the reference's on the CPU, as a share of the largest value; NaN where it has NaNs."""
    torch.manual_seed(0)
    found = [result.cpu() for results in calls(device, kernel.partition(".")[2]) for result in results]
    torch.manual_seed(0)
    expected = [result for results in calls(torch.device("cpu"), "reference") for result in results]
    for one, other in zip(found, expected, strict=True):
        yield ((one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1.0)).item()


def main(device: torch.device) -> int:
    """Call every kernel; 1 when a result is wrong."""
    wrong = False
    for kernel, calls in CALLS.items():
        print(f"{BEGIN}{kernel}", flush=True)
        for index, apart in enumerate(differences(calls, kernel, device)):
            if not apart <= TOLERANCE:  # NaN is wrong too
                wrong = True
                print(f"{WRONG}result {index} is {apart:.2g} of the largest value from the reference's", flush=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
            time.sleep(SETTLING_S)
        print(f"{DONE}{kernel}", flush=True)
    return int(wrong)


if __name__ == "__main__":
    for built in sys.argv[1:]:
        use(Path(built))
    sys.exit(main(torch.device("cuda")))
