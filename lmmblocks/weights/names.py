"""Names and shapes in a folder's weight files, held against a model's as ``load`` will, without reading a tensor."""

from __future__ import annotations

import torch

from ..lmm import LMM
from .files.fill import weight_problems
from .files.stored_dtypes import tables_of
from .files.tensors import WeightFiles
from .systems.system import ModelFolder, System


def name_problems(folder: ModelFolder, system: System, model: LMM, files: WeightFiles) -> list[str]:
    """Return what doesn't fit, leaving out what comes from elsewhere.

    Args:
        folder: of the model.
        system: what the folder is.
        model: built from its config; is left as it was.
        files: the weights inside.
    """
    here, held = torch.nn.Module(), system.held(files)
    here.__dict__["_modules"] = {name: part for name, part in model._modules.items() if held is None or name in held}
    stored = system.stored_vocab(folder) if held is None else None
    return weight_problems(files, system.layouts, here, {} if stored is None else dict.fromkeys(tables_of(model), stored))
