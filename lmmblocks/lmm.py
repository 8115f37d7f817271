"""The model: an encoder, a projector and a decoder, composed, and nothing else.

All mismatches between the parts are found when they are put together and reported in one message.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn as nn
from torch import Tensor

from .chat import get_template
from .compose.checks import (
    Parts,
    mismatches,
    more_ids,
    positions_of,
    refuse,
    template_mismatches,
)
from .compose.current_config import template_or_name
from .compose.image_rows import Encoded, connected, out_grid_of
from .compose.input_spec import InputSpec
from .compose.vocabulary import as_tokens, check_extends, grow_decoder
from .config import LMMConfig, is_config
from .decoders.hooks import VISION
from .decoders.vision import VisionContext
from .decoders.wrapped_ends import spliced, supervised_loss
from .images.fit import with_choices
from .spec import Batch, Decoder, Encoder, Instruction, LmmError, Projector, Segments, SplicePlan, Tokenizer
from .spec.fields import plain
from .spec.words import Attention, Mode

_READERS = frozenset({"multi_modal_projector", "reducers", "hooks"})
"""Attributes of a model that hold what reads the encoder's features."""


class LMM(nn.Module):
    """A large multimodal model.

    Submodules carry Hugging Face's names (``vision_tower``, ``multi_modal_projector``, ``language_model``), so that ``state_dict`` keys are
    those of the hub; ``encoder``, ``projector`` and ``decoder`` are the same modules under the names of the parts.

    Args:
        encoder: pixels to packed features; see ``spec.Encoder``.
        projector: features to rows of the decoder's width; see ``spec.Projector``.
        decoder: packed rows to hidden states; see ``spec.Decoder``.
        reducers: drop or merge image rows before they are spliced, in this order; see ``spec.Reducer``.
        hooks: change rows between the decoder's layers; see ``spec.LayerHook``.
        template: name of a chat template, ``auto`` for the tokenizer's own, or an object with ``render``.
        tokenizer: a transformers tokenizer; None = the model eats ready batches only.
        config: what the model was built from; needed to save it.
        max_length: most rows a segment may have; None = as many as the decoder has positions.
        tokenize_mode: ``pieces`` or ``llava15``.
        attention: ``causal``, or ``images``: each image row also sees the rest of its image.

    Raises:
        LmmError: the parts don't fit; every mismatch is listed.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        decoder: nn.Module,
        *,
        reducers: Sequence[nn.Module] = (),
        hooks: Sequence[Any] = (),
        template: Any = "vicuna_v1",
        tokenizer: Tokenizer | None = None,
        config: LMMConfig | None = None,
        max_length: int | None = None,
        tokenize_mode: Mode = "pieces",
        attention: Attention = "causal",
    ) -> None:
        super().__init__()
        self.vision_tower, self.multi_modal_projector, self.language_model = encoder, projector, decoder
        self.template = get_template(template, tokenizer)
        self.tokenizer, self.config, self.tokenize_mode, self.attention = tokenizer, config, tokenize_mode, attention
        self.max_length = max_length = plain(max_length)
        parts = Parts(encoder, projector, decoder, tuple(reducers), tuple(hooks), tokenizer, self.template, max_length, attention)
        refuse(list(mismatches(parts)))
        self.reducers, self.hooks = nn.ModuleList(reducers), HookList(hooks)
        table, arrangement = decoder.table, self._arrangement
        self.arrange = None if arrangement is None else arrangement.build(decoder.dim).to(table.device, table.dtype)
        self._need: frozenset[str] | None = self._needed_of_the_encoder()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _READERS:  # a part was put in place of another, which may read something else: asked anew when it is needed
            self._need = None

    def _needed_of_the_encoder(self) -> frozenset[str]:
        parts = Parts(self.encoder, self.projector, self.decoder, tuple(self.reducers), tuple(self.hooks))
        return frozenset().union(*parts.needs.values())

    @property
    def encoder(self) -> Encoder:
        """The vision encoder."""
        return cast(Encoder, self.vision_tower)

    @property
    def projector(self) -> Projector:
        """The connector."""
        return cast(Projector, self.multi_modal_projector)

    @property
    def decoder(self) -> Decoder:
        """The language model."""
        return cast(Decoder, self.language_model)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The trainable parts by the names that training stages use; what arranges tiles learns with the projector."""
        arrange = getattr(self, "arrange", None)
        own = self.multi_modal_projector
        projector = own if arrange is None else nn.ModuleList([own, arrange])
        several = {name: part for name, part in (("reducers", self.reducers), ("hooks", self.hooks)) if len(part)}
        return {"encoder": self.vision_tower, "projector": projector, "decoder": self.language_model, **several}

    @property
    def _arrangement(self) -> Any:
        """How the rows of tiles become rows of images; None where the encoder cuts no tiles. See ``spec.Arrangement``."""
        return getattr(self.encoder, "arrangement", None)

    @property
    def device(self) -> torch.device:
        """Where the decoder's table lives."""
        return self.decoder.table.device

    @property
    def input_spec(self) -> InputSpec:
        """What a data loader needs to make batches for this model.

        Raises:
            LmmError: the model has no tokenizer, or one with more ids than the table has rows.
        """
        if self.tokenizer is not None and len(self.tokenizer) > self.decoder.vocab:
            raise LmmError(more_ids(len(self.tokenizer), self.decoder.vocab))
        return InputSpec(
            tokenizer=self.tokenizer,
            template=self.template,
            preprocess=self.encoder.preprocess,
            out_grid=out_grid_of(self.projector, tuple(self.reducers)),
            max_length=self.max_length,
            max_positions=positions_of(self.decoder),
            tokenize_mode=self.tokenize_mode,
            attention=self.attention,
            instruct=cast(Any, self.projector).instruct(self.tokenizer) if "instruction" in self.projector.requires else None,
            arrangement=self._arrangement,
        )

    def set_inputs(self, *, template: Any = None, image_fit: str | None = None, exif: str | None = None, transparent: str | None = None) -> None:
        """Change how conversations and pictures are read from now on: in batches, in answers, and in what ``save`` writes.

        A training stage that names one of them sets it here, so the model asks and is saved as it was last trained.

        Args:
            template: as of ``LMM``; None = as it is.
            image_fit: ``pad``, ``crop`` or ``squash``; None = as it is.
            exif: ``ignore`` or ``rotate``; None = as it is.
            transparent: ``drop``, ``black`` or ``white``; None = as it is.

        Raises:
            LmmError: an unknown template, one whose tokens the tokenizer lacks, or a preprocessing without a fit or a way to read
                pictures; nothing is changed then.
        """
        chosen = self.template if template is None else get_template(template, self.tokenizer)
        preprocess = with_choices(self.encoder.preprocess, image_fit=image_fit, exif=exif, transparent=transparent)
        if template is not None and (problems := list(template_mismatches(chosen, self.tokenizer))):
            raise LmmError("; ".join(problems))
        self.template, self.encoder.preprocess = chosen, preprocess
        if self.config is not None:
            asked = self.config.template if template is None else template
            self.config = replace(self.config, template=template_or_name(chosen, asked), preprocess=preprocess)

    def encode(self, pixels: Any, *, instruction: Instruction | None = None) -> tuple[Tensor, tuple[int, ...]]:
        """Encode and project images.

        Args:
            pixels: ``(I, 3, H, W)``, or what the encoder's preprocessing makes; ``I`` may be 0.
            instruction: what is asked about each image, where the projector reads it.

        Returns:
            ``rows_MD`` in the decoder's width, and the number of rows of each image.
        """
        encoded = self.encode_images(pixels, instruction=instruction)
        return encoded.rows_MD, encoded.counts

    def encode_images(self, pixels: Any, *, instruction: Instruction | None = None) -> Encoded:
        """Encode and project images; also return the encoder's features, with everything that projector, reducers and hooks require.

        Args:
            pixels: ``(I, 3, H, W)``, or what the encoder's preprocessing makes; ``I`` may be 0.
            instruction: what is asked about each image, where the projector reads it.
        """
        if not len(pixels):
            return Encoded(None, self.decoder.table.new_zeros(0, self.decoder.dim), (), ())
        if isinstance(pixels, Tensor) and not pixels.is_floating_point():
            raise LmmError(
                f"pixels are {pixels.dtype}, expected floating point, normalised for this encoder: pixels, grids = "
                f"model.encoder.preprocess.batch(pictures)"
            )
        reducers = tuple(self.reducers)
        if self._need is None:
            self._need = self._needed_of_the_encoder()
        features = self.encoder(pixels, need=self._need)
        features.instruction, features.table = instruction, self.decoder.table
        rows_MD, counts = connected(features, self.projector, reducers)
        if self.arrange is None:
            return Encoded(features, rows_MD, counts, (1,) * len(counts))
        rows_MD, counts = self.arrange(rows_MD, pixels.grids, out_grid_of(self.projector, reducers))
        return Encoded(features, rows_MD, counts, tuple(grid.count for grid in pixels.grids))

    def forward(self, batch: Batch) -> Tensor:
        """Return ``hidden_TD`` of a packed batch, after the decoder's final norm; rows that a hook dropped are zeros."""
        return self.read(self.encode_images(batch.pixels, instruction=batch.instruction), batch.plan)

    def read(self, encoded: Encoded, plan: SplicePlan, *, positions_T: Tensor | None = None, cache: Any = None) -> Tensor:
        """Splice images into the text and run the decoder with the model's hooks.

        Args:
            encoded: of all images of the plan.
            plan: on the model's device; with a cache its ``kv_end`` counts the cached keys too.
            positions_T: of each row in its sequence; None = the plan's.
            cache: of the decoder; its sequences go on with the plan's segments.

        Returns:
            ``hidden_TD`` after the final norm.

        Raises:
            LmmError: image rows see ahead in this model, and the plan doesn't say how far.
        """
        self._refuse_other_attention(plan)
        embeds_TD = spliced(self.decoder, encoded.rows_MD, plan)
        vision = VisionContext.of(encoded, plan) if any(VISION in hook.requires for hook in self.hooks) else None
        positions_T = plan.positions if positions_T is None else positions_T
        return self.decode(embeds_TD, positions_T, plan.segments, kv_end=plan.kv_end, cache=cache, vision=vision)

    def _refuse_other_attention(self, plan: SplicePlan) -> None:
        if self.attention == "images" and plan.kv_end is None and plan.image_rows.shape[0]:
            raise LmmError(
                "the model's attention is 'images', the plan's is causal: image rows would not see their image: make the plan with collate(), or "
                "with bidirectional_images=True"
            )

    def decode(self, embeds_TD: Tensor, positions_T: Tensor, segments: Segments, **options: Any) -> Tensor:
        """Run the decoder with the model's hooks on rows that are spliced already; options as of ``Decoder.forward``."""
        given = {name: value for name, value in options.items() if value is not None}
        hooks = {"hooks": tuple(self.hooks)} if len(self.hooks) else {}
        return self.decoder(embeds_TD, positions=positions_T, segments=segments, **hooks, **given)

    def loss(self, batch: Batch, *, reduction: str = "mean", weights: Tensor | None = None) -> Tensor:
        """Cross-entropy of the supervised rows; no other row reaches the head.

        Args:
            batch: packed samples.
            reduction: ``mean`` over the supervised rows, ``sum``, or ``none``.
            weights: ``(R,)`` weight of each supervised row; None = the plan's, where a plan made on the device has slack.

        Returns:
            fp32 scalar, or ``(R,)`` for ``none``.
        """
        weights = batch.plan.target_weights if weights is None else weights
        hidden_RD = self(batch).index_select(0, batch.plan.target_rows)
        return supervised_loss(self.decoder, hidden_RD, batch.plan.targets, weights, reduction)

    def logits(self, batch: Batch) -> Tensor:
        """Return ``logits_TV`` of every row, for scoring and for parity."""
        return self.decoder.head(self(batch))

    def generate(self, prompts: Any, images: Any = None, **options: Any) -> Any:
        """Answer prompts; see ``lmmblocks.generate.generate``. A list of prompts gives a list of answers."""
        from .generate import generate

        return generate(self, prompts, images, **options)

    def grow_vocab(self, tokens: Any, *, init: str = "mean", multiple_of: int = 1) -> tuple[int, ...]:
        """Teach tokenizer, table and head new tokens; they, the configs and what is saved agree afterwards. Call it before an optimizer is made.

        Args:
            tokens: texts of new tokens, or a tokenizer that has them: the model's own, changed already, or another that keeps all its ids.
            init: what new rows are: ``mean`` of the others, or ``random``, of their spread.
            multiple_of: the number of rows of table and head is rounded up to one.

        Returns:
            The rows that are new: those of new tokens, and all after the table's old end.

        Raises:
            LmmError: no tokenizer, one that gives known tokens other ids, an unknown ``init``, or a decoder that can't grow.
        """
        new, old = as_tokens(tokens), self.tokenizer
        if new is not None and old is None:
            raise LmmError("the model has no tokenizer to add tokens to: give grow_vocab a tokenizer")
        tokenizer = tokens
        if new is not None and old is not None:
            tokenizer = copy.deepcopy(old)
            tokenizer.add_tokens(new)
        elif old is not None:
            check_extends(tokenizer, old)
        known = None if old is None or old is tokenizer else old.get_vocab()
        rows = grow_decoder(self.decoder, tokenizer, known, init=init, multiple_of=multiple_of)
        self.tokenizer = tokenizer
        if self.config is not None and is_config(grown := getattr(self.decoder, "config", None)):
            self.config = replace(self.config, decoder=grown)
        return rows

    def save(self, path: Any, format: str = "hf", **options: Any) -> Path:
        """Write the model to a folder and return its path; see ``lmmblocks.weights.save``."""
        from .weights.save import save

        return save(self, path, format=format, **options)


class HookList(nn.Module):
    """The hooks of a model in their order: those that are modules are submodules named by their place, others are kept as they are."""

    def __init__(self, hooks: Sequence[Any]) -> None:
        super().__init__()
        self.entries = tuple(hooks)
        for index, hook in enumerate(self.entries):
            if isinstance(hook, nn.Module):
                self.add_module(str(index), hook)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __getitem__(self, index: int) -> Any:
        return self.entries[index]
