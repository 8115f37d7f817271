"""Large multimodal models from interchangeable blocks.

Names are imported when they are first used, so ``import lmmblocks`` is fast and imports neither torch nor any optional package.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import ops as ops
    from . import presets as presets
    from .builder import build as build
    from .chat.pieces import escape_markers as escape_markers
    from .config import Block as Block
    from .config import LMMConfig as LMMConfig
    from .data.collate import collate as collate
    from .lmm import LMM as LMM
    from .ops.backend import backend as backend
    from .plans.host import plan_splice as plan_splice
    from .registry import register as register
    from .spec import Batch as Batch
    from .spec import FeatureSpec as FeatureSpec
    from .spec import Grid as Grid
    from .spec import LmmError as LmmError
    from .spec import Sample as Sample
    from .spec import Segments as Segments
    from .spec import SplicePlan as SplicePlan
    from .spec import VisionFeatures as VisionFeatures
    from .weights.load import load as load

_HOMES = {
    "Batch": "spec",
    "Block": "config",
    "FeatureSpec": "spec",
    "Grid": "spec",
    "LMM": "lmm",
    "LMMConfig": "config",
    "LmmError": "spec",
    "Sample": "spec",
    "Segments": "spec",
    "SplicePlan": "spec",
    "VisionFeatures": "spec",
    "backend": "ops.backend",
    "build": "builder",
    "collate": "data.collate",
    "escape_markers": "chat.pieces",
    "load": "weights.load",
    "plan_splice": "plans.host",
    "register": "registry",
}
_MODULES = frozenset({"ops", "presets"})

__all__ = [*_HOMES, *_MODULES, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562) and keep it."""
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module(".spec.versions", __name__).refuse_older_versions()
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# In a checkout and in an editable install lmmblocks.kernels is the folder kernels/ beside this package, which only a plain
# install copies to lmmblocks/kernels. csrc/ tells our checkout from a site-packages that holds a package named kernels.
# The root itself isn't put on this package's path: its other folders (pip's build/ for one) would become modules that take the place of our names.
_root = Path(__file__).resolve().parent.parent
if (_root / "kernels").is_dir() and (_root / "csrc").is_dir():
    _spec = ModuleSpec(f"{__name__}.kernels", None, is_package=True)
    _spec.submodule_search_locations = [str(_root / "kernels")]
    sys.modules[_spec.name] = kernels = module_from_spec(_spec)
