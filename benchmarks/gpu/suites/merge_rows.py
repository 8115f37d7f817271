"""Token merging of PruMerge and VisionZip: exactness and ties, and its time beside the batched references, for equal and unequal images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lmmblocks import experimental
from lmmblocks.spec import Segments

from ..case import Call, Check, Inputs, Outputs, Suite, Timing

EQUAL = (576,) * 16
UNEQUAL = (576, 400, 729, 576, 1024, 350, 640, 576, 480, 900, 256, 1200, 576, 700, 324, 529)
WIDTH, KEY_WIDTH, HEAD_WIDTH = 1024, 1024, 64
PRUMERGE = {"keep": 32, "spread": 32, "neighbours": 32}
VISIONZIP = {"keep": 53, "targets": 10}


def _images(lengths: Sequence[int], width: int, key_width: int, device: torch.device) -> Inputs:
    rows = sum(lengths)
    x, keys = torch.randn(rows, width, device=device), torch.randn(rows, key_width, device=device)
    return {
        "x": x,
        "keys": keys,
        "scores": torch.rand(rows, device=device) ** 4,
        "images": Segments.of(lengths, device=device),
    }


def _neighbours(backend: str, i: Inputs, **options: int) -> Outputs:
    return (experimental.merge_neighbours(i["x"], i["keys"], i["scores"], i["images"], backend=backend, **options),)


def _nearest(backend: str, i: Inputs, **options: int) -> Outputs:
    return (experimental.merge_to_nearest(i["x"], i["keys"], i["scores"], i["images"], backend=backend, **options),)


def _outliers(backend: str, i: Inputs) -> Outputs:
    return (experimental.outlier_counts(i["scores"], i["images"], backend=backend),)


def _check(op: str, case: str, lengths: tuple[int, ...], run: Callable[[str, Inputs], Outputs]) -> Check:
    def inputs(device: torch.device, toy: bool) -> Inputs:
        small = tuple(20 + length % 7 for length in lengths[:2])
        return _images(small if toy else lengths, 24 if toy else 256, 16 if toy else 64, device)

    return Check(op, case, inputs, run)


def _timing(op: str, name: str, lengths: tuple[int, ...], key_width: int, options: dict[str, int]) -> Timing:
    formula = _neighbours if op == "merge_neighbours" else _nearest

    def inputs(device: torch.device) -> Inputs:
        found = _images(lengths, WIDTH, key_width, device)
        return found | {key: found[key].bfloat16() for key in ("x", "keys", "scores")}

    def provider(backend: str) -> Callable[[Inputs], Call]:
        return lambda i: lambda: formula(backend, i, **options)

    providers = {f"lmmblocks {backend}": provider(backend) for backend in ("triton", "reference")}
    return Timing(
        op,
        f"{name} C{key_width} D{WIDTH} bf16",
        "fwd",
        inputs,
        providers,
        bytes=sum(lengths) * (WIDTH + key_width) * 2,
    )


SUITE = Suite(
    checks=[
        *(
            _check(
                "merge_neighbours",
                name,
                lengths,
                lambda backend, i: _neighbours(backend, i, keep=9, spread=4, neighbours=12),
            )
            for name, lengths in (("equal", EQUAL[:3]), ("unequal", UNEQUAL[:5]))
        ),
        *(
            _check("merge_to_nearest", name, lengths, lambda backend, i: _nearest(backend, i, keep=9, targets=5))
            for name, lengths in (("equal", EQUAL[:3]), ("unequal", UNEQUAL[:5]))
        ),
        _check("outlier_counts", "unequal", UNEQUAL, _outliers),
    ],
    cpu=[
        _timing("merge_neighbours", "2x576", EQUAL[:2], KEY_WIDTH, PRUMERGE),
        _timing("merge_to_nearest", "2x576", EQUAL[:2], HEAD_WIDTH, VISIONZIP),
    ],
    timings=[
        *(_timing("merge_neighbours", name, lengths, KEY_WIDTH, PRUMERGE) for name, lengths in (("16x576", EQUAL), ("16 unequal", UNEQUAL))),
        *(_timing("merge_to_nearest", name, lengths, HEAD_WIDTH, VISIONZIP) for name, lengths in (("16x576", EQUAL), ("16 unequal", UNEQUAL))),
    ],
)
