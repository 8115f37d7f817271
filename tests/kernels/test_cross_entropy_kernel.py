"""Linear cross-entropy by chunks, cuBLAS (here: torch's products) and one kernel, against the formula in fp64."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels import cross_entropy
from lmmblocks.kernels import linear_cross_entropy as chunks
from lmmblocks.kernels.cross_entropy import cross_entropy_rows, scale_in_place

from lmmblocks import ops

NAN = float("nan")


def _inputs(rows, width, vocabulary, dtype=torch.float32, device="cpu", seed=0):
    torch.manual_seed(seed)
    hidden, weight = (
        torch.randn(rows, width, device=device).to(dtype),
        torch.randn(vocabulary, width, device=device).to(dtype),
    )
    return (
        hidden,
        weight,
        torch.randn(vocabulary, device=device).to(dtype),
        torch.randint(0, vocabulary, (rows,), device=device),
    )


def _run(backend, hidden, weight, bias, targets, upstream=1.0, **options):
    leaves = [x.detach().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    loss = ops.linear_cross_entropy(
        leaves[0],
        leaves[1],
        targets,
        bias_V=leaves[2] if bias is not None else None,
        backend=backend,
        **options,
    )
    return (
        loss.detach(),
        *torch.autograd.grad(loss, leaves, torch.as_tensor(upstream, dtype=loss.dtype).expand(loss.shape)),
    )


def _exact(hidden, weight, bias, targets, upstream=1.0, **options):
    options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    wide = [None if x is None else x.double() for x in (hidden, weight, bias)]
    return _run("reference", *wide, targets, upstream, **options)


def _cut_small(patch):
    """At most 3 rows of a small vocabulary in a chunk, 16 columns in a tile."""
    patch.setattr(chunks, "FLOOR_ROWS", 1)
    patch.setattr(chunks, "TILE_ROWS", 1)
    patch.setattr(chunks, "LOGITS_BYTES", 3 * chunks.padded(1, torch.float32) * 4)
    patch.setattr(cross_entropy, "WIDEST_TILE", 16)


def _floor(dtype):
    """A sum over few rows may be exact in torch by luck: no error below a sixteenth of the dtype's step counts, relative to the result."""
    return max(2e-6, torch.finfo(dtype).eps / 16)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("biased", [False, True])
