"""Packed attention: exactness over masks, groups and head widths; FLOP rate beside FlashAttention-2 (torch's), cuDNN, FlexAttention, xFormers.

FLOPs are those of the visible pairs: ``4 E`` a pair and head forward, 2.5 times as many backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lmmblocks import ops
from lmmblocks.ops.activations import softcapped
from lmmblocks.ops.attention import visible_keys
from lmmblocks.spec import Segments

from ..build import with_gradients
from ..case import HALF, Call, Check, Inputs, Suite, Target, Timing, in_mode

WANTED = ("q", "k", "v")
BACKWARD = 2.5
IMAGE_START, IMAGE_ROWS = 35, 576


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


SHAPES = (
    Shape("CLIP 64x577 h16 d64 full", (577,) * 64, 16, 16, 64, "full"),
    Shape("SigLIP 32x729 h16 d72 full", (729,) * 32, 16, 16, 72, "full"),
    Shape("16x1024 h32/8 d128 causal", (1024,) * 16, 32, 8, 128, "causal"),
    Shape("8x2048 h32 d128 causal", (2048,) * 8, 32, 32, 128, "causal"),
    Shape("4x4096 h32/8 d128 causal", (4096,) * 4, 32, 8, 128, "causal"),
    Shape("mixed 16k h32/8 d128 causal", (4096, 3000, 2500, 2048, 1700, 1100, 900, 640, 333, 67), 32, 8, 128, "causal"),
    Shape("8x2048 h32/8 d128 image", (2048,) * 8, 32, 8, 128, "image"),
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


def _tensors(lengths: tuple[int, ...], heads: int, kv_heads: int, width: int, device: torch.device) -> Inputs:
    rows = sum(lengths)
    counts = {"q": heads, "k": kv_heads, "v": kv_heads, "grad": heads}
    inputs: Inputs = {name: torch.randn(rows, n, width, device=device) for name, n in counts.items()}
    return inputs | {"segments": Segments.of(lengths, device=device)}


def _ours(**options: Any) -> Callable[[str, Inputs], Any]:
    def formula(backend: str, i: Inputs) -> Any:
        return ops.attention(i["q"], i["k"], i["v"], i["segments"], kv_end=i.get("kv_end"), backend=backend, **options)

    return formula


def _plain(i: Inputs, causal: bool = True, window: int | None = None, softcap: float | None = None) -> torch.Tensor:
    """Attention as torch alone computes it in the dtype of the inputs: products, softmax and weights rounded on the way."""
    group, first, parts = i["q"].shape[1] // i["k"].shape[1], 0, []
    for length in i["segments"].lengths_q:
        rows = slice(first, first + length)
        q, k, v = (i[name][rows].transpose(0, 1) for name in WANTED)
        scores = q @ k.repeat_interleave(group, 0).transpose(1, 2) * q.shape[-1] ** -0.5
        ends = i["kv_end"][rows] - first if "kv_end" in i else None
        places = torch.arange(length, device=q.device)
        mask = visible_keys(places, places, causal, ends, window)
        scores = softcapped(scores, softcap)
        scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        parts.append((scores.softmax(-1) @ v.repeat_interleave(group, 0)).transpose(0, 1))
        first += length
    return torch.cat(parts)


def _check(case: str, lengths: tuple[int, ...], heads: int, kv_heads: int, width: int, image: bool = False, **options: Any) -> Check:
    def inputs(device: torch.device, toy: bool) -> Inputs:
        small = tuple(min(length, 20 + index) for index, length in enumerate(lengths[:3])) if toy else lengths
        found = _tensors(small, heads if not toy else 2 * heads // kv_heads, kv_heads if not toy else 2, width, device)
        place = (3, 9) if toy else (IMAGE_START, IMAGE_ROWS)
        return found | ({"kv_end": kv_ends(small, device, place)} if image else {})

    plain = with_gradients(lambda backend, i: _plain(i, **options), WANTED)
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


def _causal_of_same_size(shape: Shape, mode: str) -> Callable[[Inputs], Call]:
    """Our own kernel without the image mask: what causal speed is here."""

    def prepare(i: Inputs) -> Call:
        plain = {name: value for name, value in i.items() if name != "kv_end"}
        return in_mode(mode, lambda: _ours(causal=True)("triton", plain), tuple(i[name] for name in WANTED), i["grad"])

    return prepare


def _sdpa(shape: Shape, mode: str, backend: str) -> Callable[[Inputs], Call]:
    """``scaled_dot_product_attention`` on equal segments as a batch, held to one of its backends."""

    def prepare(i: Inputs) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        batch, length = len(shape.lengths), shape.lengths[0]

        def call() -> torch.Tensor:
            q, k, v = (i[name].view(batch, length, -1, shape.width).transpose(1, 2) for name in WANTED)
            with sdpa_kernel(getattr(SDPBackend, backend)):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=shape.mask == "causal", enable_gqa=shape.heads != shape.kv_heads)
            return out.transpose(1, 2).reshape(-1, shape.heads, shape.width)

        return in_mode(mode, call, tuple(i[name] for name in WANTED), i["grad"])

    return prepare


def _flex(shape: Shape, mode: str) -> Callable[[Inputs], Call]:
    """FlexAttention, compiled, with a block mask made beforehand."""

    def prepare(i: Inputs) -> Call:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        batch, length = len(shape.lengths), shape.lengths[0]
        last = IMAGE_START + IMAGE_ROWS

        def visible(b: Any, h: Any, row: Any, column: Any) -> Any:
            causal = column <= row
            if shape.mask != "image":
                return causal
            return causal | ((row >= IMAGE_START) & (row < last) & (column < last))

        mask = None if shape.mask == "full" else create_block_mask(visible, None, None, length, length, device=i["q"].device)
        compiled = torch.compile(flex_attention)

        def call() -> torch.Tensor:
            q, k, v = (i[name].view(batch, length, -1, shape.width).transpose(1, 2) for name in WANTED)
            out = compiled(q, k, v, block_mask=mask, enable_gqa=shape.heads != shape.kv_heads)
            return out.transpose(1, 2).reshape(-1, shape.heads, shape.width)

        return in_mode(mode, call, tuple(i[name] for name in WANTED), i["grad"])

    return prepare


def _timing(shape: Shape, mode: str) -> Timing:
    providers = {"lmmblocks triton": _packed("triton", shape, mode)}
    if shape.mask == "image":
        providers["causal, same size"] = _causal_of_same_size(shape, mode)
    else:
        names = {"sdpa_flash": "flash varlen (torch)", "flash_attn": "flash-attn", "xformers": "xFormers"}
        providers |= {label: _packed(name, shape, mode) for name, label in names.items()}
    if shape.equal:
        providers["FlexAttention"] = _flex(shape, mode)
        if shape.mask != "image":
            providers |= {"SDPA flash": _sdpa(shape, mode, "FLASH_ATTENTION"), "SDPA cuDNN": _sdpa(shape, mode, "CUDNN_ATTENTION")}
    return Timing("attention", shape.name, mode, _inputs(shape), providers, flops=shape.flops(mode), quick=mode != "bwd")


SUITE = Suite(
    checks=[
        _check("CLIP tail 577 d64 full", (577, 577), 4, 4, 64, causal=False),
        _check("SigLIP tail 729 d72 full", (729, 256), 4, 4, 72, causal=False),
        *(_check(f"d{width} causal, grouped", (333, 0, 1, 700), 8, 2, width) for width in (64, 80, 96, 128)),
        _check("d256 causal", (333, 200), 4, 2, 256),
        _check("image mask", (900, 700), 8, 2, 128, image=True),
        _check("window", (900, 130), 4, 2, 128, window=200),
        _check("softcap", (400, 130), 4, 2, 128, softcap=30.0),
    ],
    timings=[_timing(shape, mode) for shape in SHAPES for mode in ("fwd", "fwd+bwd", "bwd")],
    targets=[
        *(Target("attention", mode, name, "SDPA flash", 1.0) for mode in ("fwd", "fwd+bwd") for name in ("CLIP", "16x", "8x2048 h32 ", "4x")),
        *(Target("attention", mode, "mixed", "flash varlen (torch)", 1.0) for mode in ("fwd", "fwd+bwd")),
        *(Target("attention", mode, "8x2048 h32/8 d128 image", "FlexAttention", 2.0) for mode in ("fwd", "fwd+bwd")),
        *(Target("attention", mode, "8x2048 h32/8 d128 image", "causal, same size", 0.9) for mode in ("fwd", "fwd+bwd")),
    ],
)
