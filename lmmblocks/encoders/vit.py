"""What the vision transformers share: the pre-norm layer of CLIP and SigLIP, and from hidden states to packed features.

A tower gives its hidden states and the queries and keys of a layer; :class:`ViTEncoder` does the rest in one place: checks, selection
by Hugging Face's indices, the prefix left out, extras on request. No layer after the deepest selected one is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..spec import PATCHES, FeatureSpec, Grid, LmmError, Segments, VisionFeatures


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": ops.quick_gelu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}
"""Activations by Hugging Face's names."""

WITH_CLS = frozenset({"patches", "prefix", "layers", "keys", "cls_attn"})
"""What an encoder offers that has a CLS token."""

WITHOUT_CLS = frozenset({"patches", "layers", "keys"})
"""What an encoder offers that has none."""


def shape_problems(config: Any, *, whole_patches: bool = True) -> Iterator[str]:
    """Yield what doesn't fit together in the config of a vision transformer.

    Args:
        config: has ``dim, layers, heads, image_size, patch, select`` and maybe ``activation``.
        whole_patches: the image must be a whole number of patches; False where the rest is cut off, as SigLIP-384/14 does.
    """
    if whole_patches and config.image_size % config.patch:
        yield f"image_size {config.image_size} px is not a multiple of patch {config.patch} px"
    if config.image_size < config.patch:
        yield f"image_size {config.image_size} px is smaller than patch {config.patch} px"
    if config.dim % config.heads:
        yield f"dim {config.dim} is not a multiple of heads {config.heads}"
    yield from activation_problems(config)
    yield from select_problems(config.select, config.layers)


def activation_problems(config: Any) -> Iterator[str]:
    """Yield a problem when the activation of a config is none of the known ones."""
    if getattr(config, "activation", "gelu") not in ACTIVATIONS:
        yield f"activation {config.activation!r} is none of {sorted(ACTIVATIONS)}"


def select_problems(select: tuple[int, ...], layers: int) -> Iterator[str]:
    """Yield a problem when a selection names a hidden state that a tower of ``layers`` layers doesn't have."""
    if not select or not all(-layers - 1 <= s <= layers for s in select):
        yield f"select {select} must name hidden states 0..{layers} (or -{layers + 1}..-1)"


class Attention(nn.Module):
    """Self-attention within each image, with the names of CLIP and SigLIP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def heads_of(self, projection: nn.Linear, x: Tensor) -> Tensor:
        """Project ``(..., C)`` and split it into heads ``(..., N, E)``."""
        return projection(x).unflatten(-1, (self.heads, -1))

    def forward(self, x_TC: Tensor, segments: Segments) -> Tensor:
        """Mix the rows of each segment."""
        q, k, v = (self.heads_of(p, x_TC) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(ops.attention(q, k, v, segments, causal=False).flatten(1))


class FusedAttention(nn.Module):
    """Self-attention within each image; queries, keys and values come from one product, with the names of BLIP-2.

    Args:
        dim: width ``C``.
        heads: attention heads.
        bias: of the product.
        by_head: the rows of the matrix are the queries, keys and values of the first head, then those of the second, instead of all queries first.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True, by_head: bool = False) -> None:
        super().__init__()
        self.heads, self.by_head = heads, by_head
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.projection = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values ``(..., N, E)`` of ``(..., C)``."""
        parts = (self.heads, 3, -1) if self.by_head else (3, self.heads, -1)
        q, k, v = self.qkv(x).unflatten(-1, parts).unbind(-2 if self.by_head else -3)
        return q, k, v

    def forward(self, x_TC: Tensor, segments: Segments) -> Tensor:
        """Mix the rows of each segment."""
        q_TNE, k_TNE, v_TNE = self.project(x_TC)
        return self.projection(ops.attention(q_TNE, k_TNE, v_TNE, segments, causal=False).flatten(1))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, mlp_dim: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each row ``(..., C)``."""
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Pre-norm transformer layer of CLIP and SigLIP, from a config with ``dim, heads, mlp_dim, activation, eps``.

    Args:
        config: of the tower.
        attention: instead of :class:`Attention`; called with rows and segments.
    """

    def __init__(self, config: Any, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.self_attn: Any = Attention(config.dim, config.heads) if attention is None else attention
        self.layer_norm1 = ops.LayerNorm(config.dim, eps=config.eps)
        self.mlp = MLP(config.dim, config.mlp_dim, config.activation)
        self.layer_norm2 = ops.LayerNorm(config.dim, eps=config.eps)

    def forward(self, x_TC: Tensor, segments: Segments) -> Tensor:
        """Return the next hidden state of packed rows."""
        x_TC = x_TC + self.self_attn(self.layer_norm1(x_TC), segments)
        return x_TC + self.mlp(self.layer_norm2(x_TC))

    def query_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token's query ``(..., 1, N, E)`` and all keys ``(..., T, N, E)`` of the hidden state that enters the layer."""
        normed, attention = self.layer_norm1(x), self.self_attn
        return attention.heads_of(attention.q_proj, normed[..., :1, :]), attention.heads_of(attention.k_proj, normed)


