"""`ops.attention` by the CUDA kernels, emulated: from the public op through autograd and back, against the formula in fp64."""

from itertools import accumulate

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.ops.attention import cuda as attention_cuda
from lmmblocks.ops.dispatch import consider, ladders
from lmmblocks.ops.example_calls import Examples
from lmmblocks.spec import LmmError, Segments

pytestmark = pytest.mark.usefixtures("cuda_emulation")

DTYPES = [torch.float16, torch.bfloat16]
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding."""


def _inputs(lengths_q, lengths_k=None, heads=2, kv_heads=1, width=64, *, slack=0, dtype=torch.bfloat16, seed=0):
    """[q, k, v, gradient of out], views of wider tensors, rows after the last segment NaN; and segments."""
    torch.manual_seed(seed)
    lengths_k = lengths_q if lengths_k is None else lengths_k
    rows_q, rows_k = sum(lengths_q), sum(lengths_k)
    q, grad = (torch.randn(rows_q + slack, heads + 2, width).to(dtype)[:, 1:-1] for _ in range(2))
    kv = torch.randn(rows_k + slack, 2 * kv_heads, width).to(dtype)
    q[rows_q:], grad[rows_q:], kv[rows_k:] = (float("nan"),) * 3
    return [q, kv[:, :kv_heads], kv[:, kv_heads:], grad], Segments.of(lengths_q, lengths_k)


def _run(backend, tensors, segments, grad_lse=None, **options):
    """(out, lse, dq, dk, dv); no lse where `torch` is asked, which has none."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    found = ops.attention(q, k, v, segments, return_lse=backend != "torch", backend=backend, **options)
    results = found if isinstance(found, tuple) else (found,)
    ends, grads = (results, (tensors[3], grad_lse)) if grad_lse is not None else (results[:1], tensors[3:])
    return tuple(x.detach() for x in results) + torch.autograd.grad(ends, (q, k, v), grads)


def _exact(tensors, segments, grad_lse=None, **options):
    """In fp64, on the rows that segments own; the rest is zero."""
    wide = [x.double().nan_to_num() for x in tensors]
    return _run("reference", wide, segments, None if grad_lse is None else grad_lse.double(), **options)


def _image(rows):
    """A conversation around an image whose rows see all of it: rows from 20 to 59 end at 60, the others at themselves."""
    kv_end = torch.arange(1, rows + 1, dtype=torch.int32)
    kv_end[20:60] = 60
    return kv_end


def _same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("mask", ["causal", "full", "kv_end"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
def test_it_is_as_exact_as_torch(mask, width, dtype, as_exact_as_torch):
    """Torch's own is SDPA, which rounds weights to the dtype as the kernels do."""
    inputs = _inputs([75, 21], heads=2, kv_heads=1, width=width, dtype=dtype)
    options = {"causal": mask == "causal", "kv_end": _image(96) if mask == "kv_end" else None}
    out, _, *grads = _run("cuda", *inputs, **options)
    exact_out, _, *exact_grads = _exact(*inputs, **options)
    as_exact_as_torch((out, *grads), _run("torch", *inputs, **options), (exact_out, *exact_grads))


@settings(max_examples=16, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 140), st.integers(0, 140)), min_size=1, max_size=3),
    mask=st.sampled_from(["causal", "full", "kv_end"]),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)]),
    width=st.sampled_from([64, 128]),
    dtype=st.sampled_from(DTYPES),
    slack=st.sampled_from([0, 5, 130]),
    of_lse=st.booleans(),
    seed=st.integers(0, 99),
)
@example(lengths=[(2, 2)], mask="full", heads=(2, 1), width=128, dtype=torch.float16, slack=130, of_lse=False, seed=2)
def test_every_pack_equals_the_formula(lengths, mask, heads, width, dtype, slack, of_lse, seed):
    """Segments without rows or keys, more rows than keys and fewer, ends that lie anywhere, slack of NaN, with a gradient of lse and without."""
    lengths_q, lengths_k = [q for q, _ in lengths], [k for _, k in lengths]
    inputs = tensors, _ = _inputs(lengths_q, lengths_k, *heads, width, slack=slack, dtype=dtype, seed=seed)
    rows = tensors[0].shape[0]
    kv_end = torch.randint(-5, sum(lengths_k) + 6, (rows,), dtype=torch.int32) if mask == "kv_end" else None
    grad_lse = torch.randn(rows, heads[0]) if of_lse else None
    options = {"causal": mask == "causal", "kv_end": kv_end}
    exact = _exact(*inputs, None if grad_lse is None else _of_rows_that_see(grad_lse, *inputs, **options), **options)
    _close(_run("cuda", *inputs, grad_lse, **options), exact, dtype, group=heads[0] // heads[1])


def _of_rows_that_see(grad_lse, tensors, segments, **options):
    """A logarithm of nothing has no gradient: the formula would make NaN of any."""
    lse = ops.attention(*(x.float().nan_to_num() for x in tensors[:3]), segments, return_lse=True, backend="reference", **options)[1]
    return grad_lse.where(lse.isfinite(), 0.0)


def _close(found, exact, dtype, group=1):
    """Within rounding of weights, slopes and results, where errors of sums stay below those of their largest terms; lse is in fp32.

    Gradients of keys and values are sums over the heads of a group, each rounded on its own, which cancel: errors grow with the root of their number.
    """
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), found, exact, strict=True):
        most = max(1.0, b.abs().nan_to_num(posinf=0).max().item() if b.numel() else 0.0)
        unit = 2.0**-17 if name == "lse" else 4 * UNIT[dtype] * (group**0.5 if name in ("dk", "dv") else 1)
        torch.testing.assert_close(a.double(), b, rtol=0, atol=unit * most, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_segments_without_rows_or_keys_and_of_different_numbers_of_both(causal):
    inputs = _inputs([0, 5, 0, 3, 40, 6], [5, 0, 0, 40, 3, 6], slack=9)
    found = _run("cuda", *inputs, causal=causal)
    _close(found, _exact(*inputs, causal=causal), torch.bfloat16)
    unseeing = torch.tensor([True] * 5 + [False] * 3 + [causal] * 37 + [False] * 9 + [True] * 9)
    assert not found[0][unseeing].any() and not found[2][unseeing].any() and found[0][~unseeing].any(-1).all()
    assert ((found[1] == float("-inf")).all(-1) == unseeing).all()
    assert all(x.isfinite().all() for x in (found[0], *found[2:])) and not found[3][-9:].any() and not found[4][-9:].any()


@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([], []), ([0], [5]), ([5], [0])], ids=str)
def test_a_pack_with_nothing_to_see_has_gradients_of_zero(lengths_q, lengths_k):
    tensors, segments = _inputs(lengths_q, lengths_k)
    out, _, *grads = _run("cuda", tensors, segments)
    assert all(a.shape == b.shape and not a.any() for a, b in zip((out, *grads), (tensors[0], *tensors[:3]), strict=True))


