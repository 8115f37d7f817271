"""Packed attention: exactness over masks, groups and head widths; FLOP rate beside FlashAttention-2 (torch's), cuDNN, FlexAttention, xFormers.

FLOPs are those of the visible pairs: ``4 E`` a pair and head forward, 2.5 times as many backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lmmblocks import ops
from lmmblocks.spec import Segments

from ..build import with_gradients
from ..case import HALF, OURS, Call, Check, Inputs, Suite, Target, Timing, in_cuda_too, in_mode
from ..plain_attention import plain_attention

WANTED = ("q", "k", "v")
CUDA_WIDTHS = (64, 128)
"""Head widths that the CUDA kernels are compiled for."""

BACKWARD = 2.5
IMAGE_START, IMAGE_ROWS = 35, 576
ENDLESS = 2**30
"""``kv_end`` of rows after the last segment, where nobody may follow it."""


@dataclass(frozen=True)
class Shape:
    """A packed batch: lengths of its segments, heads and head width, and who sees whom ("full", "causal", "image")."""

    name: str
    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    width: int
    mask: str

    @property
    def equal(self) -> bool:
        """Whether all segments are of one length."""
        return len(set(self.lengths)) == 1

    def pairs(self) -> int:
        """Visible pairs of a head."""
        image = IMAGE_ROWS * (IMAGE_ROWS - 1) // 2 if self.mask == "image" else 0
        return sum(n * n if self.mask == "full" else n * (n + 1) // 2 + image for n in self.lengths)

    def flops(self, mode: str) -> int:
        """Operations of a mode."""
        return int(4 * self.pairs() * self.heads * self.width * {"fwd": 1, "bwd": BACKWARD, "fwd+bwd": 1 + BACKWARD}[mode])


CLIP, NARROW = "CLIP 64x577 h16 d64 full", "8x2048 h32 d64 causal"
TEXT, IMAGE = "8x2048 h32 d128 causal", "8x2048 h32/8 d128 image"
GROUPED = "16x1024 h32/8 d128 causal"

SHAPES = (
    Shape(CLIP, (577,) * 64, 16, 16, 64, "full"),
    Shape("SigLIP 32x729 h16 d72 full", (729,) * 32, 16, 16, 72, "full"),
    Shape(GROUPED, (1024,) * 16, 32, 8, 128, "causal"),
    Shape(NARROW, (2048,) * 8, 32, 32, 64, "causal"),
    Shape(TEXT, (2048,) * 8, 32, 32, 128, "causal"),
    Shape("4x4096 h32/8 d128 causal", (4096,) * 4, 32, 8, 128, "causal"),
    Shape("mixed 16k h32/8 d128 causal", (4096, 3000, 2500, 2048, 1700, 1100, 900, 640, 333, 67), 32, 8, 128, "causal"),
    Shape(IMAGE, (2048,) * 8, 32, 8, 128, "image"),
)


def kv_ends(lengths: Sequence[int], device: torch.device, image: tuple[int, int]) -> torch.Tensor:
    """Return int32 ``kv_end`` of segments that each hold an image, ``(start, rows)``, which sees itself whole."""
    ends, first = [], 0
    for length in lengths:
        own = torch.arange(first + 1, first + length + 1)
        start, stop = min(image[0], length), min(image[0] + image[1], length)
        own[start:stop] = first + stop
        ends.append(own)
        first += length
    return torch.cat(ends).to(torch.int32).to(device)


def _tensors(lengths: tuple[int, ...], heads: int, kv_heads: int, width: int, device: torch.device, slack: int = 0) -> Inputs:
    """Random rows of all segments, and so many of NaN after them."""
    rows = sum(lengths)
    counts = {"q": heads, "k": kv_heads, "v": kv_heads, "grad": heads}
    inputs: Inputs = {name: torch.randn(rows + slack, n, width, device=device) for name, n in counts.items()}
    for tensor in inputs.values():
        tensor[rows:] = float("nan")
    return inputs | {"segments": Segments.of(lengths, device=device)}


def _ours(**options: Any) -> Callable[[str, Inputs], Any]:
    def formula(backend: str, i: Inputs) -> Any:
        return ops.attention(i["q"], i["k"], i["v"], i["segments"], kv_end=i.get("kv_end"), backend=backend, **options)

    return formula


def _check(case: str, lengths: tuple[int, ...], heads: int, kv_heads: int, width: int, image: bool = False, slack: int = 0, **options: Any) -> Check:
    def inputs(device: torch.device, toy: bool) -> Inputs:
        small = tuple(min(length, 20 + index) for index, length in enumerate(lengths[:2])) if toy else lengths
        found = _tensors(small, heads if not toy else heads // kv_heads, kv_heads if not toy else 1, width, device, slack)
        place = (3, 9) if toy else (IMAGE_START, IMAGE_ROWS)
        ends = F.pad(kv_ends(small, device, place), (0, slack), value=ENDLESS)
        return found | ({"kv_end": ends} if image else {})

    plain = with_gradients(lambda backend, i: plain_attention(i, **options), WANTED)
    run = with_gradients(_ours(**options), WANTED)
    return Check("attention", case, inputs, run, dtypes=HALF, plain=lambda i: plain("", i))


def _inputs(shape: Shape) -> Callable[[torch.device], Inputs]:
    def make(device: torch.device) -> Inputs:
        found = _tensors(shape.lengths, shape.heads, shape.kv_heads, shape.width, device)
        found |= {name: found[name].bfloat16() for name in ("grad", *WANTED)}
        found |= {name: found[name].requires_grad_() for name in WANTED}
        return found | ({"kv_end": kv_ends(shape.lengths, device, (IMAGE_START, IMAGE_ROWS))} if shape.mask == "image" else {})

    return make


def _packed(backend: str, shape: Shape, mode: str) -> Callable[[Inputs], Call]:
    def prepare(i: Inputs) -> Call:
        return in_mode(mode, lambda: _ours(causal=shape.mask != "full")(backend, i), tuple(i[name] for name in WANTED), i["grad"])

    return prepare


def _causal_of_same_size(backend: str, shape: Shape, mode: str) -> Callable[[Inputs], Call]:
    """Our own kernel without the image mask: what causal speed is here."""

    def prepare(i: Inputs) -> Call:
        plain = {name: value for name, value in i.items() if name != "kv_end"}
        return in_mode(mode, lambda: _ours(causal=True)(backend, plain), tuple(i[name] for name in WANTED), i["grad"])

    return prepare


def _sdpa(shape: Shape, mode: str, backend: str | None = None) -> Callable[[Inputs], Call]:
    """``scaled_dot_product_attention`` on equal segments as a batch, held to one of its backends if one is named."""

    def prepare(i: Inputs) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        batch, length = len(shape.lengths), shape.lengths[0]

        def call() -> torch.Tensor:
            q, k, v = (i[name].view(batch, length, -1, shape.width).transpose(1, 2) for name in WANTED)
            with nullcontext() if backend is None else sdpa_kernel(getattr(SDPBackend, backend)):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=shape.mask == "causal", enable_gqa=shape.heads != shape.kv_heads)
            return out.transpose(1, 2).reshape(-1, shape.heads, shape.width)

        return in_mode(mode, call, tuple(i[name] for name in WANTED), i["grad"])

    return prepare


def _flex(shape: Shape, mode: str) -> Callable[[Inputs], Call]:
    """FlexAttention, compiled, with a block mask made beforehand."""

    def prepare(i: Inputs) -> Call:
        batch, length = len(shape.lengths), shape.lengths[0]
        compiled, mask = _compiled_flex(shape, i["q"].device)

        def call() -> torch.Tensor:
            q, k, v = (i[name].view(batch, length, -1, shape.width).transpose(1, 2) for name in WANTED)
            out = compiled(q, k, v, block_mask=mask, enable_gqa=shape.heads != shape.kv_heads)
            return out.transpose(1, 2).reshape(-1, shape.heads, shape.width)

        return in_mode(mode, call, tuple(i[name] for name in WANTED), i["grad"])

    return prepare


@functools.lru_cache(1)
def _compiled_flex(shape: Shape, device: torch.device) -> tuple[Callable[..., torch.Tensor], Any]:
    """FlexAttention compiled for this shape alone, and its block mask; once for all modes, as shapes are timed in turn."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # otherwise the next shape is compiled with symbolic sizes, and after a few shapes not at all
    length, last = shape.lengths[0], IMAGE_START + IMAGE_ROWS

    def visible(b: Any, h: Any, row: Any, column: Any) -> Any:
        causal = column <= row
        if shape.mask != "image":
            return causal
        return causal | ((row >= IMAGE_START) & (row < last) & (column < last))

    mask = None if shape.mask == "full" else create_block_mask(visible, None, None, length, length, device=device)
    return torch.compile(flex_attention), mask


