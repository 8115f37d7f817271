"""The model: an encoder, a projector and a decoder, composed, and nothing else.

All mismatches between the parts are found when they are put together and reported in one message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from . import ops
from .chat import get_template
from .config import LMMConfig
from .inputs import InputSpec
from .spec import Batch, Grid, LmmError, VisionFeatures, image_count


class LMM(nn.Module):
    """A large multimodal model.

    Submodules carry Hugging Face's names (``vision_tower``, ``multi_modal_projector``, ``language_model``), so that ``state_dict`` keys are
    those of the hub; ``encoder``, ``projector`` and ``decoder`` are the same modules under the names of the parts.

    Args:
        encoder: pixels to packed features; see ``spec.Encoder``.
        projector: features to rows of the decoder's width; see ``spec.Projector``.
        decoder: packed rows to hidden states; see ``spec.Decoder``.
        template: name of a chat template, or an object with ``render``.
        tokenizer: a transformers tokenizer; None = the model eats ready batches only.
        config: what the model was built from; needed to save it.
        max_length: most rows a segment may have.
        tokenize_mode: ``pieces`` or ``llava15``.

    Raises:
        LmmError: the parts don't fit; every mismatch is listed.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        decoder: nn.Module,
        *,
        template: Any = "vicuna_v1",
        tokenizer: Any = None,
        config: LMMConfig | None = None,
        max_length: int | None = None,
        tokenize_mode: str = "pieces",
    ) -> None:
        super().__init__()
        self.vision_tower, self.multi_modal_projector, self.language_model = encoder, projector, decoder
        self.template = get_template(template)
        self.tokenizer, self.config, self.tokenize_mode = tokenizer, config, tokenize_mode
        self.max_length = max_length
        problems = list(self._mismatches())
        if problems:
            raise LmmError("the parts don't fit together:\n" + "\n".join(f"- {problem}" for problem in problems))

    @property
    def encoder(self) -> Any:
        """The vision encoder."""
        return self.vision_tower

    @property
    def projector(self) -> Any:
        """The connector."""
        return self.multi_modal_projector

    @property
    def decoder(self) -> Any:
        """The language model."""
        return self.language_model

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The trainable parts by the names that training stages use."""
        return {"encoder": self.vision_tower, "projector": self.multi_modal_projector, "decoder": self.language_model}

    @property
    def device(self) -> torch.device:
        """Where the decoder's table lives."""
        return self.decoder.table.device

    @property
    def input_spec(self) -> InputSpec:
        """What a data loader needs to make batches for this model.

        Raises:
            LmmError: the model has no tokenizer.
        """
        return InputSpec(
            tokenizer=self.tokenizer,
            template=self.template,
            preprocess=self.encoder.preprocess,
            out_grid=self.projector.out_grid,
            max_length=self.max_length,
            tokenize_mode=self.tokenize_mode,
        )

    def encode(self, pixels: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Encode and project images.

        Args:
            pixels: ``(I, 3, H, W)``; ``I`` may be 0.

        Returns:
            ``rows_MD`` in the decoder's width, and the number of rows of each image.
        """
        if not pixels.shape[0]:
            return self.decoder.table.new_zeros(0, self.decoder.dim), ()
        return self.projector(self.encoder(pixels, need=frozenset(self.projector.requires)))

    def forward(self, batch: Batch) -> Tensor:
        """Return ``hidden_TD`` of a packed batch, after the decoder's final norm."""
        rows_MD, _ = self.encode(batch.pixels)
        plan = batch.plan
        embeds_TD = ops.splice(self.decoder.table, rows_MD, plan)
        return self.decoder(embeds_TD, positions=plan.positions, segments=plan.segments, kv_end=plan.kv_end)

    def loss(self, batch: Batch, *, reduction: str = "mean", weights: Tensor | None = None) -> Tensor:
        """Cross-entropy of the supervised rows; no other row reaches the head.

        Args:
            batch: packed samples.
            reduction: ``mean`` over the supervised rows, ``sum``, or ``none``.
            weights: ``(R,)`` weight of each supervised row.

        Returns:
            fp32 scalar, or ``(R,)`` for ``none``.
        """
        hidden_RD = self(batch).index_select(0, batch.plan.target_rows)
        return ops.linear_cross_entropy(
            hidden_RD, self.decoder.head_weight, batch.plan.targets, weights=weights, reduction=reduction
        )

    def logits(self, batch: Batch) -> Tensor:
        """Return ``logits_TV`` of every row, for scoring and for parity."""
        return self.decoder.head(self(batch))

    def generate(self, prompts: Any, images: Any = None, **options: Any) -> Any:
        """Answer prompts; see ``lmmblocks.generate.generate``. A list of prompts gives a list of answers."""
        from .generate import generate

        return generate(self, prompts, images, **options)

    def save(self, path: Any, format: str = "hf", **options: Any) -> None:
        """Write the model to a folder; see ``lmmblocks.weights.save``."""
        from .weights.save import save

        save(self, path, format=format, **options)

    def _mismatches(self) -> Iterator[str]:
        missing = list(_missing_attributes(self.parts))
        yield from missing or self._disagreements()

    def _disagreements(self) -> Iterator[str]:
        spec, needed = self.encoder.spec, frozenset(self.projector.requires)
        if not needed <= spec.offers:
            yield (
                f"projector {_name(self.projector)} needs {sorted(needed - spec.offers)}, encoder {_name(self.encoder)} offers "
                f"{sorted(spec.offers)}: choose an encoder that offers them, or another projector"
            )
        if spec.image_size:
            yield from self._projector_mismatches()
        if self.tokenizer is not None and len(self.tokenizer) > self.decoder.vocab:
            yield (
                f"the tokenizer has {len(self.tokenizer)} ids, decoder {_name(self.decoder)} has a table of {self.decoder.vocab} rows: "
                f"use the decoder's own tokenizer, or a decoder config with a larger vocab"
            )
        most = getattr(getattr(self.decoder, "config", None), "max_positions", None)
        if self.max_length and most and self.max_length > most:
            yield f"max_length {self.max_length} is above the decoder's max_positions {most}: lower max_length"

    def _projector_mismatches(self) -> Iterator[str]:
        """Run the projector on one empty image: its width and its count must be what it says."""
        side = self.encoder.spec.image_size // self.encoder.spec.patch
        grid, name = Grid(side, side), _name(self.projector)
        try:
            expected = image_count(self.projector.out_grid(grid))
            result = _on_a_blank_image(self.projector, self.encoder.spec, grid)
        except (RuntimeError, ValueError, LookupError) as error:
            yield f"projector {name} can't take {grid} patches of width {self.encoder.spec.dim}: {type(error).__name__}: {error}"
            return
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor) or result[0].dim() != 2:
            yield f"projector {name} returns {_kind(result)}, expected (rows_MD, rows of each image)"
            return
        rows, counts = result[0], tuple(result[1])
        if counts != (expected,) or rows.shape[0] != expected:
            yield (
                f"projector {name} says one image of {grid} becomes {expected} rows, but gives {rows.shape[0]} (counts {counts}): "
                f"correct its out_grid()"
            )
        if rows.shape[1] != self.decoder.dim:
            yield (
                f"projector {name} gives width {rows.shape[1]}, decoder {_name(self.decoder)} takes {self.decoder.dim}: make the projector "
                f"with out_dim={self.decoder.dim}"
            )


