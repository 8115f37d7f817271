"""The splice in CUDA, emulated, through its op: copies bit for bit, gradients against fp64, for any plan, layout and order of threads."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels.splice_codes import NOWHERE

from lmmblocks import experimental, ops
from lmmblocks.ops.splice_kernels import KERNELS
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import LmmError

pytestmark = pytest.mark.usefixtures("cuda_emulation")

VOCABULARY = 9
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN = float("nan")

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
fast = settings(max_examples=20, deadline=None)


def _run(backend, table, images, plan, grad=None, scale=None):
    """Rows, gradient of the table, gradient of the images."""
    table, images = table.detach().requires_grad_(), images.detach().requires_grad_()
    embeds = ops.splice(table, images, plan, scale=scale, backend=backend)
    if grad is None:
        grad = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(1)).to(embeds)
    return (embeds.detach(), *torch.autograd.grad(embeds, (table, images), grad))


def _inputs(plan, width, dtype=torch.float32, vocabulary=VOCABULARY):
    torch.manual_seed(0)
    return [torch.randn(rows, width).to(dtype) for rows in (vocabulary, plan.image_rows.shape[0])]


def _apart(tensor, gap, offset=0):
    """The same rows, each `gap` elements after the one before, the first `offset` elements after where memory is aligned; NaN in between."""
    rows, width = tensor.shape
    memory = torch.full((offset + rows * (width + gap) + 1,), NAN, dtype=tensor.dtype)
    return memory[offset:].as_strided((rows, width), (width + gap, 1)).copy_(tensor)


def _same_bits(found, expected):
    return all(a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)) for a, b in zip(found, expected, strict=True))


def _bits(tensor):
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def _exact_table_gradient(plan, grad, scale=1.0, vocabulary=VOCABULARY):
    text = plan.source >= 0
    factor = torch.tensor(scale, dtype=grad.dtype).double()
    return torch.zeros(vocabulary, grad.shape[1]).double().index_add(0, plan.source[text].long(), grad[text].double() * factor)


@st.composite
def batches(draw):
    """Token ids and image lengths of up to 3 samples: no image, several, empty samples, images of no rows, an id that comes often."""
    token = st.one_of(st.just(-200), st.integers(0, VOCABULARY - 1))
    ids = draw(st.lists(st.lists(token, max_size=14), min_size=1, max_size=3))
    ids[0] = ids[0] + [draw(st.integers(0, VOCABULARY - 1))] * draw(st.sampled_from([0, 0, 127, 128, 191, 200]))
    return ids, [[draw(st.integers(0, 5)) for token in sample if token == -200] for sample in ids]


@fast
@given(
    batch=batches(),
    limit=st.none() | st.integers(1, 12),
    width=st.sampled_from([1, 3, 8, 24, 31, 256, 264]),
    dtype=st.sampled_from(DTYPES),
    gaps=st.tuples(*[st.sampled_from([0, 1, 8])] * 3),
    offsets=st.tuples(*[st.sampled_from([0, 1, 8])] * 3),
)
def test_any_plan_in_any_layout_gives_the_rows_and_gradients_of_the_formula(batch, limit, width, dtype, gaps, offsets):
    """Rows start on 16 bytes, or not; widths are even, odd, and more than a warp's 32 accesses."""
    plan = plan_splice(*batch, max_length=limit, truncate="right")
    table, images = _inputs(plan, width, dtype)
    grad = torch.randn(plan.total_rows, width).to(dtype)
    laid_out = [_apart(*given) for given in zip((table, images, grad), gaps, offsets)]
    found = _run("cuda", laid_out[0], laid_out[1], plan, laid_out[2])
    expected = _run("reference", table, images, plan, grad)
    assert _same_bits((found[0], found[2]), (expected[0], expected[2]))
    exact = _exact_table_gradient(plan, grad)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found[1].double(), exact, rtol=unit, atol=200 * torch.finfo(torch.float32).eps * 4)