class FusedLayer(Layer):
    """The same with a :class:`FusedAttention`."""

    def query_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token's query ``(..., 1, N, E)`` and all keys ``(..., T, N, E)`` of the hidden state that enters the layer."""
        query, keys, _ = self.self_attn.project(self.layer_norm1(x))
        return query[..., :1, :, :], keys


class Stack(nn.Module):
    """The layers under Hugging Face's name ``encoder.layers``; ``layer`` makes one from the config."""

    def __init__(self, config: Any, layer: Callable[[Any], nn.Module] = Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(config) for _ in range(config.layers))


def stretched_positions(table_PC: Tensor, side: int, *, antialias: bool = False) -> Tensor:
    """Return a square table of positions ``(P, C)`` for ``side x side`` patches: bicubic interpolation in fp32, the table itself where it fits."""
    own = math.isqrt(table_PC.shape[0])
    if own == side:
        return table_PC
    grid_1CHW = table_PC.unflatten(0, (own, own)).permute(2, 0, 1)[None].float()
    stretched = F.interpolate(grid_1CHW, (side, side), mode="bicubic", align_corners=False, antialias=antialias)
    return stretched.to(table_PC.dtype)[0].flatten(1).T


def hidden_states(x_TC: Tensor, segments: Segments, layers: nn.ModuleList, wanted: frozenset[int]) -> dict[int, Tensor]:
    """Return ``{index: (T, C)}`` of the wanted hidden states (0 = ``x_TC``), running no layer after the last of them."""
    states = {}
    for index in range(max(wanted) + 1):
        if index:
            x_TC = layers[index - 1](x_TC, segments)
        if index in wanted:
            states[index] = x_TC
    return states


def hidden_states_of_images(x_IPC: Tensor, layers: nn.ModuleList, wanted: frozenset[int]) -> dict[int, Tensor]:
    """As :func:`hidden_states` for images of one size: ``(I, prefix + P, C)`` in and out."""
    images, tokens = x_IPC.shape[:2]
    segments = Segments.uniform(images, tokens, device=x_IPC.device)
    states = hidden_states(x_IPC.flatten(0, 1), segments, layers, wanted)
    return {index: state.unflatten(0, (images, tokens)) for index, state in states.items()}


