"""Which weights hold NaN or inf: asked before data, a rate or a dtype is blamed for a result that isn't finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec.errors import some

if TYPE_CHECKING:
    import torch.nn as nn


def broken_weights(model: nn.Module) -> str | None:
    """Return the first names of parameters that hold NaN or inf and their number, as words; None where all are finite.

    One number per parameter is reduced on its device, and all are fetched together.
    """
    import torch

    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.numel() and not parameter.is_meta]
    if not named:
        return None
    with torch.no_grad():
        fine = torch.stack([torch.isfinite(parameter).all().cpu() for _, parameter in named]).tolist()
    wrong = [name for (name, _), good in zip(named, fine) if not good]
    if not wrong:
        return None
    return f"{some(wrong)} ({len(wrong)} of {len(named)} parameters)"
