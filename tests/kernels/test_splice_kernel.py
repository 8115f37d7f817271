"""The splice in Triton: copies bit for bit, gradients against fp64, for any plan."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels import splice_bwd

from lmmblocks import experimental, ops
from lmmblocks.ops.splice_kernels import KERNELS
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import LmmError

VOCABULARY = 9


@pytest.fixture
def short_pieces(monkeypatch):
    """Ids with 8 rows are frequent, so that small batches reach every path."""
    monkeypatch.setattr(splice_bwd, "CHUNK", 4)
    monkeypatch.setattr(splice_bwd, "ROWS", 2)


def _run(backend, table, images, plan, grad=None, scale=None):
    table, images = table.detach().requires_grad_(), images.detach().requires_grad_()
    embeds = ops.splice(table, images, plan, scale=scale, backend=backend)
    if grad is None:
        grad = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(1)).to(embeds)
    return (embeds.detach(), *torch.autograd.grad(embeds, (table, images), grad))


def _inputs(plan, width, dtype, device, vocabulary=VOCABULARY):
    torch.manual_seed(0)
    rows = plan.image_rows.shape[0]
    return [torch.randn(n, width, device=device).to(dtype) for n in (vocabulary, rows)]


@st.composite
def batches(draw):
    """Token ids and image lengths of up to 3 samples: no image, several, empty samples, images of no rows."""
    ids = draw(
        st.lists(
            st.lists(st.one_of(st.just(-200), st.integers(0, VOCABULARY - 1)), max_size=14),
            min_size=1,
            max_size=3,
        )
    )
    return ids, [[draw(st.integers(0, 5)) for token in sample if token == -200] for sample in ids]


@settings(max_examples=12, deadline=None)
@given(batch=batches(), limit=st.one_of(st.none(), st.integers(1, 12)), width=st.integers(1, 9))
def test_any_plan_gives_the_rows_and_gradients_of_the_reference(batch, limit, width):
    plan = plan_splice(*batch, max_length=limit, truncate="right")
    table, images = _inputs(plan, width, torch.float32, "cpu")
    found, expected = (_run(backend, table, images, plan) for backend in ("triton", "reference"))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[1], expected[1])


@settings(max_examples=8, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 1, 3, 7, 8, 9, 11, 12, 17]), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_frequent_ids_are_summed_whatever_stands_beside_them(counts, seed):
    """8 rows and more are cut into pieces of 4: every way in which pieces of neighbours can meet in one slot."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice_bwd, "CHUNK", 4)
        patch.setattr(splice_bwd, "ROWS", 2)
        ids = [token for token, count in enumerate(counts) for _ in range(count)]
        shuffled = [ids[i] for i in torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
        plan = plan_splice([[-200, *shuffled]], [[1]])
        table, images = _inputs(plan, 3, torch.float32, "cpu")
        grad = torch.randn(plan.total_rows, 3)
        expected = torch.zeros(VOCABULARY, 3).double().index_add(0, plan.source[1:].long(), grad[1:].double())
        torch.testing.assert_close(_run("triton", table, images, plan, grad)[1].double(), expected, atol=1e-5, rtol=1e-5)


def test_kernel_is_as_exact_as_torch(dtype, device, as_exact_as_torch):
    """Two ids of three pieces, of 64 rows each but the last, beside one that has a row less than a piece of its own needs."""
    ids = [[1, -200, *[2] * 193, *[5] * 127, 3, 0, *[8] * 200], [-200, 4, -200]]
    plan = plan_splice(ids, [[3], [2, 4]], max_length=522, truncate="right").to(device)
    table, images = _inputs(plan, 40, dtype, device)
    grad = torch.randn(plan.total_rows, 40, device=device).to(dtype)
    found, own, exact = (
        _run(name, table.to(kind), images.to(kind), plan, grad.to(kind), scale=2.5)
        for name, kind in (("triton", dtype), ("reference", dtype), ("reference", torch.float64))
    )
    assert torch.equal(found[0], own[0]) and torch.equal(found[2], own[2])
    as_exact_as_torch(found[1], own[1], exact[1])


def test_factor_of_text_rows_is_rounded_to_the_table_first(device):
    plan = plan_splice([[3, -200, 3, 8]], [[2]]).to(device)
    table, images = _inputs(plan, 8, torch.float16, device)
    found, expected = (_run(backend, table, images, plan, scale=3072**0.5) for backend in ("triton", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_rows_of_half_precision_are_copied_bit_for_bit(device):
    """bf16 too: nothing is computed, so the interpreter can be trusted."""
    plan = plan_splice([[1, -200, 5], [-200]], [[3], [2]]).to(device)
    table, images = _inputs(plan, 24, torch.bfloat16, device)
    found, expected = (ops.splice(table, images, plan, backend=backend) for backend in ("triton", "reference"))
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


def test_images_may_be_of_another_dtype(device):
    plan = plan_splice([[1, -200, 5]], [[3]]).to(device)
    table, images = _inputs(plan, 8, torch.float32, device)
    found, expected = (_run(backend, table, images.half(), plan) for backend in ("triton", "reference"))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected))
    assert found[2].dtype == torch.float16


def test_view_without_class_tokens_is_read_where_it_lies(device):
    plan = plan_splice([[1, -200, 5], [-200, 2]], [[4], [4]]).to(device)
    table, features = _inputs(plan, 8, torch.float32, device)[0], torch.randn(2, 5, 8, device=device)
    view = features[:, 1:].requires_grad_()
    embeds = ops.splice(table, view, plan, backend="triton")
    assert torch.equal(embeds[plan.image_rows.long()], features[:, 1:].reshape(8, 8))
    grad = torch.randn(embeds.shape).to(embeds)
    assert torch.equal(torch.autograd.grad(embeds, view, grad)[0], grad[plan.image_rows.long()].view(2, 4, 8))


@settings(max_examples=6, deadline=None)
@given(gap=st.integers(0, 3), apart=st.integers(0, 2), width=st.integers(1, 6))
def test_tables_images_and_gradients_may_have_any_row_stride(gap, apart, width):
    plan = plan_splice([[1, -200, 5, 1], [-200, 2]], [[2], [2]], max_length=4, truncate="right")
    table = torch.randn(VOCABULARY, width + gap)[:, :width]
    images = torch.randn(2, 2 + apart, width + gap)[:, :2, :width]
    grad = torch.randn(plan.total_rows, width + gap)[:, :width]
    found, expected = (_run(backend, table, images, plan, grad) for backend in ("triton", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_gradient_of_a_sum_is_not_read_beyond_its_one_value(device):
    plan = plan_splice([[1, -200, 1]], [[3]]).to(device)
    table, images = _inputs(plan, 4, torch.float32, device)
    table.requires_grad_()
    ops.splice(table, images, plan, backend="triton").sum().backward()
    assert table.grad[:, 0].tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_main_gradient_grows_in_place_and_other_rows_stay(short_pieces, backend, device):
    plan = plan_splice([[1, -200, *[3] * 9, 5]], [[3]]).to(device)
    table, images = _inputs(plan, 4, torch.float16, device)
    table.requires_grad_()
    main = torch.full((VOCABULARY, 5), 7.0, device=device)[:, :4]
    before = main.clone()
    for _ in range(2):
        experimental.splice_into(table, images, plan, scale=2.0, main_grad_VD=main, backend=backend).sum().backward()
    assert table.grad is None
    assert (main - before)[:, 0].tolist() == [0, 4, 0, 36, 0, 4, 0, 0, 0]


@pytest.mark.parametrize(("table_learns", "images_learn"), [(True, False), (False, True), (False, False)])
def test_gradients_that_nobody_needs_are_not_computed(monkeypatch, table_learns, images_learn, device):
    launched, whole = [], KERNELS["triton"]
    recording = whole._replace(
        bwd_rows=lambda *a: launched.append("bwd_rows") or whole.bwd_rows(*a),
        bwd_table=lambda *a: launched.append("bwd_table") or whole.bwd_table(*a),
    )
    monkeypatch.setitem(KERNELS, "triton", recording)
    plan = plan_splice([[1, -200]], [[2]]).to(device)
    table, images = _inputs(plan, 4, torch.float32, device)
    table.requires_grad_(table_learns), images.requires_grad_(images_learn)
    embeds = ops.splice(table, images, plan, backend="triton")
    assert embeds.requires_grad == (table_learns or images_learn)
    if embeds.requires_grad:
        embeds.sum().backward()
    assert launched == ["bwd_rows"] * (table_learns or images_learn) + ["bwd_table"] * table_learns
    assert (table.grad is None, images.grad is None) == (not table_learns, not images_learn)


def test_gradients_are_the_same_on_every_run(short_pieces, device):
    plan = plan_splice([[*[1, 2, 2, 3] * 9, -200]], [[3]]).to(device)
    table, images = _inputs(plan, 16, torch.float32, device)
    first = _run("triton", table, images, plan)
    for _ in range(3 if device.type == "cpu" else 50):
        assert all(torch.equal(a, b) for a, b in zip(first, _run("triton", table, images, plan)))


def test_row_of_an_id_doesnt_depend_on_other_ids(short_pieces, device):
    """Pieces are counted from the id's own first row: what else is in the batch changes no bit."""
    few, many = [5] * 13, [1, 2, 3] * 4
    grad = torch.randn(25, 8, device=device)
    found = []
    for ids, rows in ((few, grad[:13]), (many + few, torch.cat([grad[13:], grad[:13]]))):
        plan = plan_splice([ids], [[]]).to(device)
        table, images = _inputs(plan, 8, torch.float32, device)
        found.append(_run("triton", table, images, plan, rows)[1][5])
    assert torch.equal(*found)


def test_ids_and_image_rows_that_dont_exist_give_zeros_not_a_fault(device):
    from lmmblocks.kernels.splice import splice_fwd
    from lmmblocks.kernels.splice_codes import NOWHERE

    source = torch.tensor([0, 9, 2**31 - 1, -1, -3, NOWHERE], dtype=torch.int32, device=device)
    out = splice_fwd(torch.ones(9, 4, device=device), torch.full((2, 4), 2.0, device=device), source, None)
    assert out[:, 0].tolist() == [1, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("ids", [[[]], [[1, 2]], [[-200]]], ids=["nothing", "text only", "an image of no rows"])
def test_batches_without_rows_or_images(ids, device):
    plan = plan_splice(ids, [[0] * sample.count(-200) for sample in ids]).to(device)
    table, images = _inputs(plan, 4, torch.float32, device)
    found, expected = (_run(backend, table, images, plan) for backend in ("triton", "reference"))
    assert all(torch.equal(a, b) and a.shape == b.shape for a, b in zip(found, expected))


def test_registered_ops_pass_opcheck(device):
    """Every slot of the workspace holds a piece here: slots without one are not written, and opcheck compares them too."""
    plan = plan_splice([[*[1] * 128, -200]], [[2]]).to(device)
    table, images = _inputs(plan, 4, torch.float32, device)
    here = torch.ops.lmmblocks
    grad = here.splice_fwd(table, images, plan.source, 2.0)
    rows = (grad, plan.source, plan.image_rows, plan.token_order, VOCABULARY, torch.float32)
    _, partial, bounds = here.splice_bwd_rows(*rows)
    torch.library.opcheck(here.splice_fwd.default, (table, images, plan.source, 2.0))
    torch.library.opcheck(here.splice_bwd_rows.default, rows)
    torch.library.opcheck(here.splice_bwd_table.default, (grad, plan.token_order, partial, bounds, None, torch.float32))
    main = torch.zeros(VOCABULARY, 4, device=device)
    torch.library.opcheck(here.splice_bwd_table_into.default, (main, grad, plan.token_order, partial, bounds, None))


def test_traces_whole(device):
    plan = plan_splice([[1, -200, 5]], [[2]]).to(device)
    table, images = (x.requires_grad_() for x in _inputs(plan, 4, torch.float32, device))
    run = lambda table, images: ops.splice(table, images, plan, backend="triton").square().sum()  # noqa: E731
    expected = torch.autograd.grad(run(table, images), (table, images))
    traced = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(expected, torch.autograd.grad(traced(table, images), (table, images))))


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda t, i, p: dict(table_VD=t[:5]), "holds the id 8, the table has 5 rows"),
        (lambda t, i, p: dict(image_rows_MD=i[:1]), "places 2 image rows, the projector gave 1"),
        (lambda t, i, p: dict(image_rows_MD=i[:, :3]), "are 3 wide, the decoder is 4 wide"),
        (lambda t, i, p: dict(image_rows_MD=i[0]), r"must be \(M, D\) or \(I, P, D\), found \(4,\)"),
    ],
)
def test_misfits_are_named(change, complaint):
    plan = plan_splice([[8, -200]], [[2]])
    table, images = _inputs(plan, 4, torch.float32, "cpu")
    with pytest.raises(LmmError, match=complaint):
        ops.splice(**{"table_VD": table, "image_rows_MD": images, "plan": plan, **change(table, images, plan)})


@pytest.mark.parametrize(
    "change, complaint",
    [(lambda t: t.half(), "main_grad_VD must be a torch.float32"), (lambda t: t.clone().requires_grad_(), "must not require a gradient")],
)
def test_a_main_gradient_that_does_not_fit_is_refused(change, complaint):
    plan = plan_splice([[8, -200]], [[2]])
    table, images = _inputs(plan, 4, torch.float32, "cpu")
    with pytest.raises(LmmError, match=complaint):
        experimental.splice_into(table, images, plan, change(table))


def test_reference_gradient_is_that_of_the_formula():
    plan = plan_splice([[1, -200, 1, 3]], [[3]], max_length=5, truncate="right")
    table, images = (x.double().requires_grad_() for x in _inputs(plan, 3, torch.float32, "cpu"))
    assert torch.autograd.gradcheck(lambda t, i: ops.splice(t, i, plan, scale=1.5, backend="reference"), (table, images))