def test_kernel_is_as_exact_as_torch(reduction, softcap, biased, dtype, device, as_exact_as_torch):
    hidden, weight, bias, targets = _inputs(5, 24, 150, dtype, device)
    targets[3], bias = -100, bias if biased else None
    options = {"reduction": reduction, "softcap": softcap, "weights": torch.rand(5, device=device) + 0.1}
    own, exact = (run(hidden, weight, bias, targets, 0.5, **options) for run in (lambda *a, **k: _run("reference", *a, **k), _exact))
    as_exact_as_torch(_run("triton", hidden, weight, bias, targets, 0.5, **options), own, exact, floor=_floor(dtype))


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(0, 5),
    vocabulary=st.integers(1, 40),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    softcap=st.none() | st.floats(0.5, 9),
    weighted=st.booleans(),
    ignored=st.sets(st.integers(0, 4)),
    seed=st.integers(0, 99),
)
def test_chunks_of_any_shape_give_the_loss_of_all_rows_at_once(rows, vocabulary, reduction, softcap, weighted, ignored, seed):
    hidden, weight, bias, targets = _inputs(rows, 5, vocabulary, seed=seed)
    for row in ignored & set(range(rows)):
        targets[row] = -100
    options = {"reduction": reduction, "softcap": softcap, "weights": torch.rand(rows) if weighted else None}
    with pytest.MonkeyPatch.context() as patch:
        _cut_small(patch)
        found = _run("triton", hidden, weight, bias, targets, 2.0, **options)
    for kernel, exact in zip(found, _exact(hidden, weight, bias, targets, 2.0, **options)):
        torch.testing.assert_close(kernel.double(), exact, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_head_are_summed_in_fp32(monkeypatch, device):
    """In fp16, a chunk of two rows at a time: the sum is wide until its one rounding at the end."""
    monkeypatch.setattr(chunks, "rows_of_chunk", lambda *args, **kwargs: 2)
    hidden, weight, bias, targets = _inputs(13, 8, 12, torch.float16, device)
    hidden, seen = hidden.abs() + 1, []
    plain = chunks.add_product
    monkeypatch.setattr(chunks, "add_product", lambda total, a, b: (seen.append(total.dtype), plain(total, a, b))[1])
    _, _, dw, db = _run("triton", hidden, weight, bias, targets, reduction="sum")
    assert set(seen) == {torch.float32} and len(seen) == 6
    _, _, exact_dw, exact_db = _exact(hidden, weight, bias, targets, reduction="sum")
    for found, exact in ((dw, exact_dw), (db, exact_db)):
        assert (found.double() - exact).abs().max() < 2e-3 * exact.abs().max()


def test_rows_may_lie_apart_and_the_vocabulary_need_not_fill_a_tile(device):
    hidden, weight, bias, targets = _inputs(3, 8, 131, device=device)
    apart = torch.full((3, 40), NAN, device=device)[:, 16:24].copy_(hidden)
    assert apart.stride(0) == 40
    for a, b in zip(_run("triton", apart, weight, bias, targets), _run("triton", hidden, weight, bias, targets)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_padding_of_logits_is_neither_read_nor_multiplied(softcap, device):
    """The last row's target is padding: its gradient is NaN, that of its padding is not."""
    logits, targets = torch.full((4, 64), NAN, device=device), torch.tensor([0, 4, -100, 7], device=device)
    logits[[0, 1, 3], :5] = torch.randn(3, 5, device=device)
    clean, losses = logits[:2, :5].double().requires_grad_(), torch.empty(4, device=device)
    cross_entropy_rows(logits, targets, losses, vocabulary=5, softcap=softcap, factors_R=torch.ones(4, device=device))
    scores = clean if softcap is None else softcap * (clean / softcap).tanh()
    torch.nn.functional.cross_entropy(scores, targets[:2], reduction="sum").backward()
    torch.testing.assert_close(logits[:2, :5].double(), clean.grad, rtol=1e-5, atol=1e-6)
    assert not logits[:, 5:].any() and not logits[2].any() and losses[2] == 0
    assert logits[3, :5].isnan().all() and losses[3].isnan()


@pytest.mark.parametrize("target", [-1, 7, 2**40])
def test_targets_outside_the_vocabulary_give_nan_and_read_nothing(target, device):
    hidden, weight, bias, targets = _inputs(3, 4, 7, device=device)
    targets[1] = target
    losses, dh, dw, _ = _run("triton", hidden, weight, bias, targets, reduction="none")
    assert losses[1].isnan() and dh[1].isnan().all() and dw.isnan().all()
    assert losses[[0, 2]].isfinite().all() and dh[[0, 2]].isfinite().all()


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_supervised_row_gives_zero_and_no_gradient(rows, reduction, device):
    hidden, weight, bias, targets = _inputs(rows, 4, 7, device=device)
    found = _run("triton", hidden, weight, bias, targets.fill_(-100), reduction=reduction)
    assert all(not x.any() for x in found)


def test_scale_of_the_loss_reaches_gradients_made_in_the_forward(device):
    hidden, weight, bias, targets = _inputs(3, 4, 7, device=device)
    once, thrice = (_run("triton", hidden, weight, bias, targets, factor)[1:] for factor in (1.0, 3.0))
    for a, b in zip(once, thrice):
        torch.testing.assert_close(3 * a, b)


def test_a_second_backward_is_refused_not_scaled_twice(device):
    hidden, weight, _, targets = _inputs(3, 4, 7, device=device)
    loss = ops.linear_cross_entropy(hidden.requires_grad_(), weight, targets, backend="triton")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_the_head_gets_the_gradient_made_in_the_forward_not_a_copy(monkeypatch, device):
    module, made = sys.modules["lmmblocks.ops.linear_cross_entropy_triton"], []
    plain = module._GRADS
    monkeypatch.setattr(module, "_GRADS", lambda *args: (out := plain(*args), made.append(out[2].data_ptr()))[0])
    hidden, weight, _, targets = _inputs(3, 4, 7, device=device)
    ops.linear_cross_entropy(hidden, weight.requires_grad_(), targets, backend="triton").backward()
    assert made == [weight.grad.data_ptr()]


def test_weights_and_normalizer_may_have_gradients(device):
    hidden, weight, bias, targets = _inputs(3, 4, 7, device=device)
    found = []
    for backend in ("triton", "reference"):
        weights, normalizer = (
            torch.arange(1.0, 4, device=device).requires_grad_(),
            torch.tensor(3.0, device=device, requires_grad=True),
        )
        loss = ops.linear_cross_entropy(hidden, weight, targets, weights=weights, normalizer=normalizer, backend=backend)
        found.append(torch.autograd.grad(loss, (weights, normalizer)))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_only_wanted_gradients_are_made(device):
    hidden, weight, bias, targets = _inputs(2, 4, 7, device=device)
    args = (hidden, weight, targets, torch.ones(2, device=device), bias, None)
    for needs in ([True, False, False], [False, True, False], [False, False, True], [False, False, False]):
        _, *grads = torch.ops.lmmblocks.linear_cross_entropy_grads(*args, needs, torch.float32, torch.float32)
        assert [bool(grad.numel()) for grad in grads] == needs


def test_gradients_are_the_same_on_every_run(device):
    inputs = _inputs(40 if device.type == "cuda" else 4, 16, 90, device=device)
    first = _run("triton", *inputs)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, _run("triton", *inputs)))