def test_a_gradient_of_lse_alone_reaches_queries_and_keys_and_no_values():
    tensors, segments = _inputs([7, 70], [9, 70])
    grad_lse = torch.randn(2, 77).t()  # a view of other strides
    results = []
    for backend, wide in (("cuda", False), ("reference", True)):
        q, k, v = (x.double() if wide else x for x in tensors[:3])
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        _, lse = ops.attention(q, k, v, segments, return_lse=True, backend=backend)
        lse.backward(grad_lse.to(lse.dtype))
        results.append((q.grad, k.grad, v.grad))
    for a, b in zip(results[0][:2], results[1][:2]):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4 * UNIT[torch.bfloat16])
    assert results[0][2] is not None and not results[0][2].any()


def test_heads_of_a_group_share_keys_as_if_these_were_repeated():
    (q, k, v, grad), segments = _inputs([70, 9], heads=6, kv_heads=2)
    grouped = _run("cuda", [q, k, v, grad], segments)
    each = _run("cuda", [q, *(x.repeat_interleave(3, 1) for x in (k, v)), grad], segments)
    assert _same(grouped[:3], each[:3])
    exact = _exact([q, k, v, grad], segments)
    for index in (3, 4):  # summed in fp32 and rounded once
        errors = [(x - exact[index]).square().mean() for x in (grouped[index].double(), each[index].unflatten(1, (2, 3)).double().sum(2))]
        assert errors[0] <= errors[1] * 1.1, index


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("width", [64, 128])
def test_a_segment_alone_has_the_bits_it_has_in_a_pack(causal, width):
    lengths = [18, 0, 133, 65]
    tensors, segments = _inputs(lengths, width=width, slack=5)
    packed = _run("cuda", tensors, segments, causal=causal)
    for start, length in zip(accumulate(lengths, initial=0), lengths):
        own = slice(start, start + length)
        alone = _run("cuda", [x[own] for x in tensors], Segments.of([length]), causal=causal)
        assert _same(alone, [x[own] for x in packed]), length


def test_kv_end_of_a_causal_mask_has_its_bits():
    inputs = _inputs([70, 40])
    assert _same(_run("cuda", *inputs), _run("cuda", *inputs, kv_end=torch.arange(1, 111, dtype=torch.int32)))


def test_every_run_in_every_order_of_threads_gives_the_same_bits(simt_seed, monkeypatch):
    inputs = _inputs([140, 20], [150, 30], slack=3)
    found = _run("cuda", *inputs)
    assert _same(found, _run("cuda", *inputs))
    monkeypatch.setenv("LMM_SIMT_SEED", "0")
    assert _same(found, _run("cuda", *inputs))


