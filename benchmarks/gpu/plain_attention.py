"""Attention as torch alone computes it in the dtype of its inputs: the error that kernels are measured by.

Products, softmax and weights are rounded on the way, as they are in kernels on tensor cores; the reference computes in fp32 throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lmmblocks.ops.activations import softcapped
from lmmblocks.ops.attention.reference import visible_keys

from .case import Inputs


def plain_attention(i: Inputs, causal: bool = True, window: int | None = None, softcap: float | None = None) -> torch.Tensor:
    """Return ``out_TNE`` of ``q, k, v, segments`` and, if given, ``kv_end``; zeros in rows after the last segment."""
    group, row, key, parts = i["q"].shape[1] // i["k"].shape[1], 0, 0, []
    for len_q, len_k in zip(i["segments"].lengths_q, i["segments"].lengths_k):
        q = i["q"][row : row + len_q].transpose(0, 1)
        k, v = (i[name][key : key + len_k].repeat_interleave(group, 1).transpose(0, 1) for name in "kv")
        scores = softcapped(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, softcap)
        ends = i["kv_end"][row : row + len_q] - key if "kv_end" in i else None
        places, keys = torch.arange(len_k - len_q, len_k, device=q.device), torch.arange(len_k, device=q.device)
        mask = visible_keys(places, keys, causal, ends, window)
        scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
        row, key = row + len_q, key + len_k
    out = torch.cat(parts)
    return F.pad(out, (0, 0, 0, 0, 0, i["q"].shape[0] - out.shape[0]))
