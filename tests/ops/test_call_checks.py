"""Calls whose tensors don't fit together: one LmmError, whatever runs, and nothing of the checks in compiled code."""

import pytest
import torch

import lmmblocks
from lmmblocks import experimental, ops
from lmmblocks.spec import LmmError, Segments


def rows(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


Q, K, TABLE = rows(5, 4, 8), rows(5, 2, 8), rows(5, 8)
TWO = Segments.of([3, 2])

MISFITS = {
    "swiglu": (lambda **how: ops.swiglu(rows(2, 4), rows(2, 5), **how), r"swiglu needs .* one shape: found gate \(2, 4\), up \(2, 5\)"),
    "geglu": (lambda **how: ops.geglu(rows(2, 4), rows(1, 4), **how), r"geglu needs .* found gate \(2, 4\), up \(1, 4\)"),
    "rms_norm": (lambda **how: ops.rms_norm(rows(2, 4), rows(5), **how), r"rms_norm needs .* found x \(2, 4\), weight \(5,\)"),
    "layer_norm": (lambda **how: ops.layer_norm(rows(2, 4), rows(4), rows(5), **how), r"layer_norm needs .* weight \(4,\), bias \(5,\)"),
    "add_rms_norm": (lambda **how: ops.add_rms_norm(rows(2, 4), rows(3, 4), rows(4), **how), r"found x \(2, 4\), residual \(3, 4\), weight \(4,\)"),
    "bias_gelu": (lambda **how: experimental.bias_gelu(rows(2, 4), rows(1), **how), r"bias_gelu needs .* found x \(2, 4\), bias \(1,\)"),
    "rope": (lambda **how: ops.rope(Q, K, rows(4, 8), rows(4, 8), **how), r"rope needs .* found q \(5, 4, 8\), .* cos \(4, 8\)"),
    "qk_norm_rope": (lambda **how: ops.qk_norm_rope(Q, K, rows(8), rows(7), TABLE, TABLE, **how), r"needs weights \(E,\).* k_weight \(7,\)"),
    "linear_cross_entropy": (
        lambda **how: ops.linear_cross_entropy(rows(2, 4), rows(9, 5), torch.zeros(2, dtype=torch.int64), **how),
        r"needs hidden rows \(R,D\) and a head \(V,D\): found hidden \(2, 4\), weight \(9, 5\)",
    ),
    "last_row_scores": (lambda **how: ops.last_row_scores(Q, rows(5, 3, 8), TWO, **how), r"N a multiple of K: found q .* k \(5, 3, 8\)"),
    "outlier_counts": (lambda **how: experimental.outlier_counts(rows(4), TWO, **how), r"M = 5 rows of images: found scores \(4,\)"),
}


@pytest.mark.parametrize("op", MISFITS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_shapes_that_do_not_fit_are_told(op, backend):
    call, message = MISFITS[op]
    with pytest.raises(LmmError, match=message):
        call(backend=backend)


@pytest.mark.parametrize(
    "q, k, cos, sin",
    [(Q, K, TABLE, rows(5, 4)), (Q, rows(6, 2, 8), TABLE, TABLE), (Q, rows(5, 2, 6), TABLE, TABLE), (Q, K, rows(5, 10), rows(5, 10)),
     (Q, K, rows(5, 3), rows(5, 3)), (Q[0], K, TABLE, TABLE), (Q, K, TABLE[0], TABLE[0])],
)  # fmt: skip
def test_heads_and_tables_that_do_not_fit_are_told_alike(q, k, cos, sin):
    for call in (lambda: ops.rope(q, k, cos, sin), lambda: ops.qk_norm_rope(q, k, rows(8), rows(8), cos, sin)):
        with pytest.raises(LmmError, match=r"rope needs q \(T,N,E\), k \(T,K,E\) and tables"):
            call()


@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
@pytest.mark.parametrize(
    "dtypes", [("float32", "bfloat16", "float32"), ("float32", "float32", "float16"), ("int64",) * 3, ("float32", "int64", "int64")]
)
def test_attention_wants_one_floating_point_dtype(dtypes, backend):
    q, k, v = (x.to(getattr(torch, dtype)) for x, dtype in zip((Q, K, K), dtypes))
    with pytest.raises(LmmError, match=f"one floating-point dtype: found .'torch.{dtypes[0]}', 'torch.{dtypes[1]}', 'torch.{dtypes[2]}'.: cast them"):
        ops.attention(q, k, v, TWO, backend=backend)


def test_attention_under_autocast_takes_several_dtypes():
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.attention(Q, K.bfloat16(), K.bfloat16(), TWO)
        with pytest.raises(LmmError, match="one floating-point dtype"):
            ops.attention(Q, K.long(), K.long(), TWO)
    torch.testing.assert_close(out.float(), torch.ones_like(Q))


WITH_SEGMENTS = {
    "attention": lambda lengths: ops.attention(Q, K, K, lengths),
    "row_scores": lambda lengths: ops.row_scores(Q, K, lengths),
    "last_row_scores": lambda lengths: ops.last_row_scores(Q, K, lengths),
    "outlier_counts": lambda lengths: experimental.outlier_counts(rows(5), lengths),
    "merge_neighbours": lambda lengths: experimental.merge_neighbours(rows(5, 3), rows(5, 3), rows(5), lengths, keep=1),
    "merge_to_nearest": lambda lengths: experimental.merge_to_nearest(rows(5, 3), rows(5, 3), rows(5), lengths, keep=1, targets=1),
}


@pytest.mark.parametrize("op", WITH_SEGMENTS)
def test_lengths_in_place_of_segments_are_refused_with_what_to_write(op):
    with pytest.raises(LmmError, match=rf"{op}: \w+ must be lmmblocks.Segments, found list: make them with Segments.of\(\[3, 2\]\)"):
        WITH_SEGMENTS[op]([3, 2])
    with pytest.raises(LmmError, match=r"found Tensor: make them with Segments.of\(\[length, ...\], device=...\)"):
        WITH_SEGMENTS[op](torch.tensor([3, 2]))


def test_users_can_catch_the_error():
    assert lmmblocks.LmmError is LmmError
    with pytest.raises(lmmblocks.LmmError):
        ops.swiglu(rows(2), rows(3))


def test_checks_are_no_part_of_compiled_code():
    def block(x, residual, weight, bias, q, k, cos, sin):
        normed, summed = ops.add_rms_norm(x, residual, weight)
        wide = ops.layer_norm(ops.rms_norm(ops.swiglu(normed, summed), weight), weight, bias)
        q, k = ops.qk_norm_rope(*ops.rope(q, k, cos, sin), weight, weight, cos, sin)
        return experimental.bias_gelu(wide, bias), q, k

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="eager")
    for length in (5, 6, 9):
        inputs = [torch.randn(shape) for shape in ((length, 8), (length, 8), (8,), (8,), (length, 4, 8), (length, 2, 8), (length, 8), (length, 8))]
        torch.testing.assert_close(compiled(*inputs), block(*inputs))