def test_parts_of_a_fused_projection_and_a_broadcast_gradient():
    """Views are read where they lie; the gradient of a sum has strides of 0."""
    grads = []
    for backend, dtype in (("cuda", torch.bfloat16), ("reference", torch.float64)):
        torch.manual_seed(0)
        fused = torch.randn(50, 6, 64).bfloat16().to(dtype).requires_grad_()
        q, k, v = fused.split([4, 1, 1], 1)
        ops.attention(q, k, v, Segments.of([19, 31]), backend=backend).sum().backward()
        grads.append(fused.grad.double())
    torch.testing.assert_close(*grads, rtol=0, atol=4 * UNIT[torch.bfloat16] * grads[1].abs().max().item())


def test_nothing_is_touched_behind_any_tensor(fenced):
    """The last byte of each input is the last that can be read; NaN fills what the views leave out."""
    tensors, segments = _inputs([70, 5], [65, 9])
    edged = [fenced(x.contiguous()) for x in tensors]
    kv_end = fenced(torch.tensor([65] * 70 + [74] * 5, dtype=torch.int32))
    bounds = [fenced(x) for x in (segments.cu_q, segments.cu_k)]
    narrow = Segments(*bounds, segments.max_q, segments.max_k, segments.lengths_q, segments.lengths_k)
    for options in ({}, {"kv_end": kv_end}):
        assert _same(_run("cuda", edged, narrow, **options), _run("cuda", tensors, segments, **options))


def test_rows_and_heads_of_one_may_have_any_stride():
    """Torch lets the stride of a dimension of one be any number; a launch takes multiples of 16 bytes only."""
    fused = torch.randn(1, 195).bfloat16()
    q, k, v = fused.as_strided((1, 3, 64), (195, 64, 1)).unbind(1)
    tensors = [*(x[:, None] for x in (q, k, v)), torch.randn(1, 1, 64).bfloat16()]
    assert tensors[0].stride(0) == 195
    _close(_run("cuda", tensors, Segments.of([1])), _exact(tensors, Segments.of([1])), torch.bfloat16)


def test_longest_tiles_come_first_by_one_list_for_all_layers(cuda_emulation):
    """Even segments need none, compiled code (below) and captured graphs have none: all give the same bits."""
    lengths = [40, 300, 129]
    tensors, segments = _inputs(lengths, heads=1, slack=2)
    tiles = attention_cuda._tiles(segments.lengths_q, segments.lengths_k, 471, 1, torch.device("cpu"))
    assert tiles is not None and tiles.view(-1, 2).tolist() == [[1, 2], [1, 1], [2, 1], [1, 0], [2, 0], [0, 0], [3, 0]]
    calls = (*tensors[:3], segments.cu_q, segments.cu_k, None)
    forward = torch.ops.lmmblocks.attention_fwd_cuda
    made = attention_cuda._listed.cache_info().misses
    listed = [forward(*calls, segments.lengths_q, segments.lengths_k, 300, False, True, 0.125) for _ in range(3)]
    assert attention_cuda._listed.cache_info().misses == made
    searched = forward(*calls, (), (), 300, False, True, 0.125)
    assert all(_same(found, searched) for found in listed)
    ops.attention(*(x[:, :1].contiguous() for x in _inputs([40, 40])[0][:3]), Segments.of([40, 40]), backend="cuda")
    assert attention_cuda._listed.cache_info().misses == made


def test_registered_ops_pass_opcheck():
    (q, k, v, grad), segments = _inputs([5, 3])
    own, places = torch.ops.lmmblocks, (segments.cu_q, segments.cu_k, None)
    call = (q, k, v, *places, segments.lengths_q, segments.lengths_k, 5, False, True, 0.125)
    torch.library.opcheck(own.attention_fwd_cuda.default, call)
    out, lse = own.attention_fwd_cuda(*call)
    torch.library.opcheck(own.attention_bwd_cuda.default, (grad, lse, q, k, v, out, lse, *places, True, 0.125))