class ViTEncoder(nn.Module):
    """An encoder block around a vision transformer: pixels to packed patch features.

    A subclass sets ``vision_model``, which has ``hidden_states(pixels, wanted)`` and layers with ``query_and_keys``, or gives ``_states`` and
    ``_query_and_keys`` itself.

    Args:
        config: of the tower; ``select`` is read.
        preprocess: how a picture becomes pixels.
        name: of the encoder, in messages.
        prefix: tokens before the patches; the first is CLS.
        offers: what ``need=`` may ask for.
        shape: has ``dim, layers, patch`` and ``image_size`` (none: any size); None = the config.

    Attributes:
        spec: what it emits.
        preprocess: how a picture becomes pixels.
    """

    vision_model: Any

    def __init__(self, config: Any, preprocess: Any, *, name: str, prefix: int, offers: frozenset[str], shape: Any = None) -> None:
        super().__init__()
        self.config, self.name, self.preprocess = config, name, preprocess
        shape = config if shape is None else shape
        self.select = tuple(s % (shape.layers + 1) for s in config.select)
        self.spec = FeatureSpec(
            dim=shape.dim * len(config.select),
            patch=shape.patch,
            image_size=getattr(shape, "image_size", None),
            prefix=prefix,
            layers=config.select,
            offers=offers,
        )

    @property
    def frozen(self) -> bool:
        """Whether no parameter learns, so that no activation is kept; ``requires_grad`` alone says so. A new tower is frozen.

        Setting it freezes or wakes all parameters.
        """
        return not any(parameter.requires_grad for parameter in self.parameters())

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self.requires_grad_(not value)

    def _states(self, pixels: Tensor, wanted: frozenset[int]) -> dict[int, Tensor]:
        """Return ``{index: (I, prefix + P, C)}`` of the wanted hidden states."""
        return self.vision_model.hidden_states(pixels, wanted)

    def _query_and_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token's query and all keys ``(..., N, E)`` of a layer for the hidden state that enters it."""
        return self.vision_model.encoder.layers[layer].query_and_keys(x)

    def forward(self, pixels: Tensor, *, need: frozenset[str] = PATCHES) -> VisionFeatures:
        """Encode pixels.

        Args:
            pixels: ``(I, 3, image_size, image_size)``; ``I`` may be 0.
            need: extras beside ``patches``, a subset of ``spec.offers``.

        Returns:
            Packed features of width ``spec.dim``, in the dtype of the weights.

        Raises:
            LmmError: wrong pixel shape, or something this encoder doesn't offer.
        """
        size = self.spec.image_size
        assert size is not None
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise LmmError(f"encoder {self.name!r} needs pixels (I, 3, {size}, {size}), found {tuple(pixels.shape)}")
        self._refuse_unknown(need)
        side = size // self.spec.patch
        states = self._states(pixels.to(next(self.parameters()).dtype), self._wanted(need))
        return self._features(states, (Grid(side, side),) * pixels.shape[0], need)

    def _refuse_unknown(self, need: frozenset[str]) -> None:
        if not need <= self.spec.offers:
            found, offers = sorted(need - self.spec.offers), sorted(self.spec.offers)
            raise LmmError(f"encoder {self.name!r} can't give {found}; it offers {offers}")

    def _wanted(self, need: frozenset[str]) -> frozenset[int]:
        """Return the selected hidden states, and the one that enters the scoring layer where it is needed."""
        last = max(self.select)
        return frozenset(self.select) | ({max(last - 1, 0)} if need & {"keys", "cls_attn"} else set())

    def _features(self, states: dict[int, Tensor], grids: tuple[Grid, ...], need: frozenset[str]) -> VisionFeatures:
        prefix = self.spec.prefix
        features = VisionFeatures(torch.cat([_patches(states[s], prefix) for s in self.select], -1), grids)
        if "prefix" in need:
            features.prefix = torch.cat([states[s][:, :prefix] for s in self.select], -1)
        if "layers" in need:
            features.layers = {name: _patches(states[s], prefix) for name, s in zip(self.config.select, self.select)}
        if need & {"keys", "cls_attn"}:
            scoring = max(max(self.select) - 1, 0)
            query, keys = self._query_and_keys(scoring, states[scoring])
            if "keys" in need:
                features.keys = keys[..., prefix:, :, :].flatten(0, -3)
            if "cls_attn" in need:
                features.cls_attn = ops.attention_of_cls(query[:, 0], keys, prefix)
        return features


def _patches(state: Tensor, prefix: int) -> Tensor:
    """``(I, prefix + P, C)`` to packed ``(M, C)``; packed rows without a prefix stay what they are."""
    return state[..., prefix:, :].flatten(0, -2)
