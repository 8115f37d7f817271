"""How many variants of each Triton kernel random batches compile, and at which step the last: no GPU, and nothing is compiled.

    python -m benchmarks.resources.variants            # 2000 batches; exit 1 when one after the first 20 compiles something

Triton compiles a kernel again when an integer becomes 1, or a multiple of 16, or stops being one, unless it is told not to look. Counts that
change from batch to batch (rows, tokens, images) must not be looked at: half a second to two seconds, at another step on each rank. A step here
launches what a training step of a multimodal decoder does, on tensors of the meta device, and what Triton would compile for each launch is kept.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from .capture import launches_of

BATCHES, SETTLED = 2000, 20
WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 1024, 8, 2, 128, 32000
BF16 = torch.bfloat16


@dataclass
class Batch:
    """Sizes of one step."""

    lengths: list[int]
    images: int
    image_rows: int
    rows: int = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = sum(self.lengths)
        self.rows = self.tokens + self.image_rows - self.images


def random_batch(draw: random.Random) -> Batch:
    """Some samples, with images of any size. None has so few rows that attention takes its small tile, a kernel of its own."""
    lengths = [draw.randint(128, 2048) for _ in range(draw.randint(1, 24))]
    images = draw.randint(0, 2 * len(lengths))
    return Batch(lengths, images, sum(draw.randint(1, 1200) for _ in range(images)))


def _empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _splice(batch: Batch) -> None:
    from lmmblocks.kernels.splice import splice_fwd
    from lmmblocks.kernels.splice_bwd import splice_bwd_rows, splice_bwd_table
    from lmmblocks.kernels.splice_plan import splice_plan

    samples = len(batch.lengths)
    ids, mask = _empty(samples, max(batch.lengths), dtype=torch.int64), _empty(samples, max(batch.lengths), dtype=torch.int64)
    splice_plan(ids, None, mask, ids, _empty(batch.images + 1), _empty(4), -200, VOCABULARY, batch.image_rows, batch.rows, 2048, True, False)
    table, images = _empty(VOCABULARY, WIDTH, dtype=BF16), _empty(batch.image_rows, WIDTH, dtype=BF16)
    grad = splice_fwd(table, images, _empty(batch.rows), None)
    order = _empty(batch.rows - batch.image_rows)
    _, sums, bounds = splice_bwd_rows(grad, _empty(batch.rows), _empty(batch.image_rows), order, VOCABULARY, BF16)
    splice_bwd_table(grad, order, sums, bounds, None, BF16)


def _layer(batch: Batch) -> None:
    from lmmblocks.kernels.activations import activation_bwd, activation_fwd
    from lmmblocks.kernels.attention_backward import attention_bwd
    from lmmblocks.kernels.attention_forward import attention_fwd
    from lmmblocks.kernels.rms_norm import add_rms_norm_bwd, add_rms_norm_fwd, rms_norm_bwd, rms_norm_fwd
    from lmmblocks.kernels.rope import rope_apart

    x, weight = _empty(batch.rows, WIDTH, dtype=BF16), _empty(WIDTH, dtype=BF16)
    y, rstd = rms_norm_fwd(x, weight, 1e-5)
    rms_norm_bwd(x, weight, rstd, y)
    y, summed, rstd = add_rms_norm_fwd(x, x, weight, 1e-5, 0.0)
    add_rms_norm_bwd(summed, weight, rstd, y, summed, 0.0)
    fused = _empty(batch.rows, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=BF16)
    q, k, v = fused.split([HEADS, KV_HEADS, KV_HEADS], 1)
    for adjoint in (False, True):
        rope_apart(q, k, _empty(batch.rows, HEAD_DIM, dtype=torch.float32), _empty(batch.rows, HEAD_DIM, dtype=torch.float32), adjoint)
    cu, longest = _empty(len(batch.lengths) + 1), max(batch.lengths)
    mask = (True, HEAD_DIM**-0.5, None, None)
    out, lse = attention_fwd(q, k, v, cu, cu, None, longest, False, *mask)
    attention_bwd(out, None, q, k, v, out, lse, cu, cu, None, longest, longest, False, *mask)
    gate, up = _empty(batch.rows, 2 * WIDTH, dtype=BF16), _empty(batch.rows, 2 * WIDTH, dtype=BF16)
    activation_bwd(activation_fwd(gate, up, 1.0, 0.0), gate, up, 1.0, 0.0)


def _encoder(batch: Batch) -> None:
    from lmmblocks.kernels.bias_gelu import bias_gelu_bwd, bias_gelu_fwd
    from lmmblocks.kernels.layer_norm import layer_norm_bwd, layer_norm_fwd

    x, weight = _empty(batch.image_rows, WIDTH, dtype=BF16), _empty(WIDTH, dtype=BF16)
    _, mean, rstd = layer_norm_fwd(x, weight, weight, 1e-5)
    layer_norm_bwd(x, weight, mean, rstd, x)
    bias_gelu_bwd(x, weight, bias_gelu_fwd(x, weight))


def compiled_at(batches: int, seed: int = 0) -> dict[tuple[Any, ...], tuple[str, int]]:
    """Return each variant that is compiled: its key -> kernel and step."""
    draw, found = random.Random(seed), {}
    for step in range(batches):
        batch = random_batch(draw)
        for part in (_splice, _layer, _encoder):
            for launch in launches_of(partial(part, batch)):
                found.setdefault(launch.identity(), (launch.name.strip("_"), step))
    return found


def main() -> int:
    """Print, for each kernel, how many variants there are and when the last one came; 1 when one comes late."""
    found = compiled_at(BATCHES)
    count, last = Counter(kernel for kernel, _ in found.values()), {}
    for kernel, step in found.values():
        last[kernel] = max(step, last.get(kernel, 0))
    for kernel in sorted(count):
        print(f"{kernel:32} {count[kernel]:3} variants, the last at step {last[kernel]}")
    late = [kernel for kernel in last if last[kernel] >= SETTLED]
    print(f"{BATCHES} batches, {len(found)} variants of {len(count)} kernels; later than step {SETTLED}: {', '.join(late) or 'none'}")
    return int(bool(late))


if __name__ == "__main__":
    sys.exit(main())
