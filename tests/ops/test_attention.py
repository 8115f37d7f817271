"""Packed attention: against a dense fp64 formula, per segment, for every implementation."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.ops.attention.call import AttentionCall
from lmmblocks.ops.attention.reference import attention_reference
from lmmblocks.ops.dispatch import _LADDERS, Implementation
from lmmblocks.spec import LmmError, Segments

IMPLEMENTATIONS = ("torch", "reference")


def dense_attention(q, k, v, visible, softcap=None):
    """Independent oracle: one segment, one head at a time, plain loops over rows in fp64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys = [j for j in range(k.shape[0]) if visible(row, j)]
            if not keys:
                continue
            scores = torch.stack([(q[row, head].double() * k[j, head // group].double()).sum() for j in keys])
            scores = scores * q.shape[-1] ** -0.5
            weights = torch.softmax(scores if softcap is None else softcap * (scores / softcap).tanh(), 0)
            out[row, head] = sum(w * v[j, head // group].double() for w, j in zip(weights, keys))
    return out


def make(lengths_q, lengths_k, heads=4, kv_heads=2, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(sum(lengths_q), heads, dim, generator=generator)
    k, v = (torch.randn(sum(lengths_k), kv_heads, dim, generator=generator) for _ in range(2))
    return q, k, v, Segments.of(lengths_q, lengths_k)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=4),
    causal=st.booleans(),
    seed=st.integers(0, 100),
)
def test_each_segment_attends_to_itself_bottom_right_aligned(lengths, causal, seed):
    lengths_q, lengths_k = zip(*lengths)
    q, k, v, segments = make(lengths_q, lengths_k, seed=seed)
    out = ops.attention(q, k, v, segments, causal=causal)
    q_at = k_at = 0
    for len_q, len_k in lengths:
        shift = len_k - len_q
        expected = dense_attention(
            q[q_at : q_at + len_q],
            k[k_at : k_at + len_k],
            v[k_at : k_at + len_k],
            lambda i, j, shift=shift: not causal or j <= i + shift,
        )
        torch.testing.assert_close(out[q_at : q_at + len_q].double(), expected, atol=2e-6, rtol=0)
        q_at, k_at = q_at + len_q, k_at + len_k


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_kv_end_lets_an_image_row_see_its_whole_image(name):
    q, k, v, segments = make([3, 6], [3, 6])
    kv_end = torch.tensor([1, 2, 3, 4, 7, 7, 7, 8, 9], dtype=torch.int32)  # rows 1..3 of the second segment are an image
    out = ops.attention(q, k, v, segments, kv_end=kv_end, backend=name)
    starts = [0] * 3 + [3] * 6
    for first, last in ((0, 3), (3, 9)):
        expected = dense_attention(q[first:last], k[first:last], v[first:last], lambda i, j, first=first: starts[first] + j < kv_end[first + i])
        torch.testing.assert_close(out[first:last].double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_causal_equals_its_own_kv_end(name):
    q, k, v, segments = make([4, 1, 5], [4, 1, 5])
    kv_end = torch.arange(1, 11, dtype=torch.int32)
    causal = ops.attention(q, k, v, segments, backend=name)
    torch.testing.assert_close(causal, ops.attention(q, k, v, segments, kv_end=kv_end, backend=name), atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=3),
    window=st.integers(1, 12),
    softcap=st.none() | st.floats(0.2, 5),
    ahead=st.none() | st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_window_and_softcap_equal_the_formula(lengths, window, softcap, ahead, seed):
    """Also with keys with a cache, where the places of queries and keys differ, and with rows that see ``ahead`` rows further."""
    lengths_q, lengths_k = [n for n, _ in lengths], [n + cached for n, cached in lengths]
    q, k, v, segments = make(lengths_q, lengths_k, seed=seed)
    places = torch.cat([torch.arange(lk - lq, lk) + sum(lengths_k[:i]) for i, (lq, lk) in enumerate(zip(lengths_q, lengths_k))])
    last = torch.cat([torch.full((lq,), sum(lengths_k[: i + 1])) for i, lq in enumerate(lengths_q)])
    kv_end = None if ahead is None else torch.minimum(places + 1 + ahead, last).int()
    out = ops.attention(q, k, v, segments, window=window, softcap=softcap, kv_end=kv_end)
    q_at = k_at = 0
    for len_q, len_k in zip(lengths_q, lengths_k):
        shift, further = len_k - len_q, ahead or 0
        expected = dense_attention(
            q[q_at : q_at + len_q],
            k[k_at : k_at + len_k],
            v[k_at : k_at + len_k],
            lambda i, j, shift=shift, further=further: i + shift - window < j <= i + shift + further,
            softcap,
        )
        torch.testing.assert_close(out[q_at : q_at + len_q].double(), expected, atol=2e-6, rtol=0)
        q_at, k_at = q_at + len_q, k_at + len_k


@pytest.mark.parametrize("lengths_k", [(21, 21, 6), (30, 30, 6)], ids=["alone", "with a cache"])
def test_chunks_of_queries_behind_a_window_agree_with_the_reference(monkeypatch, lengths_k):
    monkeypatch.setattr(sys.modules["lmmblocks.ops.attention.reference"], "WINDOW_ROWS", 4)
    results = {}
    for name in IMPLEMENTATIONS:
        q, k, v, segments = make((21, 21, 6), lengths_k)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out = ops.attention(*leaves, segments, window=5, backend=name)
        out.square().sum().backward()
        results[name] = [out.detach(), *(leaf.grad for leaf in leaves)]
    for ours, theirs in zip(*results.values()):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_window_as_long_as_the_segments_changes_nothing():
    q, k, v, segments = make([5, 7], [5, 9])
    for name in IMPLEMENTATIONS:
        whole = ops.attention(q, k, v, segments, backend=name)
        assert torch.equal(ops.attention(q, k, v, segments, window=9, backend=name), whole)


def test_one_query_behind_a_window_reads_the_newest_keys_only():
    q, k, v, segments = make([1], [9])
    k[:6], v[:6] = float("nan"), float("nan")
    out = ops.attention(q, k, v, segments, window=3, backend="torch")
    torch.testing.assert_close(out, ops.attention(q, k[6:], v[6:], Segments.of([1], [3])))


def test_implementations_agree_and_so_do_their_gradients():
    lengths = [5, 5, 5, 2, 7, 7]
    q, k, v, segments = make(lengths, lengths)
    gradients = {}
    for name in IMPLEMENTATIONS:
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        ops.attention(*leaves, segments, backend=name).square().sum().backward()
        gradients[name] = [leaf.grad for leaf in leaves]
    for ours, theirs in zip(*gradients.values()):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_reference_passes_gradcheck_in_fp64():
    q, k, v, segments = make([2, 3], [3, 3], heads=2, kv_heads=1, dim=2)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: ops.attention(*x, segments, backend="reference"), leaves)
    options = {"window": 2, "softcap": 0.5, "backend": "reference"}
    assert torch.autograd.gradcheck(lambda *x: ops.attention(*x, segments, **options), leaves)


def test_rows_behind_the_last_segment_are_zero():
    q, k, v, _ = make([6], [6])
    out = ops.attention(q, k, v, Segments.of([2, 2]))
    assert out.shape == q.shape and not out[4:].any()


@pytest.mark.parametrize(("length", "window"), [(64, None), (4096, 32)], ids=["many segments", "a window"])
def test_no_mask_of_all_rows_is_built(length, window):
    rows, segments = 64 * 64, Segments.of([length] * (64 * 64 // length))
    q = torch.randn(rows, 2, 16)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Largest():
        ops.attention(q, q, q, segments, window=window)
    assert 0 < largest < rows * rows // 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (5, 3, 8)}, "equal k, v"),
        ({"k": (5, 3, 8), "v": (5, 3, 8)}, "not a multiple"),
        ({"k": (4, 2, 8), "v": (4, 2, 8)}, "rows"),
        ({"kv_end": torch.zeros(3)}, "kv_end"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    q, k, v, segments = make([5], [5])
    k, v = (torch.zeros(change[name]) if name in change else x for name, x in (("k", k), ("v", v)))
    with pytest.raises(LmmError, match=message):
        ops.attention(q, k, v, segments, kv_end=change.get("kv_end"))


def test_impossible_windows_and_limits_are_refused():
    q, k, v, segments = make([2], [2])
    for options in ({"window": 0}, {"softcap": 0.0}, {"softcap": -1.0}):
        with pytest.raises(LmmError, match="must be above 0 or None"):
            ops.attention(q, k, v, segments, **options)
    with pytest.raises(LmmError, match="has no softcap"):
        ops.attention(q, k, v, segments, softcap=1.0, backend="torch")


def test_forced_backend_refuses_with_its_reason():
    q, k, v, segments = make([0, 2], [0, 2])
    with pytest.raises(LmmError, match="length 0"):
        ops.attention(q, k, v, segments, backend="torch")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_without_segments_nan_slack_comes_out_as_zeros_that_gradients_pass(name):
    """Each of q, k and v alone may be what is trained: its gradient is zero, not missing."""
    q, k, v = (torch.full((3, heads, 8), float("nan")) for heads in (4, 2, 2))
    out = ops.attention(q, k, v, Segments.of([]), backend=name)
    assert torch.equal(out, torch.zeros(3, 4, 8)) and not out.requires_grad
    for trained in (q, k, v):
        trained.requires_grad_()
        (gradient,) = torch.autograd.grad(ops.attention(q, k, v, Segments.of([]), backend=name).sum(), trained)
        assert torch.equal(gradient, torch.zeros_like(trained))
        trained.requires_grad_(False)


@pytest.fixture
def own():
    """Registers an implementation that takes causal calls and windows, and counts as not knowing the rest."""
    calls = []

    def run(call):
        calls.append(call)
        return attention_reference(call._replace(return_lse=False))

    ops.backend.register("attention", "own", run, lambda call: call.refusal_beyond("window") or True)
    yield calls
    _LADDERS["attention"] = [entry for entry in _LADDERS["attention"] if entry.name != "own"]


def test_an_implementation_of_ones_own_gets_one_call_with_its_defaults_filled_in(own):
    q, k, v, segments = make([3, 2], [3, 2])
    out = ops.attention(q, k, v, segments, window=2)
    assert own == [AttentionCall(q, k, v, segments, True, None, 8**-0.5, 2, None, False)] and own[0].group == 2
    assert torch.equal(out, ops.attention(q, k, v, segments, window=2, backend="reference"))
    q.requires_grad_()
    assert own[0].wants_gradient
    with torch.no_grad():
        assert not own[0].wants_gradient


def test_all_options_that_an_implementation_does_not_know_are_named(own):
    q, k, v, segments = make([3, 2], [3, 2])
    ops.attention(q, k, v, segments, softcap=2.0)
    assert not own, "auto must not ignore an option"
    with pytest.raises(LmmError, match=r"it has no mask with an end per row \(kv_end\) and no softcap"):
        ops.attention(q, k, v, segments, kv_end=torch.ones(5, dtype=torch.int32), window=2, softcap=2.0, backend="own")


def test_an_implementation_that_forgets_the_lse_it_was_asked_for_is_told(own):
    q, k, v, segments = make([3], [3])
    entry = _LADDERS["attention"][0]
    _LADDERS["attention"][0] = Implementation(entry.name, entry.run)
    with pytest.raises(LmmError, match="must refuse return_lse in its supports"):
        ops.attention(q, k, v, segments, return_lse=True)


def test_rows_behind_the_last_segment_are_zero_and_their_sum_has_a_logarithm_of_minus_infinity():
    torch.manual_seed(0)
    q, k, v = (torch.randn(7, 2, 8) for _ in range(3))
    out, lse = ops.attention(q, k, v, Segments.of((2, 3)), return_lse=True, backend="reference")
    assert out.shape == q.shape and not out[5:].any()
    assert lse[:5].isfinite().all() and lse[5:].eq(float("-inf")).all()
