"""What an encoder emits: promised before any tensor exists, and the tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .grids import Grid
from .instruction import Instruction

if TYPE_CHECKING:
    from torch import Tensor

PATCHES = frozenset({"patches"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """What an encoder will emit, known before any tensor exists.

    Attributes:
        dim: width ``C`` of each patch feature.
        patch: side of a patch in pixels.
        image_size: side of the square input in pixels; None = native resolution.
        prefix: tokens before the patches inside the encoder (CLS, registers); already removed from ``patches``.
        layers: hidden states that make up ``patches``, Hugging Face indexing (0 = embeddings, -1 = last layer).
        offers: of ``patches, prefix, layers, keys, cls_attn, towers``: what ``need=`` may ask for.
        towers: of an encoder that keeps several towers apart, what each of them emits; else empty.
        grid: patch grid of one image where it isn't ``image_size // patch`` squared.
    """

    dim: int
    patch: int
    image_size: int | None
    prefix: int = 0
    layers: tuple[int, ...] = (-2,)
    offers: frozenset[str] = frozenset({"patches"})
    towers: tuple[FeatureSpec, ...] = ()
    grid: Grid | None = None


@dataclass(slots=True)
class VisionFeatures:
    """Packed features of ``I`` images; nothing is padded. Of an image that was cut into tiles, each tile is an image here.

    Attributes:
        patches: ``(M, C)``, the prefix already removed.
        grids: one ``Grid`` per image; their rows add up to ``M``.
        prefix: ``(I, prefix, C)`` when asked for.
        layers: hidden-state index -> ``(M, C)`` when asked for.
        keys: ``(M, N, E)`` attention keys of the scoring layer when asked for.
        cls_attn: ``(M,)`` attention of CLS over the patches, mean over heads, when asked for.
        towers: of an encoder that keeps several towers apart, the features of each for the same images, when asked for.
        instruction: what is asked about each image, for projectors that require it; the model fills it in, not the encoder.
        table: ``(V, D)`` of the decoder, for projectors that require it; the model fills it in too.
    """

    patches: Tensor
    grids: tuple[Grid, ...]
    prefix: Tensor | None = None
    layers: dict[int, Tensor] = field(default_factory=dict)
    keys: Tensor | None = None
    cls_attn: Tensor | None = None
    towers: tuple[VisionFeatures, ...] = ()
    instruction: Instruction | None = None
    table: Tensor | None = None
