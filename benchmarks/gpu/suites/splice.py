"""Splice of 16 samples of 2048 rows with an image of 576 rows each: exactness, and bandwidth beside everyone's way to merge image rows.

Bytes are the floor: forward reads the used rows of table and images and writes the output; backward reads the gradient, writes the table's
gradient whole and the images' gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from lmmblocks.kernels.splice_codes import NOWHERE, STATUS_WORDS

from lmmblocks import ops
from lmmblocks.experimental import DevicePlan
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import IMAGE_TOKEN, SplicePlan

from ...splice_cpu import (
    IMAGE_ROWS,
    PLACEHOLDER,
    ROWS,
    SAMPLES,
    VOCABULARY,
    WIDTH,
    llava_loop,
    transformers_merge,
)
from ..build import with_gradients
from ..case import Call, Check, Inputs, Suite, Target, Timing, in_cuda_too, in_mode

WANTED = ("table", "images")
CPU_SAMPLES = 2
LEAD = 40
"""Text before the image."""

BYTES_PER_ROW = WIDTH * 2


def _bytes(mode: str, samples: int) -> int:
    forward = 2 * samples * ROWS * BYTES_PER_ROW
    backward = (samples * (ROWS - IMAGE_ROWS) + VOCABULARY + 2 * samples * IMAGE_ROWS) * BYTES_PER_ROW
    return {"fwd": forward, "bwd": backward, "fwd+bwd": forward + backward}[mode]


def _ours(backend: str, i: Inputs) -> Any:
    images = i["features"][:, 1:] if "features" in i else i["images"]
    return ops.splice(i["table"], images, i["plan"], backend=backend)


def _with_slack(plan: SplicePlan, rows: int) -> SplicePlan:
    """The plan as the device makes it: with room for more rows than it uses."""
    source, order = (F.pad(x, (0, rows), value=empty) for x, empty in ((plan.source, NOWHERE), (plan.token_order, -1)))
    own = {field.name: getattr(plan, field.name) for field in fields(plan)}
    own |= {"source": source, "token_order": order, "total_rows": plan.total_rows + rows}
    return DevicePlan(**own, status=plan.source.new_zeros(STATUS_WORDS))


def _check(
    case: str, lengths: list[list[int]], texts: list[int], vocabulary: int, width: int, slack: int = 0, strided: bool = False, **options: Any
) -> Check:
    """Samples of given text lengths, each with its images after the third token; what nobody may read is NaN.

    With ``slack``, so many rows after the last segment; ``strided`` images are a view ``(I, P, D)`` without the class token before each.
    """

    def inputs(device: torch.device, toy: bool) -> Inputs:
        shrink = 60 if toy else 1
        images = [[max(rows // shrink, 1) for rows in sample] for sample in lengths]
        own = torch.Generator().manual_seed(0)
        words = min(vocabulary, 30) if toy else vocabulary
        ids = [torch.randint(0, words, (max(n // shrink, 4),), generator=own).tolist() for n in texts]
        marked = [[*sample[:3], *[IMAGE_TOKEN] * len(rows), *sample[3:]] for sample, rows in zip(ids, images)]
        plan = plan_splice(marked, images, **({**options, "max_length": 15} if toy and options else options)).to(device)
        columns = max(width // 32, 5) if toy else width
        rows = torch.randn(sum(map(sum, images)), columns, device=device)
        rows[plan.image_rows < 0] = float("nan")
        if strided:
            rows = F.pad(rows.unflatten(0, (-1, images[0][0])), (0, 0, 1, 0), value=float("nan"))
        grad = F.pad(torch.randn(plan.total_rows, columns, device=device), (0, 0, 0, slack), value=float("nan"))
        found = {"table": torch.randn(words, columns, device=device), images_name: rows, "grad": grad}
        return found | {"plan": _with_slack(plan, slack) if slack else plan}

    images_name = "features" if strided else "images"
    return Check("splice", case, inputs, with_gradients(_ours, ("table", images_name)))


def _inputs(device: torch.device, samples: int = SAMPLES) -> Inputs:
    text = torch.randint(0, PLACEHOLDER, (samples, ROWS - IMAGE_ROWS)).tolist()
    ids = [[*sample[:LEAD], IMAGE_TOKEN, *sample[LEAD:]] for sample in text]
    table, images = (
        torch.randn(*shape, WIDTH, device=device, dtype=torch.bfloat16).requires_grad_() for shape in ((VOCABULARY,), (samples, IMAGE_ROWS))
    )
    plan = plan_splice(ids, [[IMAGE_ROWS]] * samples).to(device)
    grad = torch.randn(samples * ROWS, WIDTH, device=device, dtype=torch.bfloat16)
    return {"table": table, "images": images, "plan": plan, "grad": grad, "ids": ids, "text": text}


def _way(make: Callable[[Inputs], Callable[[], Any]], mode: str) -> Callable[[Inputs], Call]:
    def prepare(i: Inputs) -> Call:
        run = make(i)
        return in_mode(mode, lambda: run().reshape(-1, WIDTH), tuple(i[name] for name in WANTED), i["grad"])

    return prepare


def _bound(way: Callable[[torch.Tensor, torch.Tensor], Any], i: Inputs) -> Callable[[], Any]:
    return lambda: way(i["table"], i["images"])


def _index_copy(i: Inputs) -> Callable[[], Any]:
    """Embed all places, copy the image rows over theirs: what serving engines do once they know the places on the host."""
    places = i["plan"].image_rows.long()
    ids = i["plan"].source.clamp_min(0).long()
    return lambda: F.embedding(ids, i["table"]).index_copy(0, places, i["images"].flatten(0, 1))


def _timing(mode: str, samples: int = SAMPLES) -> Timing:
    ways: dict[str, Callable[[Inputs], Callable[[], Any]]] = {
        "lmmblocks triton": lambda i: lambda: _ours("triton", i),
        "lmmblocks cuda": lambda i: lambda: _ours("cuda", i),
        "lmmblocks reference": lambda i: lambda: _ours("reference", i),
        "transformers masked_scatter": lambda i: _bound(transformers_merge(i["text"], i["table"].device), i),
        "LLaVA's loop": lambda i: _bound(llava_loop(i["ids"], i["table"].device), i),
        "embed + index_copy": _index_copy,
        "torch.compile (index_copy)": lambda i: torch.compile(_index_copy(i)),
    }
    providers = {name: _way(make, mode) for name, make in ways.items()}
    shape = f"{samples}x{ROWS}, {IMAGE_ROWS} image rows, D={WIDTH} bf16"
    return Timing("splice", shape, mode, lambda device: _inputs(device, samples), providers, bytes=_bytes(mode, samples), memory=True)


SUITE = Suite(
    checks=in_cuda_too(
        [
            _check("one image a sample", [[576]] * 4, [300, 900, 40, 1500], 32000, 4096),
            _check("none, two, adjacent", [[], [576, 576], [144]], [100, 700, 20], 5003, 1024),
            _check("truncated", [[576], [576]], [300, 900], 5003, 896, max_length=700, truncate="right"),
            _check("one heavy id", [[576]], [3000], 2, 4096),
            _check("odd width, no class tokens", [[576], [576, 576]], [300, 900], 5003, 1011, strided=True),
            _check("slack after the rows", [[576], []], [300, 900], 5003, 1024, slack=77),
        ]
    ),
    timings=[_timing(mode) for mode in ("fwd", "bwd", "fwd+bwd")],
    cpu=[_timing(mode, CPU_SAMPLES) for mode in ("fwd", "bwd")],
    targets=[
        Target("splice", "fwd", "", "copy", 0.9),
        Target("splice", "bwd", "", "copy", 0.85),
        *(Target("splice", mode, "", "copy", 0.92, ours="lmmblocks cuda") for mode in ("fwd", "bwd")),
        *(Target("splice", mode, "", "transformers masked_scatter", 7.0) for mode in ("fwd", "bwd")),
        *(Target("splice", mode, "", "LLaVA's loop", 10.0) for mode in ("fwd", "bwd")),
    ],
)