@every_dtype
@pytest.mark.parametrize("width", [40, 37])
def test_it_is_as_exact_as_torch(dtype, width, as_exact_as_torch):
    """Two ids of three pieces, of 64 rows each but the last, beside one that has a row less than a piece of its own needs; the end is cut off."""
    ids = [[1, -200, *[2] * 193, *[5] * 127, 3, 0, *[8] * 200], [-200, 4, -200]]
    plan = plan_splice(ids, [[3], [2, 4]], max_length=522, truncate="right")
    table, images = _inputs(plan, width, dtype)
    grad = torch.randn(plan.total_rows, width).to(dtype)
    found, own, exact = (
        _run(name, table.to(kind), images.to(kind), plan, grad.to(kind), scale=2.5)
        for name, kind in (("cuda", dtype), ("reference", dtype), ("reference", torch.float64))
    )
    assert _same_bits((found[0], found[2]), (own[0], own[2]))
    as_exact_as_torch(found[1], own[1], exact[1])


def test_sums_have_the_bits_of_the_triton_kernel():
    """Both add in one order, so an fp32 gradient doesn't tell which of them ran."""
    pytest.importorskip("triton", reason="a torch without Triton: its kernels can't be run")
    plan = plan_splice([[*[1, 2, 2, 3] * 70, -200, *[5] * 9, 1]], [[3]])
    table, images = _inputs(plan, 24)
    assert _same_bits(_run("cuda", table, images, plan, scale=3.0), _run("triton", table, images, plan, scale=3.0))


