"""Options that several commands share, so that each is spelt, read and refused in one way. Nothing here needs torch until it is used."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..spec import LmmError, first_line

if TYPE_CHECKING:
    import torch

SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare ``--device``, which :func:`device_of` reads."""
    parser.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")


def device_of(name: str | None) -> torch.device:
    """Return the device after placing a tensor on it.

    Raises:
        LmmError: no such device, or none that works.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        reason = first_line(error)
        raise LmmError(f"--device {name!r} can't be used ({reason}): leave it out, or give cpu") from error


def add_dtype(parser: argparse.ArgumentParser, names: Sequence[str], help: str, default: str | None = None) -> None:
    """Declare ``--dtype``: one of torch's names, or its short form."""
    short = ", ".join(word for word, name in SHORT_DTYPES.items() if name in names)
    parser.add_argument("--dtype", type=_dtype_name, choices=names, default=default, help=f"{help}; {short} are accepted too")


def add_template(parser: argparse.ArgumentParser) -> None:
    """Declare ``--template``, which ``load`` takes."""
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="how to talk to the model: a name such as vicuna_v1, auto for the tokenizer's own, or package.module:OBJECT (default: as its files say)",
    )


def add_reader(parser: argparse.ArgumentParser) -> None:
    """Declare ``--tokenizer``, ``--template`` and ``--image-rows``, which ``data.sample_reader`` takes."""
    parser.add_argument(
        "--tokenizer",
        "--model",
        metavar="DIR",
        help="folder of a tokenizer or model: records are read as training would, and lengths counted exactly",
    )
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="chat template of the stage: records are rendered with it (default with --tokenizer: the model's; of a tokenizer alone vicuna_v1)",
    )
    parser.add_argument("--image-rows", type=int, default=576, metavar="N", help="rows per image for exact lengths (default: %(default)s, LLaVA-1.5)")


def dtype_of(name: str | None) -> torch.dtype | None:
    """Return torch's dtype of a name."""
    import torch

    return None if name is None else getattr(torch, name)


def require_tokenizer(model: Any, name: str, advice: str) -> None:
    """Raise an LmmError when a model came without a tokenizer.

    Args:
        model: an ``LMM``.
        name: what the user called it.
        advice: what to change.
    """
    if model.tokenizer is None:
        raise LmmError(f"model {name!r} has no tokenizer, which turns the text into ids: {advice}")


def _dtype_name(word: str) -> str:
    return SHORT_DTYPES.get(word, word)
