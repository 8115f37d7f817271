"""Flash attention backward of csrc/attention/, emulated, against autograd of the formula in fp64: every mask, every edge, the same bits always."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.spec import Segments

FULL, CAUSAL, KV_END = range(3)
CODES = {torch.float16: 1, torch.bfloat16: 2}
DTYPES = list(CODES)
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding."""


def _inputs(lengths_q, lengths_k, heads=2, kv_heads=1, width=64, *, slack=0, dtype=torch.bfloat16, seed=0):
    """(q, k, v, gradient of out): views of wider tensors; rows after the last segment are NaN. And segments."""
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
        out, used = out.to(q.dtype).contiguous(), sum(segments.lengths_q)
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


def _image(rows):
    """Ends of rows of one segment: an image's rows 20 to 59 see all of it, the others up to themselves."""
    kv_end = torch.arange(1, rows + 1, dtype=torch.int32)
    kv_end[20:60] = 60
    return kv_end


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("width", [64, 128])
def test_one_row_more_and_less_than_blocks_and_tiles(launch, rows, width):
    inputs = _inputs([rows], [rows], 2, 1, width)
    _close(launch(*inputs), _exact(*inputs)[0])


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150)), min_size=1, max_size=3),
    mask=st.sampled_from([FULL, CAUSAL, KV_END]),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    width=st.sampled_from([64, 128]),
    dtype=st.sampled_from(DTYPES),
    slack=st.sampled_from([0, 5, 70]),
    of_lse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_mask_equals_the_formula(launch, lengths, mask, heads, width, dtype, slack, of_lse, seed):
    """Segments without rows or keys, more queries than keys, ends of rows that fall and lie outside of the segment; slack is NaN."""
    lengths_q, lengths_k = zip(*lengths)
    tensors, segments = _inputs(lengths_q, lengths_k, *heads, width, slack=slack, dtype=dtype, seed=seed)
    rows = tensors[0].shape[0]
    kv_end = torch.randint(-5, sum(lengths_k) + 6, (rows,), dtype=torch.int32) if mask == KV_END else None
    call = (tensors, segments, mask, kv_end)
    if not of_lse:
        return _close(launch(*call), _exact(*call)[0])
    grad_lse_TN = torch.randn(heads[0], rows).t()
    grad_lse_TN[sum(lengths_q) :] = 0.0  # the formula has no way to leave slack out
    _close(launch(*call, grad_lse=grad_lse_TN), _exact(*call, grad_lse=grad_lse_TN)[0])


def test_every_order_of_threads_gives_the_same_bits(launch, simt_seed, monkeypatch):
    """Several tiles of keys add to the same rows of dq, and take turns."""
    call = (*_inputs([150, 70], [150, 70], 4, 2, seed=1), KV_END, torch.cat([_image(150), _image(70) + 150]))
    found = launch(*call)
    monkeypatch.setenv("LMM_SIMT_SEED", "0")
    assert all(torch.equal(a, b) for a, b in zip(found, launch(*call)))


def _long(width, mask, lengths=(400, 130)):
    """Four tiles of keys and two, four query heads in two groups; ends that make images of rows, a row that sees nothing, one that sees all."""
    inputs = _inputs(lengths, lengths, 4, 2, width, seed=3)
    if mask != KV_END:
        return *inputs, mask
    of_segments = [torch.arange(1, rows + 1).clamp_min(min(rows, 280)) + before for rows, before in zip(lengths, (0, lengths[0]))]
    ends = torch.cat(of_segments).int()
    ends[5], ends[77] = 0, lengths[0]
    return *inputs, mask, ends


@pytest.mark.parametrize("mask", [FULL, CAUSAL, KV_END], ids=["full", "causal", "kv_end"])
@pytest.mark.parametrize("width", [64, 128])
def test_tiles_between_the_first_and_the_last_add_to_dq(launch, width, mask):
    """Above 256 visible keys; width decides how many values are added at once."""
    call = _long(width, mask)
    _close(launch(*call), _exact(*call)[0])


def test_gradients_of_900_rows_equal_the_formula(launch):
    call = (*_inputs([900], [900], 2, 1, 128, seed=4), CAUSAL)
    _close(launch(*call), _exact(*call)[0])


@pytest.mark.parametrize("width", [64, 128])
def test_tiles_that_run_at_the_same_time_take_turns(launch, simt_seed, monkeypatch, width):
    """One CTA after the other gives the same bits as several of them, whichever gets on; without a mask a tile waits at the last block too."""
    call = (*_inputs([300], [300], 2, 1, width, seed=5), FULL)
    found = launch(*call)
    monkeypatch.setenv("LMM_SIMT_SEED", "0")
    assert all(torch.equal(a, b) for a, b in zip(found, launch(*call)))


def test_keys_that_no_row_sees_and_rows_that_see_no_key_have_gradients_of_zero(launch):
    tensors, segments = _inputs([6, 4, 3], [2, 0, 140], slack=9)
    dq, dk, dv = launch(tensors, segments, KV_END, torch.tensor([0] * 4 + [2] * 2 + [7] * 4 + [2 + 130] * 3 + [9] * 9, dtype=torch.int32))
    assert not dq[:4].any() and not dq[6:10].any() and not dq[13:].any() and dq[4:6].any() and dq[10:13].any()
    for gradient in (dk, dv):
        assert gradient[:132].any(-1).all() and not gradient[132:].any()


def test_a_workspace_one_byte_too_small_is_refused_and_what_it_holds_does_not_matter(launch, cuda_emulation):
    inputs = _inputs([70], [70])
    needed = cuda_emulation.attention_backward_workspace(70, 1, 2, 64)
    code = launch(*inputs, workspace_bytes=needed - 1)
    assert isinstance(code, int) and "workspace" in cuda_emulation.error_message(code)
    found = launch(*inputs)
    for filler in (0, 127):
        space = torch.full((needed,), filler, dtype=torch.uint8)
        assert all(torch.equal(a, b) for a, b in zip(found, launch(*inputs, workspace=space.data_ptr())))
    assert cuda_emulation.attention_backward_workspace(70, 1, 2, 96) == 0
