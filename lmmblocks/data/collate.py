"""Samples to one packed batch: render, tokenise, preprocess, plan. All of it on the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..chat import Tokens, encode_chat
from ..compose.input_spec import InputSpec
from ..plans.host import ExpandedSamples, expand_samples
from ..spec import Batch, Grid, Instruction, LmmError, Sample, as_sample


def collate(
    samples: Sequence[Sample],
    model_or_spec: Any,
    *,
    max_length: int | None = None,
    truncate: str = "error",
    add_generation_prompt: bool = False,
) -> Batch:
    """Pack samples of any lengths into one batch without padding.

    Template, attention and how pictures are read are the model's, so that it is saved and asked with what it was trained with;
    ``model.set_inputs`` changes template and pictures.

    Args:
        samples: conversations with their images.
        model_or_spec: an ``LMM``, or its ``input_spec`` (picklable, for workers).
        max_length: most rows per sample, not above the decoder's positions; None = the model's.
        truncate: what happens to longer ones: ``error | drop | turn | right``, see ``plan_splice``.
        add_generation_prompt: the conversations wait for an answer.

    Returns:
        The batch, on the CPU. ``batch.plan.kept`` says which samples are in it.

    Raises:
        LmmError: no list of samples, no model, or a conversation or an image that can't be used; the message names the sample.

    Example:
        ``loss = model.loss(lb.collate(samples, model))``
    """
    return read_samples(samples, model_or_spec, max_length=max_length, truncate=truncate, add_generation_prompt=add_generation_prompt).batch()


@dataclass(frozen=True, slots=True)
class ReadSamples:
    """Samples as a model reads them, before it is settled which of them go together; made by :func:`read_samples`.

    Attributes:
        expanded: their rows, of which plans are made.
        pixels: of all images.
        grids: of all images.
        names: of the samples.
        instruction: what is asked about each image, where the projector reads it.
    """

    expanded: ExpandedSamples
    pixels: Any
    grids: tuple[Grid, ...]
    names: tuple[Any, ...]
    instruction: Instruction | None

    def batch(self) -> Batch:
        """Return one batch of all samples."""
        plan = self.expanded.plan()
        return Batch(self.pixels, self.grids, plan, tuple(self.names[index] for index in plan.kept), self.instruction)

    def batch_of(self, first: int, last: int) -> Batch:
        """Return a batch of segments ``first`` to ``last - 1`` alone, with the images they show."""
        plan, images = self.expanded.plan_of(first, last), self.expanded.images(first, last)
        return Batch(
            _selected(self.pixels, images),
            tuple(self.grids[image] for image in images),
            plan,
            tuple(self.names[index] for index in plan.kept),
            None if self.instruction is None else self.instruction.select(images),
        )


def _selected(pixels: Any, images: Sequence[int]) -> Any:
    """Return the pixels of some images: a view where they are neighbours, which they are unless truncation took one away."""
    if len(images) and images[-1] - images[0] + 1 == len(images):
        return pixels[images[0] : images[-1] + 1]
    return pixels[torch.tensor(images, dtype=torch.int64)]


def read_samples(
    samples: Sequence[Sample],
    model_or_spec: Any,
    *,
    max_length: int | None = None,
    truncate: str = "error",
    add_generation_prompt: bool = False,
) -> ReadSamples:
    """Render and tokenise samples, read their images and count their rows; arguments and errors of :func:`collate`."""
    samples = _checked(samples)
    spec = model_or_spec if isinstance(model_or_spec, InputSpec) else getattr(model_or_spec, "input_spec", None)
    if spec is None:
        raise LmmError(f"collate takes a list of samples and a model or its input_spec, found {type(model_or_spec).__name__} for the model")
    names = [index if sample.id is None else sample.id for index, sample in enumerate(samples)]
    tokens = [_tokens(sample, spec, add_generation_prompt, name) for sample, name in zip(samples, names)]
    pixels, grids = _pixels(samples, spec, names)
    rows = iter([spec.image_rows(grid) for grid in grids])
    expanded = expand_samples(
        [entry.ids for entry in tokens],
        [[next(rows) for _ in sample.images] for sample in samples],
        labels=[entry.labels for entry in tokens],
        max_length=spec.most_rows(max_length),
        truncate=truncate,
        bidirectional_images=spec.attention == "images",
        names=names,
    )
    return ReadSamples(expanded, pixels, grids, tuple(names), _instruction(samples, spec))


def _checked(samples: Any) -> Sequence[Sample]:
    """Return samples as a list; what has messages, images and an id is one, whatever its class."""
    if isinstance(samples, Iterable) and not isinstance(samples, (str, Mapping)):
        return [as_sample(sample, f"collate: samples[{index}]") for index, sample in enumerate(samples)]
    one = "; a single sample is given as [sample]" if hasattr(samples, "messages") else ""
    found = f"{type(samples).__name__} {samples!r}" if isinstance(samples, (str, int, float)) else type(samples).__name__
    raise LmmError(f"collate takes a list of samples, found {found}{one}")


def _pixels(samples: Sequence[Sample], spec: InputSpec, names: Sequence[object]) -> tuple[Any, tuple[Grid, ...]]:
    try:
        return spec.preprocess.batch([image for sample in samples for image in sample.images])
    except LmmError:
        for sample, name in zip(samples, names):  # only to name the sample that holds the image
            try:
                spec.preprocess.batch(sample.images)
            except LmmError as error:
                raise error.at(f"sample {name!r}") from error
        raise


def _instruction(samples: Sequence[Sample], spec: InputSpec) -> Any:
    """What is asked about each image, where the projector reads it."""
    if spec.instruct is None:
        return None
    return Instruction.of([ids for sample in samples for ids in spec.instructions(sample.messages)])


def _tokens(sample: Sample, spec: InputSpec, add_generation_prompt: bool, name: object) -> Tokens:
    try:
        return encode_chat(
            sample.messages,
            spec.template,
            spec.tokenizer,
            mode=spec.tokenize_mode,
            add_generation_prompt=add_generation_prompt,
        )
    except LmmError as error:
        raise error.at(f"sample {name!r}") from error
