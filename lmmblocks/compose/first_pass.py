"""One image and one token through a whole model, so that what was built or loaded also runs: shapes that fit are not all it takes.

Without memory for weights (device ``meta``) only shapes are computed, whatever the size. With weights the pass is real, and is made where it costs
about a second at most. A part that needs values to go on (rows found in the data) can't be tried without any; that is no fault of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from ..decoders.hf import HFDecoder
from ..lmm import LMM
from ..plans.host import plan_splice
from ..spec import IMAGE_TOKEN, Instruction, LmmError
from .dry_run import name_of, needs_data
from .image_rows import out_grid_of
from .input_spec import InputSpec

CPU_MULTIPLICATIONS = 2 * 10**10
"""Most multiplications of a real pass: about a second of one core."""

_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


class _Untried(Exception):
    """A part needs values, and there are none."""


@torch.no_grad()
def check_runs(model: LMM) -> None:
    """Run the smallest picture and one token through encoder, projector, decoder and head.

    Raises:
        LmmError: some part fails; it is named.
    """
    if isinstance(model.decoder, HFDecoder) and model.device.type == "meta":
        return  # how it runs is found out with its weights
    try:
        with _part("image preprocessing", model.encoder.preprocess, model):
            pixels, grids = model.encoder.preprocess.batch([Image.new("RGB", (8, 8))])
            rows = tuple(map(_counter(model).image_rows, grids))
        if model.device.type == "cpu" and _multiplications(model, sum(rows)) > CPU_MULTIPLICATIONS:
            return
        with torch.random.fork_rng(devices=[]), _buffers_kept(model):
            _run(model, pixels.to(model.device), rows)
    except _Untried:
        return


def _run(model: LMM, pixels: Any, rows: tuple[int, ...]) -> None:
    asks = "instruction" in model.projector.requires
    with _part("encoder, projector or reducers", model.encoder, model):
        encoded = model.encode_images(pixels, instruction=Instruction.of([[0]], device=model.device) if asks else None)
    sees_ahead = model.attention == "images"
    plan = plan_splice([[0, IMAGE_TOKEN]], [rows], names=["a first picture"], bidirectional_images=sees_ahead).to(model.device)
    if tuple(encoded.counts) != rows:
        raise LmmError(f"the model's parts count {rows} rows for a picture and give {tuple(encoded.counts)}: correct out_grid() or out_count()")
    with _part("decoder", model.decoder, model):
        hidden_TD = model.read(encoded, plan)
        logits_1V = model.decoder.head(hidden_TD[-1:])
    if logits_1V.shape != (1, model.decoder.vocab):
        raise LmmError(f"decoder {name_of(model.decoder)} gives logits {tuple(logits_1V.shape)} for one row, its vocab is {model.decoder.vocab}")


@contextmanager
def _buffers_kept(model: LMM) -> Iterator[None]:
    """What a part counts or averages starts with its first user's picture."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


@contextmanager
def _part(kind: str, part: Any, model: LMM) -> Iterator[None]:
    try:
        yield
    except LmmError as error:
        raise LmmError(f"{kind} {name_of(part)} fails with a first picture: {error}") from error
    except _FAILURES as error:
        if needs_data(error, model.decoder.table):
            raise _Untried from error
        raise LmmError(f"{kind} {name_of(part)} fails with a first picture: {type(error).__name__}: {error}") from error


def _counter(model: LMM) -> InputSpec:
    return InputSpec("none", None, model.encoder.preprocess, out_grid_of(model.projector, tuple(model.reducers)), arrangement=model._arrangement)


def _multiplications(model: LMM, rows: int) -> int:
    patches = max(rows, model.encoder.spec.grid.rows if model.encoder.spec.grid else rows)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.vision_tower, model.language_model)]
    return sizes[0] * patches + sizes[1] * (rows + 1)