_CONTRACT = {
    "encoder": ("spec", "preprocess"),
    "projector": ("requires", "out_grid"),
    "decoder": ("dim", "vocab", "table", "head_weight", "embed", "head"),
}


def _missing_attributes(parts: dict[str, nn.Module]) -> Iterator[str]:
    for kind, module in parts.items():
        missing = [name for name in _CONTRACT[kind] if not hasattr(module, name)]
        if missing:
            yield f"{kind} {_name(module)} lacks {missing}, which lmmblocks.spec.{kind.capitalize()} asks for"


def _name(module: nn.Module) -> str:
    return repr(type(module).__name__)


def _kind(result: Any) -> str:
    """Describe what a projector returned."""
    if isinstance(result, Tensor):
        return f"a tensor {tuple(result.shape)}"
    return f"({', '.join(map(_kind, result))})" if isinstance(result, tuple) else type(result).__name__


@torch.no_grad()
def _on_a_blank_image(projector: nn.Module, spec: Any, grid: Grid) -> Any:
    """Run the projector on zeros with everything the encoder offers, in its dtype and on its device; its buffers stay as they are."""
    like = next(iter(projector.parameters()), torch.zeros(()))
    zeros = like.new_zeros
    each = spec.dim // len(spec.layers)
    features = VisionFeatures(
        patches=zeros(grid.rows, spec.dim),
        grids=(grid,),
        prefix=zeros(1, spec.prefix, spec.dim),
        layers={layer: zeros(grid.rows, each) for layer in spec.layers},
        keys=zeros(grid.rows, 1, each),
        cls_attn=zeros(grid.rows),
    )
    buffers = {name: buffer.clone() for name, buffer in projector.named_buffers()}
    return torch.func.functional_call(projector, buffers, (features,))