@fast
@given(
    counts=st.lists(st.sampled_from([0, 1, 63, 64, 127, 128, 129, 191, 192, 200]), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_frequent_ids_are_summed_whatever_stands_beside_them(counts, seed):
    """128 rows and more are cut into pieces of 64: every way in which pieces of neighbours can meet in one slot."""
    ids = [token for token, count in enumerate(counts) for _ in range(count)]
    shuffled = [ids[i] for i in torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
    plan = plan_splice([[-200, *shuffled]], [[1]])
    table, images = _inputs(plan, 3)
    grad = torch.randn(plan.total_rows, 3)
    exact = _exact_table_gradient(plan, grad)
    torch.testing.assert_close(_run("cuda", table, images, plan, grad)[1].double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("width", [8, 24, 25, 1032])
def test_every_bit_pattern_is_copied_as_it_is(dtype, width):
    """NaNs with their payloads, infinities, subnormals: nothing is computed on the way, forward or to the images."""
    plan = plan_splice([[1, -200, 5], [-200, 8]], [[3], [2]])
    patterns = torch.Generator().manual_seed(0)
    table, images, grad = (
        torch.randint(-(2**15), 2**15, (rows, width), generator=patterns).to(torch.int16).view(dtype) for rows in (VOCABULARY, 5, plan.total_rows)
    )
    embeds, _, image_grad = _run("cuda", table, images, plan, grad)
    text, image = plan.source >= 0, plan.image_rows.long()
    assert torch.equal(_bits(embeds[text]), _bits(table[plan.source[text].long()]))
    assert torch.equal(_bits(embeds[image]), _bits(images)) and torch.equal(_bits(image_grad), _bits(grad[image]))


@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES if a != b])
@pytest.mark.parametrize("width", [16, 5])
def test_images_may_be_of_another_dtype(dtypes, width):
    plan = plan_splice([[1, -200, 5]], [[3]])
    table, images = (x.to(dtype) for x, dtype in zip(_inputs(plan, width), dtypes))
    assert _same_bits(_run("cuda", table, images, plan), _run("reference", table, images, plan))


def test_factor_of_text_rows_is_rounded_to_the_table_first():
    plan = plan_splice([[3, -200, 3, 8]], [[2]])
    for dtype in DTYPES:
        table, images = _inputs(plan, 8, dtype)
        found, expected = (ops.splice(table, images, plan, scale=3072**0.5, backend=name) for name in ("cuda", "reference"))
        assert _same_bits([found], [expected]), dtype


@every_dtype
@pytest.mark.parametrize("width", [8, 16, 7])
def test_a_view_without_class_tokens_is_read_where_it_lies(dtype, width):
    """The class tokens are NaN; so is what lies after the last row of each image."""
    plan = plan_splice([[1, -200, 5], [-200, 2]], [[4], [4]])
    features = torch.full((2, 6, width), NAN, dtype=dtype)
    features[:, 1:5] = torch.randn(2, 4, width).to(dtype)
    view, table = features[:, 1:5].requires_grad_(), _inputs(plan, width, dtype)[0]
    embeds = ops.splice(table, view, plan, backend="cuda")
    image = plan.image_rows.long()
    assert torch.equal(embeds[image], view.reshape(8, width)) and embeds.isfinite().all()
    grad = torch.randn(embeds.shape).to(embeds)
    assert torch.equal(torch.autograd.grad(embeds, view, grad)[0], grad[image].view(2, 4, width))


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_rows_that_were_truncated_away_are_not_read_and_learn_nothing(limit):
    """Of either image all rows, or the last ones; the text after them too."""
    plan = plan_splice([[1, -200, 5, 5], [-200, 2]], [[2], [4]], max_length=limit, truncate="right")
    table, images = _inputs(plan, 8)
    gone = plan.image_rows < 0
    assert gone.any()
    images[gone] = NAN
    embeds, table_grad, image_grad = _run("cuda", table, images, plan)
    assert embeds.isfinite().all() and not image_grad[gone].any() and table_grad.isfinite().all()
    assert image_grad[~gone].any(-1).all() and embeds.shape[0] == plan.total_rows


@pytest.mark.parametrize(
    ("ids", "rows"),
    [([[]], 0), ([[], []], 0), ([[1, 2]], 0), ([[-200]], 0), ([[-200], [-200, -200]], 2), ([[], [3, -200], []], 1)],
    ids=["nothing", "empty samples", "text only", "an image of no rows", "images only", "between empty samples"],
)
def test_batches_without_rows_text_or_images(ids, rows):
    plan = plan_splice(ids, [[rows] * sample.count(-200) for sample in ids])
    table, images = _inputs(plan, 4)
    found, expected = (_run(name, table, images, plan) for name in ("cuda", "reference"))
    assert _same_bits(found, expected) and found[1].shape == table.shape


def test_ids_and_image_rows_that_dont_exist_give_zeros_not_a_fault(fenced):
    source = torch.tensor([0, 9, 2**31 - 1, -1, -3, NOWHERE], dtype=torch.int32)
    table, images = fenced(torch.ones(9, 4)), fenced(torch.full((2, 4), 2.0))
    assert KERNELS["cuda"].fwd(table, images, source, None)[:, 0].tolist() == [1, 0, 0, 2, 0, 0]


def test_slack_of_a_plan_from_the_device_is_zero_and_its_gradient_is_not_read():
    """The device's plan has room for more rows than it uses, and its order of tokens ends in -1."""
    ids = torch.tensor([[1, -200, 5, 0], [7, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    plan = experimental.splice_plan(
        ids, 3, image_cu_rows=torch.tensor([0, 3]), attention_mask=mask, vocabulary=VOCABULARY, total_rows=20, backend="reference"
    )
    used = int(plan.cu_seqlens[-1])
    assert used == 7 and (plan.token_order == -1).any()
    table, images = _inputs(plan, 8)
    grad = torch.randn(20, 8)
    expected = _run("reference", table, images, plan, grad)
    grad[used:] = NAN
    found = _run("cuda", table, images, plan, grad)
    assert not found[0][used:].any() and _same_bits(found, expected)


@every_dtype
@pytest.mark.parametrize("width", [8, 5])
def test_main_gradient_grows_in_place_and_rows_of_other_ids_are_not_touched(dtype, width):
    """Rare ids and one of three pieces; rows of ids that don't occur, and what lies between rows, are NaN and stay so."""
    plan = plan_splice([[1, -200, *[3] * 200, 5]], [[3]])
    table, images = _inputs(plan, width, dtype)
    table.requires_grad_()
    whole = torch.full((VOCABULARY, width + 8), NAN)
    main = whole[:, :width]
    main[[1, 3, 5]] = 7.0
    for _ in range(2):
        experimental.splice_into(table, images, plan, scale=2.0, main_grad_VD=main, backend="cuda").sum().backward()
    assert table.grad is None
    assert main[[1, 3, 5], 0].tolist() == [11, 807, 11] and (main[[1, 3, 5]] == main[[1, 3, 5], :1]).all()
    assert whole[[0, 2, 4, 6, 7, 8]].isnan().all() and whole[:, width:].isnan().all()


def test_main_gradient_is_the_sum_of_what_was_there_and_the_gradient():
    """Not fused: both are rounded to fp32 first."""
    plan = plan_splice([[1, -200, *[3] * 9, 5]], [[3]])
    table, images = _inputs(plan, 12, torch.bfloat16)
    main, grad = torch.randn(VOCABULARY, 12), torch.randn(plan.total_rows, 12).bfloat16()
    exact = main.double() + _exact_table_gradient(plan, grad, 1.7)
    leaf = table.requires_grad_()
    experimental.splice_into(leaf, images, plan, scale=1.7, main_grad_VD=main, backend="cuda").backward(grad)
    torch.testing.assert_close(main.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("table_learns", [True, False], ids=["table", "frozen table"])
@pytest.mark.parametrize("images_learn", [True, False], ids=["images", "frozen images"])
def test_gradients_that_nobody_needs_are_not_computed(monkeypatch, emulator_counts, table_learns, images_learn):
    launched, whole = [], KERNELS["cuda"]
    recording = whole._replace(
        bwd_rows=lambda *a: launched.append("bwd_rows") or whole.bwd_rows(*a),
        bwd_table=lambda *a: launched.append("bwd_table") or whole.bwd_table(*a),
    )
    monkeypatch.setitem(KERNELS, "cuda", recording)
    plan = plan_splice([[1, -200]], [[2]])
    table, images = _inputs(plan, 4)
    table.requires_grad_(table_learns), images.requires_grad_(images_learn)
    embeds = ops.splice(table, images, plan, backend="cuda")
    (forward,) = emulator_counts("ctas")
    assert forward == 1 and embeds.requires_grad == (table_learns or images_learn)
    if embeds.requires_grad:
        embeds.sum().backward()
    assert launched == ["bwd_rows"] * (table_learns or images_learn) + ["bwd_table"] * table_learns
    assert (table.grad is None, images.grad is None) == (not table_learns, not images_learn)
    # The first pass has a CTA for pieces and one for searches with the table, one with the images; the second is 9 ids in fours.
    assert emulator_counts("ctas") == [forward + 3 * table_learns + images_learn]


def test_a_gradient_of_a_sum_is_not_read_beyond_its_one_value():
    plan = plan_splice([[1, -200, 1]], [[3]])
    table, images = _inputs(plan, 4)
    table.requires_grad_()
    ops.splice(table, images, plan, backend="cuda").sum().backward()
    assert table.grad[:, 0].tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("width", [264, 33])
def test_every_order_of_threads_gives_the_same_bits(simt_seed, monkeypatch, width):
    plan = plan_splice([[*[1, 2, 2, 3] * 70, -200, *[5] * 9]], [[3]])
    table, images = _inputs(plan, width, torch.bfloat16)
    found = _run("cuda", table, images, plan)
    monkeypatch.setenv("LMM_SIMT_SEED", "0")
    assert _same_bits(found, _run("cuda", table, images, plan))


def test_a_row_of_an_id_doesnt_depend_on_other_ids():
    """Pieces are counted from the id's own first row: what else is in the batch changes no bit."""
    few, many = [5] * 205, [1, 2, 3] * 50
    grad = torch.randn(355, 8)
    found = []
    for ids, rows in ((few, grad[:205]), (many + few, torch.cat([grad[205:], grad[:205]]))):
        plan = plan_splice([ids], [[]])
        found.append(_run("cuda", *_inputs(plan, 8), plan, rows)[1][5])
    assert torch.equal(*found)


@every_dtype
@pytest.mark.parametrize("width", [8, 40, 33])
def test_nothing_is_touched_behind_the_end_and_everything_is_written(fenced, fenced_outputs, dtype, width):
    """The last byte of every input, output and workspace is the last that can be touched; outputs are NaN before."""
    plan = plan_splice([[1, -200, *[3] * 131, 8], [-200, 4]], [[3], [2]], max_length=134, truncate="right")
    plan = dataclasses.replace(plan, **{name: fenced(getattr(plan, name)) for name in ("source", "image_rows", "token_order")})
    table, images = (fenced(x) for x in _inputs(plan, width, dtype))
    grad, main = fenced(torch.randn(plan.total_rows, width).to(dtype)), fenced(torch.zeros(VOCABULARY, width))
    expected = _run("reference", table, images, plan, grad)
    with fenced_outputs():
        found = _run("cuda", table, images, plan, grad)
        experimental.splice_into(table.requires_grad_(), images, plan, main_grad_VD=main, backend="cuda").backward(grad)
    assert _same_bits((found[0], found[2]), (expected[0], expected[2]))
    exact = _exact_table_gradient(plan, grad)
    torch.testing.assert_close(found[1].double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(main.double(), exact, rtol=1e-5, atol=1e-5)


def test_registered_ops_pass_opcheck():
    """Every slot of the workspace holds a piece here: slots without one are not written, and opcheck compares them too."""
    plan = plan_splice([[*[1] * 128, -200]], [[2]])
    table, images = _inputs(plan, 4)
    fwd, bwd_rows, bwd_table, bwd_table_into = KERNELS["cuda"]
    grad = fwd(table, images, plan.source, 2.0)
    rows = (grad, plan.source, plan.image_rows, plan.token_order, VOCABULARY, torch.float32)
    _, partial, bounds = bwd_rows(*rows)
    torch.library.opcheck(fwd.op, (table, images, plan.source, 2.0))
    torch.library.opcheck(bwd_rows.op, rows)
    torch.library.opcheck(bwd_table.op, (grad, plan.token_order, partial, bounds, None, torch.float32))
    torch.library.opcheck(bwd_table_into.op, (torch.zeros(VOCABULARY, 4), grad, plan.token_order, partial, bounds, None))


def test_traces_whole():
    plan = plan_splice([[1, -200, 5]], [[2]])
    table, images = (x.requires_grad_() for x in _inputs(plan, 4))
    run = lambda table, images: ops.splice(table, images, plan, backend="cuda").square().sum()  # noqa: E731
    traced = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected, found = (torch.autograd.grad(call(table, images), (table, images)) for call in (run, traced))
    assert _same_bits(found, expected)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t, i, p: dict(table_VD=t.double(), image_rows_MD=i.double()), "float64 is none of"),
        (lambda t, i, p: dict(table_VD=t.t().contiguous().t()), "has stride 9, not 1"),
        (lambda t, i, p: dict(plan=dataclasses.replace(p, source=p.source.long())), "must be contiguous int32"),
        (lambda t, i, p: dict(plan=dataclasses.replace(p, source=p.source.repeat_interleave(2)[::2])), "must be contiguous int32"),
    ],
)
def test_what_it_cannot_take_is_refused_with_the_reason(change, complaint):
    plan = plan_splice([[8, -200]], [[2]])
    table, images = _inputs(plan, 4)
    with pytest.raises(LmmError, match=complaint):
        ops.splice(**{"table_VD": table, "image_rows_MD": images, "plan": plan, **change(table, images, plan)}, backend="cuda")


def test_auto_passes_the_emulator_by():
    plan = plan_splice([[8, -200]], [[2]])
    verdicts = dict(ops.dispatch.verdicts("splice", *_inputs(plan, 4), plan, None, None))
    assert "emulator" in verdicts["cuda"] and verdicts["reference"] is True
