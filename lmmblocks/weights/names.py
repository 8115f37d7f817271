"""Names and shapes in a folder's weight files, held against a model's as ``load`` will, without reading a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..lmm import LMM
from .checkpoint import Layout, hf_config, holds_tower
from .files.fill import weight_problems
from .files.maps import KeyMap
from .files.tensors import CONFIG, WeightFiles
from .load import TABLES


def name_problems(folder: Path, layout: Layout, model: LMM, files: WeightFiles, layouts: Sequence[KeyMap]) -> list[str]:
    """Return what doesn't fit, leaving out what comes from elsewhere.

    Args:
        folder: of the model.
        layout: what the folder is.
        model: built from its config; is left as it was.
        files: the weights inside.
        layouts: what their names may look like.
    """
    here, rows = torch.nn.Module(), {}
    here.__dict__["_modules"] = dict(model._modules)
    if layout is Layout.PROJECTOR:
        here.__dict__["_modules"] = {"multi_modal_projector": model.projector}
    elif layout is Layout.ORIGINAL and not holds_tower(files):
        here._modules.pop("vision_tower")
    elif layout is Layout.NATIVE and (folder / CONFIG).is_file():
        rows = {name: hf_config(folder).decoder.vocab for name in TABLES}
    return weight_problems(files, layouts, here, rows)
