"""Ops: each is a plain-torch reference that always works, and implementations chosen by a dispatch that explains itself."""

from .activations import geglu, quick_gelu, softcapped, swiglu
from .attention import attention
from .dispatch import Implementation, backend, register_implementation
from .last_row_scores import last_row_scores
from .linear_cross_entropy import linear_cross_entropy
from .norm import rms_norm
from .rope import rope, rope_frequencies, rope_table
from .splice import splice

__all__ = [
    "Implementation",
    "attention",
    "backend",
    "geglu",
    "last_row_scores",
    "linear_cross_entropy",
    "quick_gelu",
    "register_implementation",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "rope_table",
    "softcapped",
    "splice",
    "swiglu",
]