CPU_SHAPES = (
    Shape("CLIP 2x577 h4 d64 full", (577,) * 2, 4, 4, 64, "full"),
    Shape("2x512 h4/2 d128 causal", (512,) * 2, 4, 2, 128, "causal"),
    Shape("mixed 700 h4/2 d128 causal", (400, 200, 64, 36), 4, 2, 128, "causal"),
)
"""Of a second or less on two cores."""


def _timing(shape: Shape, mode: str) -> Timing:
    kernels = ("triton", "cuda") if shape.width in CUDA_WIDTHS else ("triton",)
    providers = {f"{OURS}{name}": _packed(name, shape, mode) for name in kernels}
    if shape.mask == "image":
        providers |= {f"{name}, causal, same size": _causal_of_same_size(name, shape, mode) for name in kernels}
    else:
        providers |= {f"{OURS}{name}": _packed(name, shape, mode) for name in ("torch", "reference")}
        names = {"sdpa_flash": "flash varlen (torch)", "flash_attn": "flash-attn", "xformers": "xFormers"}
        providers |= {label: _packed(name, shape, mode) for name, label in names.items()}
    if shape.equal:
        providers["FlexAttention"] = _flex(shape, mode)
        if shape.mask != "image":
            providers["SDPA"] = _sdpa(shape, mode)
            providers |= {"SDPA flash": _sdpa(shape, mode, "FLASH_ATTENTION"), "SDPA cuDNN": _sdpa(shape, mode, "CUDNN_ATTENTION")}
    quick = mode != "bwd" or shape.name in (CLIP, NARROW, TEXT, GROUPED)
    return Timing("attention", shape.name, mode, _inputs(shape), providers, flops=shape.flops(mode), quick=quick)


