"""Ops: each is a plain-torch reference that always works, and implementations chosen by a dispatch that explains itself."""

from . import attention_external as _attention_external  # noqa: F401, I001  (puts itself on the ladder, like the next)
from . import attention_decode as _attention_decode  # noqa: F401  (in front of every other)
from . import attention_decode_cuda as _attention_decode_cuda  # noqa: F401  (in front of that)
from . import paged_attention_kernels as _paged_attention_kernels  # noqa: F401  (put themselves on the ladder)
from . import linear_cross_entropy_triton as _linear_cross_entropy_triton  # noqa: F401  (puts itself on the ladder)
from .activations import geglu, quick_gelu, softcapped, swiglu
from .add_norm import add_rms_norm
from .attention import attention
from .attention_call import AttentionCall
from .bias_gelu import bias_gelu
from .causal_lm_loss import causal_lm_loss
from .dispatch import Implementation, backend, register_implementation
from .in_transformers import register_with_transformers
from .last_row_scores import last_row_scores
from .layer_norm import LayerNorm, layer_norm
from .linear_cross_entropy import linear_cross_entropy
from .merge_rows import merge_neighbours, merge_to_nearest
from .norm import rms_norm
from .outlier_counts import outlier_counts
from .paged_attention import PagedCall, paged_attention
from .qk_norm_rope import qk_norm_rope
from .rope import rope, rope_frequencies, rope_table
from .row_scores import attention_of_cls, row_scores
from .splice import splice
from . import splice_triton as _splice_triton  # noqa: F401  (puts itself on the ladder of the splice)
from . import splice_cuda as _splice_cuda  # noqa: F401  (in front of it)
from .splice_plan import splice_plan

__all__ = [
    "AttentionCall",
    "Implementation",
    "LayerNorm",
    "PagedCall",
    "add_rms_norm",
    "attention",
    "attention_of_cls",
    "backend",
    "bias_gelu",
    "causal_lm_loss",
    "geglu",
    "last_row_scores",
    "layer_norm",
    "linear_cross_entropy",
    "merge_neighbours",
    "merge_to_nearest",
    "outlier_counts",
    "paged_attention",
    "qk_norm_rope",
    "quick_gelu",
    "register_implementation",
    "register_with_transformers",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "rope_table",
    "row_scores",
    "softcapped",
    "splice",
    "splice_plan",
    "swiglu",
]
