"""The ladder of every op: its implementations in the order in which ``auto`` tries them.

The fastest stands first; the reference, which takes every call, last.

An implementation of your own goes on top of one at run time: :meth:`lmmblocks.ops.backend.backend.register`.
"""

from __future__ import annotations

from .activations import (
    GEGLU_REFERENCE,
    GEGLU_TRITON,
    QUICK_GELU_REFERENCE,
    QUICK_GELU_TRITON,
    SWIGLU_REFERENCE,
    SWIGLU_TRITON,
)
from .add_rms_norm import ADD_RMS_NORM_COMPOSED, ADD_RMS_NORM_REFERENCE, ADD_RMS_NORM_TRITON
from .attention.decode import ATTENTION_TRITON_DECODE
from .attention.decode_cuda import ATTENTION_CUDA_DECODE
from .attention.external import (
    ATTENTION_CUDNN,
    ATTENTION_FLASH_ATTN,
    ATTENTION_SDPA_FLASH,
    ATTENTION_XFORMERS,
)
from .attention.paged import PAGED_ATTENTION_REFERENCE
from .attention.paged_kernels import PAGED_ATTENTION_CUDA, PAGED_ATTENTION_TRITON
from .attention.reference import ATTENTION_CUDA, ATTENTION_REFERENCE, ATTENTION_TORCH, ATTENTION_TRITON
from .dispatch import Implementation
from .last_row_scores import LAST_ROW_SCORES_REFERENCE, LAST_ROW_SCORES_TRITON
from .layer_norm import LAYER_NORM_REFERENCE, LAYER_NORM_TRITON
from .linear_cross_entropy import LINEAR_CROSS_ENTROPY_REFERENCE, LINEAR_CROSS_ENTROPY_TORCH
from .linear_cross_entropy_triton import LINEAR_CROSS_ENTROPY_TRITON
from .qk_norm_rope import QK_NORM_ROPE_COMPOSED, QK_NORM_ROPE_REFERENCE, QK_NORM_ROPE_TRITON
from .rms_norm import RMS_NORM_REFERENCE, RMS_NORM_TORCH, RMS_NORM_TRITON
from .rope import ROPE_REFERENCE, ROPE_TRITON
from .row_scores import (
    ATTENTION_OF_CLS_REFERENCE,
    ATTENTION_OF_CLS_TRITON,
    ROW_SCORES_REFERENCE,
    ROW_SCORES_TRITON,
)
from .splice import SPLICE_REFERENCE
from .splice_cuda import SPLICE_CUDA
from .splice_triton import SPLICE_TRITON

LADDERS: dict[str, tuple[Implementation, ...]] = {
    "add_rms_norm": (ADD_RMS_NORM_TRITON, ADD_RMS_NORM_COMPOSED, ADD_RMS_NORM_REFERENCE),
    "attention": (
        ATTENTION_CUDA_DECODE,
        ATTENTION_TRITON_DECODE,
        ATTENTION_CUDA,
        ATTENTION_TRITON,
        ATTENTION_FLASH_ATTN,
        ATTENTION_SDPA_FLASH,
        ATTENTION_CUDNN,
        ATTENTION_XFORMERS,
        ATTENTION_TORCH,
        ATTENTION_REFERENCE,
    ),
    "attention_of_cls": (ATTENTION_OF_CLS_TRITON, ATTENTION_OF_CLS_REFERENCE),
    "geglu": (GEGLU_TRITON, GEGLU_REFERENCE),
    "last_row_scores": (LAST_ROW_SCORES_TRITON, LAST_ROW_SCORES_REFERENCE),
    "layer_norm": (LAYER_NORM_TRITON, LAYER_NORM_REFERENCE),
    "linear_cross_entropy": (
        LINEAR_CROSS_ENTROPY_TRITON,
        LINEAR_CROSS_ENTROPY_TORCH,
        LINEAR_CROSS_ENTROPY_REFERENCE,
    ),
    "paged_attention": (PAGED_ATTENTION_CUDA, PAGED_ATTENTION_TRITON, PAGED_ATTENTION_REFERENCE),
    "qk_norm_rope": (QK_NORM_ROPE_TRITON, QK_NORM_ROPE_COMPOSED, QK_NORM_ROPE_REFERENCE),
    "quick_gelu": (QUICK_GELU_TRITON, QUICK_GELU_REFERENCE),
    "rms_norm": (RMS_NORM_TRITON, RMS_NORM_TORCH, RMS_NORM_REFERENCE),
    "rope": (ROPE_TRITON, ROPE_REFERENCE),
    "row_scores": (ROW_SCORES_TRITON, ROW_SCORES_REFERENCE),
    "splice": (SPLICE_CUDA, SPLICE_TRITON, SPLICE_REFERENCE),
    "swiglu": (SWIGLU_TRITON, SWIGLU_REFERENCE),
}
