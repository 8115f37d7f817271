"""The splice plan made on the device: every integer of it, and its time beside planning on the host, which waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lmmblocks import experimental
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, SplicePlan

from ..case import OURS, Call, Check, Inputs, Outputs, Suite, Timing

VOCABULARY = 32000
SAMPLES, TEXT, IMAGE_ROWS = 16, 1472, 576
FIELDS = ("source", "positions", "cu_seqlens", "image_rows", "token_order", "target_rows", "targets", "target_weights")


def _batch(texts: Sequence[int], images: Sequence[Sequence[int]], device: torch.device) -> Inputs:
    """Packed ids of samples, each with its images after the third token; every other token is supervised."""
    own = torch.Generator().manual_seed(0)
    samples = []
    for length, rows in zip(texts, images):
        ids = torch.randint(0, VOCABULARY, (length,), generator=own)
        samples.append(torch.cat([ids[:3], torch.full((len(rows),), IMAGE_TOKEN), ids[3:]]))
    ids = torch.cat(samples)
    labels = torch.where((torch.arange(ids.shape[0]) % 2 == 0) & (ids >= 0), ids, IGNORE_LABEL)
    bounds = [torch.tensor([0, *lengths]).cumsum(0) for lengths in (map(len, samples), (n for rows in images for n in rows))]
    tensors = {"token_ids": ids, "labels": labels, "cu_seqlens": bounds[0], "image_cu_rows": bounds[1]}
    return {**{name: tensor.to(device) for name, tensor in tensors.items()}, "image_rows": int(bounds[1][-1])}


def _plan(backend: str, i: Inputs, **options: Any) -> SplicePlan:
    return experimental.splice_plan(**i, vocabulary=VOCABULARY, backend=backend, **options)


def _check(case: str, texts: Sequence[int], images: Sequence[Sequence[int]], **options: Any) -> Check:
    def inputs(device: torch.device, toy: bool) -> Inputs:
        shrink = 60 if toy else 1
        return _batch([max(n // shrink, 4) for n in texts], [[max(n // shrink, 1) for n in rows] for rows in images], device)

    def run(backend: str, i: Inputs) -> Outputs:
        plan = _plan(backend, i, **options)
        ends = () if plan.kv_end is None else (plan.kv_end,)
        return (*(getattr(plan, name) for name in FIELDS), *ends)

    return Check("splice_plan", case, inputs, run, dtypes=(torch.float32,))


def _way(backend: str) -> Callable[[Inputs], Call]:
    return lambda i: lambda: _plan(backend, i)


def _timing(samples: int) -> Timing:
    return Timing(
        "splice_plan",
        f"{samples} samples, {IMAGE_ROWS} image rows each",
        "fwd",
        lambda device: _batch([TEXT] * samples, [[IMAGE_ROWS]] * samples, device),
        {f"{OURS}triton": _way("triton"), "on the host": _way("reference")},
    )


SUITE = Suite(
    checks=[
        _check("one image a sample", [300, 900, 40, 1500], [[576]] * 4, bidirectional_images=True),
        _check("none, two, adjacent; truncated", [100, 700, 20], [[], [576, 576], [144]], max_length=900, truncate="right"),
    ],
    timings=[_timing(SAMPLES)],
    cpu=[_timing(2)],
)
