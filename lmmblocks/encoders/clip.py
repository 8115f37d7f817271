"""CLIP's vision transformer, native, with Hugging Face's parameter names.

Runs only up to the deepest layer that is asked for (LLaVA-1.5: 23 of 24); the layers behind it are carried as parameters so that an
export is complete, but never computed. Source: Radford et al., arXiv 2103.00020; names as ``CLIPVisionModel`` of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..field_checks import field_problems
from ..images.preprocess import ImagePreprocess, clip_preprocess
from ..spec import PATCHES, FeatureSpec, Grid, LmmError, Segments, VisionFeatures

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": ops.quick_gelu, "gelu": F.gelu}
_OFFERS = frozenset({"patches", "prefix", "layers", "keys", "cls_attn"})


@dataclass(frozen=True)
class CLIPConfig:
    """Shape of a CLIP vision transformer; defaults are ViT-L/14 at 336 px, as LLaVA-1.5 uses it.

    Attributes:
        dim: width ``C``.
        layers: transformer layers in the checkpoint.
        heads: attention heads.
        mlp_dim: hidden width of the MLP.
        image_size: side of the square input in pixels.
        patch: side of a patch in pixels.
        activation: ``quick_gelu`` (OpenAI) or ``gelu`` (exact; LAION).
        eps: of the layer norms.
        select: hidden states that make up the features, Hugging Face indexing; several are joined on channels.
    """

    dim: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_dim: int = 4096
    image_size: int = 336
    patch: int = 14
    activation: str = "quick_gelu"
    eps: float = 1e-5
    select: tuple[int, ...] = (-2,)

    def __post_init__(self) -> None:
        problems = field_problems(self) or list(self._disagreements())
        if problems:
            raise LmmError("CLIPConfig: " + "; ".join(problems))

    def _disagreements(self) -> Iterator[str]:
        if self.image_size % self.patch:
            yield f"image_size {self.image_size} px is not a multiple of patch {self.patch} px"
        if self.dim % self.heads:
            yield f"dim {self.dim} is not a multiple of heads {self.heads}"
        if self.activation not in _ACTIVATIONS:
            yield f"activation {self.activation!r} is none of {sorted(_ACTIVATIONS)}"
        if not self.select or not all(-self.layers - 1 <= s <= self.layers for s in self.select):
            yield f"select {self.select} must name hidden states 0..{self.layers} (or -{self.layers + 1}..-1)"

    def build(self) -> CLIP:
        """Return the encoder with random weights."""
        return CLIP(self)


class _Embeddings(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        side = config.image_size // config.patch
        self.class_embedding = nn.Parameter(torch.randn(config.dim) * config.dim**-0.5)
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding(side * side + 1, config.dim)

    def forward(self, pixels: Tensor) -> Tensor:
        patches_IPC = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        cls_IC = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return torch.cat([cls_IC, patches_IPC], 1) + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(config.dim, config.dim) for _ in range(4))

    def heads_of(self, projection: nn.Linear, x_TC: Tensor) -> Tensor:
        return projection(x_TC).unflatten(-1, (self.heads, -1))

    def forward(self, x_TC: Tensor, segments: Segments) -> Tensor:
        q, k, v = (self.heads_of(p, x_TC) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(ops.attention(q, k, v, segments, causal=False).flatten(1))


class _MLP(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x_TC: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_TC)))


class _Layer(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = _MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, x_TC: Tensor, segments: Segments) -> Tensor:
        x_TC = x_TC + self.self_attn(self.layer_norm1(x_TC), segments)
        return x_TC + self.mlp(self.layer_norm2(x_TC))


class _Stack(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))


class CLIPVisionTransformer(nn.Module):
    """The tower itself: embeddings, ``pre_layrnorm`` (the checkpoint's spelling), layers, ``post_layernorm``."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.dim, eps=config.eps)
        self.encoder = _Stack(config)
        self.post_layernorm = nn.LayerNorm(config.dim, eps=config.eps)

    def hidden_states(self, pixels: Tensor, wanted: frozenset[int]) -> dict[int, Tensor]:
        """Return ``{index: (I, 1 + P, C)}`` of the wanted hidden states, running no layer behind the last of them."""
        x_IPC = self.pre_layrnorm(self.embeddings(pixels))
        images, tokens = x_IPC.shape[:2]
        segments = Segments.uniform(images, tokens, device=pixels.device)
        x_TC, states = x_IPC.flatten(0, 1), {}
        for index in range(max(wanted) + 1):
            if index:
                x_TC = self.encoder.layers[index - 1](x_TC, segments)
            if index in wanted:
                states[index] = x_TC.unflatten(0, (images, tokens))
        return states


class CLIP(nn.Module):
    """CLIP as an encoder block: pixels to packed patch features.

    Attributes:
        spec: what it emits.
        preprocess: how a picture becomes pixels.
        frozen: computes without autograd and keeps no activations (the default; stages that train it clear it).

    >>> CLIPConfig(dim=8, layers=2, heads=2, mlp_dim=8, image_size=28).build().spec.dim
    8
    """

    def __init__(self, config: CLIPConfig, preprocess: ImagePreprocess | None = None) -> None:
        super().__init__()
        self.config = config
        self.select = tuple(s % (config.layers + 1) for s in config.select)
        self.spec = FeatureSpec(
            dim=config.dim * len(config.select),
            patch=config.patch,
            image_size=config.image_size,
            prefix=1,
            layers=config.select,
            offers=_OFFERS,
        )
        self.preprocess = preprocess or clip_preprocess(config.image_size, config.patch)
        self.vision_model = CLIPVisionTransformer(config)
        self.frozen = True

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
        size = self.config.image_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise LmmError(f"encoder 'clip' needs pixels (I, 3, {size}, {size}), found {tuple(pixels.shape)}")
        if not need <= self.spec.offers:
            raise LmmError(f"encoder 'clip' can't give {sorted(need - self.spec.offers)}; it offers {sorted(self.spec.offers)}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._features(pixels.to(self.vision_model.pre_layrnorm.weight.dtype), need)

    def _features(self, pixels: Tensor, need: frozenset[str]) -> VisionFeatures:
        last = max(self.select)
        wanted = set(self.select) | ({last - 1} if need & {"keys", "cls_attn"} and last else set())
        states = self.vision_model.hidden_states(pixels, frozenset(wanted))
        side = self.config.image_size // self.config.patch
        features = VisionFeatures(
            patches=torch.cat([states[s][:, 1:] for s in self.select], -1).flatten(0, 1),
            grids=(Grid(side, side),) * pixels.shape[0],
        )
        if "prefix" in need:
            features.prefix = torch.cat([states[s][:, :1] for s in self.select], -1)
        if "layers" in need:
            features.layers = {name: states[s][:, 1:].flatten(0, 1) for name, s in zip(self.config.select, self.select)}
        if need & {"keys", "cls_attn"}:
            self._scores(states[max(last - 1, 0)], features, need)
        return features

    def _scores(self, x_IPC: Tensor, features: VisionFeatures, need: frozenset[str]) -> None:
        """Keys of the last computed layer, and the attention its CLS query pays to each patch (mean over heads)."""
        layer = self.vision_model.encoder.layers[max(max(self.select) - 1, 0)]
        normed = layer.layer_norm1(x_IPC)
        keys_IPNE = layer.self_attn.heads_of(layer.self_attn.k_proj, normed)
        if "keys" in need:
            features.keys = keys_IPNE[:, 1:].flatten(0, 1)
        if "cls_attn" in need:
            query_INE = layer.self_attn.heads_of(layer.self_attn.q_proj, normed[:, 0])
            scores = torch.einsum("ine,ipne->inp", query_INE, keys_IPNE) * query_INE.shape[-1] ** -0.5
            features.cls_attn = scores.softmax(-1)[..., 1:].mean(1).flatten()