@pytest.mark.parametrize("narrow", [torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])])
def test_autocast_multiplies_in_its_dtype_and_gives_gradients_in_that_of_the_leaves(narrow, device):
    hidden, weight, bias, targets = _inputs(4, 16, 40, device=device)
    with torch.autocast(device.type, dtype=narrow):
        loss = ops.linear_cross_entropy(
            hidden.requires_grad_(),
            weight.requires_grad_(),
            targets,
            bias_V=bias.requires_grad_(),
            backend="triton",
        )
    found = (loss, *torch.autograd.grad(loss, (hidden, weight, bias)))
    for kernel, exact in zip(found, _exact(hidden, weight, bias, targets)):
        assert kernel.dtype == torch.float32
        assert (kernel.double() - exact).abs().max() < 4 * torch.finfo(narrow).eps * exact.abs().max().clamp_min(1)


def test_in_place_scale_leaves_the_rest_of_the_memory(device):
    memory = torch.arange(5000.0, device=device)
    scale_in_place(memory[:4100], torch.tensor(2.0, device=device))
    expected = torch.arange(5000.0, device=device)
    expected[:4100] *= 2
    assert torch.equal(memory, expected)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(0, 100_000),
    vocabulary=st.integers(1, 260_000),
    width=st.integers(1, 8192),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    summed=st.booleans(),
)
def test_chunks_are_never_small_nor_larger_than_their_budget(rows, vocabulary, width, dtype, summed):
    chunk = chunks.rows_of_chunk(rows, vocabulary, width, dtype, summed)
    assert 0 <= chunk <= rows and (chunk or not rows)
    count = -(-rows // chunk) if rows else 0
    bytes_of_chunk = chunk * chunks.padded(vocabulary, dtype) * dtype.itemsize
    floor = chunks.FLOOR_ROWS * chunks.padded(vocabulary, dtype) * dtype.itemsize
    if count > 1:
        assert chunk >= chunks.FLOOR_ROWS / 2 and bytes_of_chunk <= max(chunks.LOGITS_BYTES, floor)
        assert rows - chunk * (count - 1) > 0
    elif summed:  # one chunk costs no more than a chunk of the floor and the fp32 sum that it saves
        assert bytes_of_chunk <= max(chunks.LOGITS_BYTES, floor + 4 * chunks.padded(vocabulary, dtype) * width)


def test_registered_ops_pass_opcheck(device):
    hidden, weight, bias, targets = _inputs(2, 8, 11, device=device)
    library, factors = torch.ops.lmmblocks, torch.ones(2, device=device)
    torch.library.opcheck(library.linear_cross_entropy_losses.default, (hidden, weight, targets, bias, 3.0))
    for needs in ([True, True, True], [True, False, False]):
        args = (
            hidden,
            weight,
            targets,
            factors,
            bias if needs[2] else None,
            None,
            needs,
            torch.float32,
            torch.float32,
        )
        torch.library.opcheck(library.linear_cross_entropy_grads.default, args)
    torch.library.opcheck(library.scale_in_place.default, (torch.ones(5, device=device), factors[0]))


def test_a_compiled_loss_is_one_graph_with_the_same_gradients(device):
    hidden, weight, bias, targets = _inputs(2, 8, 11, device=device)
    compiled = torch.compile(_loss_of_half, backend="aot_eager", fullgraph=True)
    results = []
    for run in (compiled, _loss_of_half):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        run(*leaves, targets).backward()
        results.append([leaf.grad for leaf in leaves])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def _loss_of_half(hidden, weight, bias, targets):
    return 0.5 * ops.linear_cross_entropy(hidden, weight, targets, bias_V=bias, backend="triton")
