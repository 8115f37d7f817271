"""Scores that tokens are pruned by: the CLS token of a vision tower and the last row of a decoder, beside their formulas in torch.

A call reads the keys once; the scores themselves are 3 to 6% of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lmmblocks import ops
from lmmblocks.spec import Segments

from ..case import Call, Check, Inputs, Outputs, Suite, Timing

IMAGES, TOKENS = 64, 577
LENGTHS = (2048,) * 8


def _packed(
    lengths_q: Sequence[int],
    lengths_k: Sequence[int],
    heads: int,
    kv_heads: int,
    width: int,
    device: torch.device,
) -> Inputs:
    q, k = (
        torch.randn(sum(lengths_q), heads, width, device=device),
        torch.randn(sum(lengths_k), kv_heads, width, device=device),
    )
    return {"q": q, "k": k, "segments": Segments.of(lengths_q, lengths_k, device=device)}


def _cls(images: int, tokens: int, heads: int, width: int, device: torch.device) -> Inputs:
    return {
        "query": torch.randn(images, heads, width, device=device),
        "keys": torch.randn(images, tokens, heads, width, device=device),
    }


def _run_rows(backend: str, i: Inputs) -> Outputs:
    with torch.no_grad():
        return (ops.row_scores(i["q"], i["k"], i["segments"], backend=backend),)


def _run_last(backend: str, i: Inputs) -> Outputs:
    return (ops.last_row_scores(i["q"], i["k"], i["segments"], window=300, softcap=20.0, backend=backend),)


def _run_cls(backend: str, i: Inputs) -> Outputs:
    with torch.no_grad():
        return (ops.attention_of_cls(i["query"], i["keys"], 1, backend=backend),)


def _check(op: str, case: str, run: Callable[[str, Inputs], Outputs], full: tuple, toy: tuple) -> Check:
    make = _cls if op == "attention_of_cls" else _packed
    return Check(op, case, lambda device, small: make(*(toy if small else full), device), run)


def _cls_formula(i: Inputs) -> Call:
    return lambda: ops.attention_of_cls(i["query"], i["keys"], 1, backend="reference")


def _compiled_cls(i: Inputs) -> Call:
    from lmmblocks.ops.row_scores import attention_of_cls_reference

    compiled = torch.compile(attention_of_cls_reference)
    return lambda: compiled(i["query"], i["keys"], 1, 64**-0.5)


def _last(backend: str) -> Callable[[Inputs], Call]:
    return lambda i: lambda: ops.last_row_scores(i["q"], i["k"], i["segments"], backend=backend)


def _bf16(make: Callable[..., Inputs], *shape: object) -> Callable[[torch.device], Inputs]:
    def inputs(device: torch.device) -> Inputs:
        found = make(*shape, device)
        return {name: value.bfloat16() if isinstance(value, torch.Tensor) else value for name, value in found.items()}

    return inputs


def _cls_timing(images: int) -> Timing:
    providers = {
        "lmmblocks triton": lambda i: lambda: ops.attention_of_cls(i["query"], i["keys"], 1, backend="triton"),
        "lmmblocks reference": _cls_formula,
        "torch.compile": _compiled_cls,
    }
    shape = f"CLIP {images}x{TOKENS} h16 d64 bf16"
    return Timing("attention_of_cls", shape, "fwd", _bf16(_cls, images, TOKENS, 16, 64), providers, bytes=images * TOKENS * 16 * 64 * 2)


def _last_timing(lengths: tuple[int, ...]) -> Timing:
    providers = {"lmmblocks triton": _last("triton"), "lmmblocks reference": _last("reference")}
    shape = f"{len(lengths)}x{lengths[0]} h32/8 d128 bf16"
    return Timing("last_row_scores", shape, "fwd", _bf16(_packed, lengths, lengths, 32, 8, 128), providers, bytes=sum(lengths) * 8 * 128 * 2)


SUITE = Suite(
    checks=[
        _check("row_scores", "several rows, any number", _run_rows, ((1, 2, 0, 1), (1500, 900, 40, 64), 8, 2, 128), ((1, 2), (70, 20), 4, 2, 64)),
        _check("row_scores", "d72", _run_rows, ((1, 1), (729, 729), 16, 16, 72), ((1,), (40,), 2, 2, 72)),
        _check("last_row_scores", "window, softcap", _run_last, ((1500, 64, 0), (1500, 900, 40), 32, 8, 128), ((9, 3), (70, 20), 4, 2, 64)),
        _check("attention_of_cls", "CLIP 577", _run_cls, (8, 577, 16, 64), (2, 40, 2, 64)),
    ],
    timings=[_cls_timing(IMAGES), _last_timing(LENGTHS)],
    cpu=[_cls_timing(2), _last_timing((1024,) * 2)],
)  # fmt: skip
