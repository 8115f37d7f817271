"""Flash attention backward of csrc/attention/, emulated, against autograd of the formula in fp64: every mask, every edge, the same bits always."""

import pytest
import torch

from lmmblocks import ops
from lmmblocks.spec import Segments

FULL, CAUSAL, KV_END = range(3)
CODES = {torch.float16: 1, torch.bfloat16: 2}
DTYPES = list(CODES)
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding."""


def _inputs(lengths_q, lengths_k, heads=2, kv_heads=1, width=64, *, slack=0, dtype=torch.bfloat16, seed=0):
    """(q, k, v, gradient of out): views of wider tensors; rows behind the last segment are NaN. And segments."""
    torch.manual_seed(seed)
    rows_q, rows_k = sum(lengths_q), sum(lengths_k)
    q, grad = (torch.randn(rows_q + slack, heads + 2, width).to(dtype)[:, 1:-1] for _ in range(2))
    kv = torch.randn(rows_k + slack, 2 * kv_heads, width).to(dtype)
    q[rows_q:], grad[rows_q:], kv[rows_k:] = (float("nan"),) * 3
    return (q, kv[:, :kv_heads], kv[:, kv_heads:], grad), Segments.of(lengths_q, lengths_k)


def _autograd(tensors, segments, mask=CAUSAL, kv_end=None, *, grad_lse=None, backend="reference", scale=None):
    """Gradients of q, k and v, and (out, lse)."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    asked = {"return_lse": True} if backend == "reference" else {}
    found = ops.attention(q, k, v, segments, causal=mask == CAUSAL, kv_end=kv_end, scale=scale, backend=backend, **asked)
    out, lse = found if asked else (found, None)
    ends, grads = [out], [tensors[3]]
    if grad_lse is not None:
        ends, grads = [out, lse], [tensors[3], grad_lse.to(lse.dtype)]
    return torch.autograd.grad(ends, (q, k, v), grads), (out.detach(), lse if lse is None else lse.detach())


def _exact(tensors, segments, *call, **options):
    """In fp64, on the rows that segments own; the rest is zero."""
    return _autograd([x.double().nan_to_num() for x in tensors], segments, *call, **options)


@pytest.fixture(scope="module")
def launch(cuda_emulation):
    """`launch(tensors, segments, mask, kv_end, grad_lse=..., **changed arguments)` -> (dq, dk, dv), or the code where it isn't 0.

    What the caller gives to be written holds NaN (and -1) before.
    """

    def call(tensors, segments, mask=CAUSAL, kv_end=None, *, grad_lse=None, scale=None, **changes):
        q, k, v, grad = tensors
        rows, heads, width = q.shape
        out, lse_TN = _exact(tensors, segments, mask, kv_end, scale=scale)[1]
        lse = lse_TN.t().float().contiguous()
        out, used = out.to(q.dtype), sum(segments.lengths_q)
        out[used:], lse[:, used:] = float("nan"), float("nan")
        gradients = [torch.full(x.shape, float("nan"), dtype=x.dtype) for x in (q, k, v)]
        count = len(segments.lengths_q)
        space = torch.full((cuda_emulation.attention_backward_workspace(rows, count, heads, width),), 255, dtype=torch.uint8)
        given_tensors = {
            "q": q, "k": k, "v": v, "out": out, "grad": grad, "lse": lse, "grad_lse": grad_lse, "cu_q": segments.cu_q, "cu_k": segments.cu_k,
            "kv_end": kv_end, "workspace": space, **dict(zip(("dq", "dk", "dv"), gradients)),
        }  # fmt: skip
        arguments = {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in given_tensors.items()}
        for name in ("q", "k", "v", "grad"):
            arguments[f"{name}_row"], arguments[f"{name}_head"] = given_tensors[name].stride()[:2]
        steps = (0, 0) if grad_lse is None else grad_lse.stride()
        arguments |= {
            "grad_lse_row": steps[0], "grad_lse_head": steps[1], "workspace_bytes": space.numel(), "rows_q": rows, "rows_k": k.shape[0],
            "segments": count, "heads": heads, "kv_heads": k.shape[1], "head_dim": width, "mask": mask, "dtype": CODES[q.dtype],
            "device": 0, "scale": width**-0.5 if scale is None else scale,
        }  # fmt: skip
        code = cuda_emulation.attention_backward(**arguments | changes, stream=0)
        return code or tuple(gradients)

    return call


def _close(found, exact):
    """Within rounding: of weights, of slopes and of what is returned, a unit each, where errors of sums stay below those of their largest terms."""
    for name, a, b in zip(("dq", "dk", "dv"), found, exact):
        most = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4 * UNIT[a.dtype] * max(most, 1.0), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=["full", "causal"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
def test_gradients_are_as_exact_as_those_of_torch(launch, mask, width, dtype, as_exact_as_torch):
    """Torch's own is SDPA, which rounds weights to the dtype as the kernel does."""
    inputs = _inputs([150, 33], [150, 33], 2, 1, width, dtype=dtype)
    own = _autograd(*inputs, mask, backend="torch")[0]
    as_exact_as_torch(launch(*inputs, mask), own, _exact(*inputs, mask)[0])