CHECKS = [
    _check("CLIP tail 577 d64 full", (577, 577), 4, 4, 64, causal=False),
    *(_check(f"d{width} causal, grouped", (333, 0, 1, 700), 8, 2, width) for width in CUDA_WIDTHS),
    _check("d128 full, slack", (130, 64, 517), 4, 2, 128, slack=70, causal=False),
    _check("image mask, slack", (900, 700), 8, 2, 128, image=True, slack=9),
]
TRITON_CHECKS = [
    _check("SigLIP tail 729 d72 full", (729, 256), 4, 4, 72, causal=False),
    *(_check(f"d{width} causal, grouped", (333, 0, 1, 700), 8, 2, width) for width in (80, 96)),
    _check("d256 causal", (333, 200), 4, 2, 256),
    _check("window", (900, 130), 4, 2, 128, window=200),
    _check("softcap", (400, 130), 4, 2, 128, softcap=30.0),
]


def _cuda(mode: str, shape: str, against: str, at_least: float) -> Target:
    return Target("attention", mode, shape, against, at_least, ours=f"{OURS}cuda")


SUITE = Suite(
    checks=[*in_cuda_too(CHECKS), *TRITON_CHECKS],
    timings=[_timing(shape, mode) for shape in SHAPES for mode in ("fwd", "fwd+bwd", "bwd")],
    cpu=[_timing(shape, mode) for shape in CPU_SHAPES for mode in ("fwd", "bwd")],
    targets=[
        *(Target("attention", mode, name, "SDPA flash", 1.0) for mode in ("fwd", "fwd+bwd") for name in (CLIP, "16x", TEXT, "4x")),
        *(Target("attention", mode, "mixed", "flash varlen (torch)", 1.0) for mode in ("fwd", "fwd+bwd")),
        *(Target("attention", mode, IMAGE, "FlexAttention", 2.0) for mode in ("fwd", "fwd+bwd")),
        *(
            Target("attention", mode, IMAGE, f"{name}, causal, same size", 0.9, ours=OURS + name)
            for mode in ("fwd", "fwd+bwd")
            for name in ("triton", "cuda")
        ),
        _cuda("fwd", CLIP, "SDPA flash", 1.1),
        *(_cuda("fwd", name, "SDPA flash", 0.95) for name in (NARROW, "16x", TEXT, "4x")),
        *(_cuda("bwd", name, "SDPA flash", 0.9) for name in (CLIP, NARROW, TEXT, GROUPED)),
        *(_cuda(mode, IMAGE, "FlexAttention", 2.0) for mode in ("fwd", "fwd+bwd")),
    ],
)
