"""Q-Former: a BERT whose learned queries look at the image (BLIP-2), and which may read the instruction too (InstructBLIP)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..spec import Grid, Instruction, LmmError, Segments, VisionFeatures
from ..spec.options import remembers_options
from .grids import context, interleave, whole
from .instruction_tokens import InstructionTokens


class _Dense(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_dim, out_dim)


class _DenseNorm(_Dense):
    """``LayerNorm(dense(x) + residual)``: BERT normalises after the sum."""

    def __init__(self, in_dim: int, out_dim: int, eps: float) -> None:
        super().__init__(in_dim, out_dim)
        self.LayerNorm = nn.LayerNorm(out_dim, eps=eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class _Heads(nn.Module):
    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(context_dim, dim), nn.Linear(context_dim, dim)


class _Attention(nn.Module):
    def __init__(self, dim: int, context_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention, self.output = _Heads(dim, context_dim), _DenseNorm(dim, dim, eps)

    def forward(self, x_TD: Tensor, context_TC: Tensor, segments: Segments) -> Tensor:
        parts = ((self.attention.query, x_TD), (self.attention.key, context_TC), (self.attention.value, context_TC))
        q, k, v = (layer(rows).unflatten(-1, (self.heads, -1)) for layer, rows in parts)
        return self.output(ops.attention(q, k, v, segments, causal=False).flatten(1), x_TD)


class _Layer(nn.Module):
    """Self-attention of queries and text together, cross-attention of the queries, one MLP for the queries and one for the text."""

    def __init__(self, dim: int, context_dim: int, heads: int, mlp_dim: int, eps: float, cross: bool, text: bool) -> None:
        super().__init__()
        self.attention = _Attention(dim, dim, heads, eps)
        self.crossattention = _Attention(dim, context_dim, heads, eps) if cross else None
        if text:
            self.intermediate, self.output = _Dense(dim, mlp_dim), _DenseNorm(mlp_dim, dim, eps)
        self.intermediate_query, self.output_query = _Dense(dim, mlp_dim), _DenseNorm(mlp_dim, dim, eps)

    def query_mlp(self, rows: Tensor) -> Tensor:
        return self.output_query(F.gelu(self.intermediate_query.dense(rows)), rows)

    def text_mlp(self, rows: Tensor) -> Tensor:
        return self.output(F.gelu(self.intermediate.dense(rows)), rows)


class _Stack(nn.Module):
    def __init__(self, layers: list[_Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class _TextEmbeddings(nn.Module):
    """Words and positions; ``layernorm`` is the one of queries and text alike."""

    def __init__(self, vocab: int, positions: int, dim: int, eps: float) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(vocab, dim), nn.Embedding(positions, dim)
        self.layernorm = nn.LayerNorm(dim, eps=eps)

    def forward(self, instruction: Instruction) -> Tensor:
        return self.layernorm(self.word_embeddings(instruction.ids) + self.position_embeddings(instruction.positions))


class _Bert(nn.Module):
    """Parameters under the names of ``Blip2QFormerModel``, or with text of ``InstructBlipQFormerModel``."""

    def __init__(self, layers: list[_Layer], layernorm: nn.LayerNorm | None) -> None:
        super().__init__()
        self.encoder = _Stack(layers)
        if layernorm is not None:
            self.layernorm = layernorm


@remembers_options
class QFormer(nn.Module):
    """BLIP-2's connector: any image becomes ``queries`` rows.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        queries: rows per image.
        dim: width inside.
        layers: layers of the BERT.
        heads: attention heads.
        mlp_dim: hidden width of its MLPs.
        cross_every: the first of so many layers looks at the image.
        eps: of the layer norms.
        prefix: the queries also look at the encoder's prefix tokens (CLS), as in BLIP-2.

    Raises:
        LmmError: an option of no such value.

    Source: Li et al., arXiv 2301.12597. Names are those of ``Blip2ForConditionalGeneration``: ``query_tokens``, ``qformer.*``,
    ``language_projection.*``.

    >>> QFormer(8, 16, queries=4, dim=8, layers=1, heads=2, mlp_dim=8).out_grid(Grid(16, 16))
    4
    """

    text = False

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        queries: int = 32,
        dim: int = 768,
        layers: int = 12,
        heads: int = 12,
        mlp_dim: int = 3072,
        cross_every: int = 2,
        eps: float = 1e-12,
        prefix: bool = False,
    ) -> None:
        super().__init__()
        name = "instruct_qformer" if self.text else "qformer"
        whole(name, queries=queries, dim=dim, layers=layers, heads=heads, mlp_dim=mlp_dim, cross_every=cross_every)
        if dim % heads:
            raise LmmError(f"projector {name!r}: dim {dim} is not a multiple of heads {heads}")
        self.prefix = prefix
        self.requires = frozenset({"patches", *(["prefix"] if prefix else []), *(["instruction"] if self.text else [])})
        stack = [_Layer(dim, in_dim, heads, mlp_dim, eps, index % cross_every == 0, self.text) for index in range(layers)]
        self.query_tokens = nn.Parameter(torch.randn(1, queries, dim) * 0.02)
        self.qformer = _Bert(stack, None if self.text else nn.LayerNorm(dim, eps=eps))
        self.language_projection = nn.Linear(dim, out_dim)

    def out_grid(self, grid: Grid) -> int:
        """One row per query."""
        return self.query_tokens.shape[1]

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        count, images = self.query_tokens.shape[1], len(features.grids)
        patches, lengths = context(features, self.prefix)
        within = Segments.uniform(images, count, device=patches.device)
        across = Segments.of([count] * images, lengths, device=patches.device)
        rows = self.qformer.layernorm(self.query_tokens).expand(images, -1, -1).flatten(0, 1)
        for layer in self.qformer.encoder.layer:
            rows = layer.attention(rows, rows, within)
            if layer.crossattention is not None:
                rows = layer.crossattention(rows, patches, across)
            rows = layer.query_mlp(rows)
        return self.language_projection(rows)


@remembers_options
class InstructQFormer(QFormer):
    """InstructBLIP's connector: the queries look at the image and read what is asked about it.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        queries: rows per image.
        dim: width inside.
        layers: layers of the BERT.
        heads: attention heads.
        mlp_dim: hidden width of its MLPs.
        cross_every: the first of so many layers looks at the image.
        eps: of the layer norms.
        prefix: the queries also look at the encoder's prefix tokens (CLS), as in InstructBLIP.
        vocab: rows of the table of words; BERT's with one more, as InstructBLIP has.
        positions: most ids of an instruction; longer ones are cut.
        tokenizer: folder or hub id of the tokenizer of the instruction; None = the model's own.

    Raises:
        LmmError: an option of no such value.

    The text's MLP of the last layer is in the checkpoints but nothing reads its result: it is carried and never computed.

    Source: Dai et al., arXiv 2305.06500. Names are those of ``InstructBlipForConditionalGeneration``.
    """

    text = True

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        queries: int = 32,
        dim: int = 768,
        layers: int = 12,
        heads: int = 12,
        mlp_dim: int = 3072,
        cross_every: int = 2,
        eps: float = 1e-12,
        prefix: bool = False,
        vocab: int = 30523,
        positions: int = 512,
        tokenizer: str | None = None,
    ) -> None:
        whole("instruct_qformer", vocab=vocab, positions=positions)
        super().__init__(in_dim, out_dim, queries, dim, layers, heads, mlp_dim, cross_every, eps, prefix)
        self.qformer.embeddings = _TextEmbeddings(vocab, positions, dim, eps)
        self.tokenizer = tokenizer

    def instruct(self, tokenizer: Any) -> InstructionTokens:
        """Return what turns the text of an instruction into ids; ``tokenizer`` is the model's own.

        Raises:
            LmmError: the tokenizer has more ids than ``vocab``.
        """
        chosen = tokenizer if self.tokenizer is None else self.tokenizer
        embeddings: Any = self.qformer.embeddings
        return InstructionTokens(chosen, embeddings.word_embeddings.num_embeddings, embeddings.position_embeddings.num_embeddings)

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image.

        Raises:
            LmmError: there is not one instruction per image.
        """
        count, images = self.query_tokens.shape[1], len(features.grids)
        instruction = _instruction_of(features)
        texts, queries = instruction.segments.lengths_q, (count,) * images
        patches, lengths = context(features, self.prefix)
        both_lengths = [count + text for text in texts]
        within = Segments.of(both_lengths, both_lengths, device=patches.device)
        across = Segments.of(queries, lengths, device=patches.device)
        rows = self.qformer.embeddings.layernorm(self.query_tokens).expand(images, -1, -1).flatten(0, 1)
        text = self.qformer.embeddings(instruction)
        last = len(self.qformer.encoder.layer) - 1
        for index, layer in enumerate(self.qformer.encoder.layer):
            both = interleave(rows, queries, text, texts)
            both = layer.attention(both, both, within)
            rows, text = _apart(both, queries, texts)
            if layer.crossattention is not None:
                rows = layer.crossattention(rows, patches, across)
            rows = layer.query_mlp(rows)
            text = layer.text_mlp(text) if index < last else text
        return self.language_projection(rows)


def _instruction_of(features: VisionFeatures) -> Instruction:
    found = features.instruction
    images = len(features.grids)
    if found is None and images:
        raise LmmError("projector 'instruct_qformer' reads what is asked about each image: make batches with collate(), or set features.instruction")
    if found is None:
        return Instruction.of([], device=features.patches.device)
    if len(found.segments.lengths_q) != images:
        raise LmmError(f"projector 'instruct_qformer' needs one instruction per image: {len(found.segments.lengths_q)} for {images} images")
    return found


def _apart(rows: Tensor, first: tuple[int, ...], then: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Undo :func:`interleave`."""
    parts = rows.split([length for pair in zip(first, then) for length in pair])
    return (torch.cat(parts[0::2]), torch.cat(parts[1::2])) if parts else (rows, rows)