def test_one_graph_holds_forward_and_backward_and_serves_other_packings():
    """Sizes of the first packing are constants, the second graph has symbols of them: no third is needed."""
    compiled = torch.compile(_loss, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for lengths in ([20, 30], [7, 50, 9], [33, 8, 22], [66, 2, 1, 5]):
        tensors, segments = _inputs(lengths)
        grad_lse = torch.randn(sum(lengths), 2)
        leaves = [[x.detach().requires_grad_() for x in tensors[:3]] for _ in range(2)]
        for loss, (q, k, v) in zip((_loss, compiled), leaves):
            loss(q, k, v, segments, tensors[3], grad_lse).backward()
        assert _same([x.grad for x in leaves[0]], [x.grad for x in leaves[1]]), lengths
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def _loss(q, k, v, segments, grad, grad_lse):
    out, lse = ops.attention(q, k, v, segments, return_lse=True, backend="cuda")
    return (out * grad).sum().float() + (lse * grad_lse).sum()


def test_data_that_starts_anywhere_is_copied_where_nobody_could_refuse_it():
    """Compiled code can't say where the data of a tensor starts, and has chosen the kernels when it comes."""
    (q, k, v, grad), segments = _inputs([20])
    odd = [torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x) for x in (q, k, v, grad)]
    assert all(x.data_ptr() % 16 for x in odd)
    with pytest.raises(LmmError, match="not aligned"):
        ops.attention(*odd[:3], segments, backend="cuda")
    own, places, mask = torch.ops.lmmblocks, (segments.cu_q, segments.cu_k, None), (True, 0.125)
    results = []
    for *qkv, slope in ((q, k, v, grad), odd):
        out, lse = own.attention_fwd_cuda(*qkv, *places, (), (), 20, True, *mask)
        results.append((out, lse, *own.attention_bwd_cuda(slope, None, *qkv, out, lse, *places, *mask)))
    assert _same(*results)


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({}, {"window": 4}, "no window"),
        ({}, {"softcap": 4.0}, "no softcap"),
        ({}, {"scale": -1.0}, "above 0"),
        ({}, {"kv_end": torch.zeros(4, dtype=torch.int64)}, "contiguous int32"),
        ({"q": torch.float16}, {}, "cast them to one dtype"),
        ({"q": torch.float32, "k": torch.float32, "v": torch.float32}, {}, "float32 is none of"),
    ],
    ids=lambda value: str(next(iter(value), "as it is")) if isinstance(value, dict) else "",
)
def test_what_it_cannot_take_is_refused_with_a_reason_and_auto_answers(change, options, reason):
    (q, k, v, _), segments = _inputs([4])
    q, k, v = (x.to(change.get(name, x.dtype)) for name, x in zip("qkv", (q, k, v)))
    with pytest.raises(LmmError, match=reason):
        ops.attention(q, k, v, segments, backend="cuda", **options)
    if options.get("scale") is None and not change.keys() == {"q"}:
        assert ops.attention(q, k, v, segments, **options).isfinite().all()


@pytest.mark.parametrize("width", [32, 72, 256])
def test_other_widths_are_refused(width):
    tensors, segments = _inputs([4], width=width)
    with pytest.raises(LmmError, match=f"heads of {width}: it is compiled for 64 and 128"):
        ops.attention(*tensors[:3], segments, backend="cuda")


def test_it_stands_before_triton_and_auto_waits_for_proof():
    names = ladders()["attention"]
    assert names.index("cuda_decode") < names.index("cuda") < names.index("triton")
    for case in ("attention", "attention (a vision tower)", "attention (images see themselves)"):
        found = consider(Examples("cpu").calls[case])
        assert "emulator" in dict(found.verdicts)["cuda"]
    tensors, segments = _inputs([4])
    ops.attention(*tensors[:3], segments, backend="cuda")
    row = next(line for line in ops.backend.explain(200).splitlines() if line.startswith("attention "))
    assert row.split()[2] == "cuda", row


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_decoder_learns_with_it_as_with_the_reference(dtype, recompute, as_exact_as_torch):
    """Grouped heads of 64, an image that sees itself: hidden states and every gradient, the reference in the same dtype as the measure."""
    shape = {"dim": 128, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 64, "ffn_dim": 64, "vocab": 32, "recompute": recompute}
    torch.manual_seed(0)
    decoder = TransformerConfig(**shape).build()
    lengths = [70, 15]
    segments, positions = Segments.of(lengths), torch.cat([torch.arange(length) for length in lengths])
    rows, slope = torch.randn(85, 128).to(dtype), torch.randn(85, 128).to(dtype)
    for weight in decoder.parameters():
        weight.data = weight.data.to(dtype).float()

    def step(backend, precision):
        decoder.to(precision).zero_grad()
        with ops.backend(attention=backend):
            hidden = decoder(rows.to(precision), positions=positions, segments=segments, kv_end=_image(85))
            hidden.backward(slope.to(precision))
        grads = [weight.grad.clone() for weight in decoder.model.layers.parameters()]
        return [hidden.detach(), *grads]

    exact = step("reference", torch.float64)
    assert len(exact) == 1 + 2 * 9 and all(x.any() for x in exact)
    as_exact_as_torch(step("cuda", dtype), step("reference", dtype), exact, floor=4 * UNIT[dtype])
