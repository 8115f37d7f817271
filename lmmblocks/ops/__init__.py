"""Ops: each is a plain-torch reference that always works, and implementations chosen by a dispatch that explains itself."""

from . import dispatch as _dispatch
from .activations import geglu, quick_gelu, softcapped, swiglu
from .add_rms_norm import add_rms_norm
from .attention.call import AttentionCall
from .attention.paged import PagedCall, paged_attention
from .attention.reference import attention
from .backend import backend
from .causal_lm_loss import causal_lm_loss
from .dispatch import Implementation
from .in_transformers import register_with_transformers
from .ladders import LADDERS
from .last_row_scores import last_row_scores
from .layer_norm import LayerNorm, layer_norm
from .linear_cross_entropy import linear_cross_entropy
from .qk_norm_rope import qk_norm_rope
from .rms_norm import rms_norm
from .rope import rope, rope_frequencies, rope_table
from .row_scores import attention_of_cls, row_scores
from .splice import splice

_dispatch.begin_with(LADDERS)

__all__ = [
    "AttentionCall",
    "Implementation",
    "LayerNorm",
    "PagedCall",
    "add_rms_norm",
    "attention",
    "attention_of_cls",
    "backend",
    "causal_lm_loss",
    "geglu",
    "last_row_scores",
    "layer_norm",
    "linear_cross_entropy",
    "paged_attention",
    "qk_norm_rope",
    "quick_gelu",
    "register_with_transformers",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "rope_table",
    "row_scores",
    "softcapped",
    "splice",
    "swiglu",
]
