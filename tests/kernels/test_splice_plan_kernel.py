"""The plan made on the device against the plan of the collator, for any batch in any layout; and every fault it must report."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels import splice_plan as kernel
from lmmblocks.kernels.splice_codes import NOWHERE

from lmmblocks import experimental, ops
from lmmblocks.experimental import check_plan
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import IGNORE_LABEL, LmmError, SplicePlan

VOCABULARY = 9


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """A sample of a few ids, or an image of a few rows, takes several blocks."""
    monkeypatch.setattr(kernel, "BLOCK", 8)


@dataclasses.dataclass
class Drawn:
    """A batch as the collator sees it; `mark` stands for an image."""

    ids: list
    counts: list
    labels: list
    mark: int

    def host(self, labelled, **options):
        return plan_splice(self.ids, self.counts, labels=self.labels if labelled else None, image_token=self.mark, **options)

    @property
    def boundaries(self):
        return torch.tensor([0, *(c for sample in self.counts for c in sample)]).cumsum(0)

    @property
    def image_rows(self):
        return sum(map(sum, self.counts))

    def expanded(self):
        """One mark for each row, as the processors of transformers write them."""
        ids, labels = [], []
        for sample, counts, marked in zip(self.ids, self.counts, self.labels):
            rest = iter(counts)
            repeats = [next(rest) if token == self.mark else 1 for token in sample]
            ids.append([t for token, n in zip(sample, repeats) for t in [token] * n])
            labels.append([t for label, n in zip(marked, repeats) for t in [label] * n])
        return Drawn(ids, [[1] * sample.count(self.mark) for sample in ids], labels, self.mark)


@st.composite
def batches(draw, samples=3, length=10):
    """Marks are -200 or an id of the vocabulary; labels of marks are set, as some users do."""
    mark = draw(st.sampled_from([-200, 4]))
    text = st.sampled_from([token for token in range(VOCABULARY) if token != mark])
    ids = draw(st.lists(st.lists(st.one_of(st.just(mark), text), max_size=length), min_size=1, max_size=samples))
    counts = [[draw(st.sampled_from([0, 1, 3, 9])) for token in sample if token == mark] for sample in ids]
    labels = [[token if token == mark or draw(st.booleans()) else IGNORE_LABEL for token in sample] for sample in ids]
    return Drawn(ids, counts, labels, mark)


def packed(drawn, dtype=torch.int64):
    bounds = torch.tensor([0, *map(len, drawn.ids)]).cumsum(0)
    flat = lambda lists: torch.tensor([x for row in lists for x in row], dtype=dtype)  # noqa: E731
    return {"token_ids": flat(drawn.ids), "cu_seqlens": bounds, "labels": flat(drawn.labels)}


def padded(drawn, side, filler):
    width = max(map(len, drawn.ids)) + 1

    def pad(lists, value):
        rows = [[value] * (width - len(row)) for row in lists]
        return torch.tensor([fill + row if side == "left" else row + fill for fill, row in zip(rows, lists)])

    mask = pad([[1] * len(row) for row in drawn.ids], 0)
    return {"token_ids": pad(drawn.ids, filler), "attention_mask": mask, "labels": pad(drawn.labels, 3)}


def on_device(given, drawn, labelled=True, device="cpu", **options):
    given = {name: tensor.to(device) for name, tensor in given.items() if labelled or name != "labels"}
    settled = {
        "image_rows": drawn.image_rows,
        "image_token": drawn.mark,
        "vocabulary": VOCABULARY,
        "backend": "triton",
    }
    return experimental.splice_plan(**given, **{**settled, **options})


def assert_same(plan: SplicePlan, host: SplicePlan):
    """All fields of the collator's plan, and nothing after them."""
    counts, rows = check_plan(plan), host.total_rows
    assert (counts.rows, counts.truncated) == (rows, sum(host.truncated))
    room, supervised = plan.total_rows, len(host.targets)
    slack = {"source": NOWHERE, "positions": 0, "token_order": -1, "target_rows": 0, "targets": 0}
    for name in ("source", "positions", "token_order", "target_rows", "targets", "cu_seqlens", "image_rows"):
        found, expected = getattr(plan, name).cpu(), getattr(host, name)
        rest = found[len(expected) :]
        assert found.dtype == expected.dtype and torch.equal(found[: len(expected)], expected), name
        assert (rest == slack[name]).all() if name in slack else not len(rest), name
    assert (host.kv_end is None) == (plan.kv_end is None)
    if host.kv_end is not None:
        assert torch.equal(plan.kv_end.cpu(), torch.cat([host.kv_end, torch.arange(rows + 1, room + 1).int()]))
    assert plan.target_weights.tolist() == [1.0] * supervised + [0.0] * (len(plan.targets) - supervised)
    assert plan.max_seqlen >= host.max_seqlen and plan.source.shape == plan.positions.shape == (room,)


@settings(max_examples=6, deadline=None)
@given(
    drawn=batches(), limit=st.one_of(st.none(), st.integers(1, 20)), labelled=st.booleans(), bidirectional=st.booleans(),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)  # fmt: skip
def test_packed_ids_give_the_plan_of_the_collator(drawn, limit, labelled, bidirectional, dtype):
    options = {"max_length": limit, "truncate": "right", "bidirectional_images": bidirectional}
    plan = on_device(packed(drawn, dtype), drawn, labelled, image_cu_rows=drawn.boundaries.to(dtype), **options)
    assert_same(plan, drawn.host(labelled, **options))


@settings(max_examples=4, deadline=None)
@given(drawn=batches(), side=st.sampled_from(["left", "right"]), filler=st.sampled_from([-200, 0, 4, 99]))
def test_padding_on_either_side_is_no_token_whatever_it_holds(drawn, side, filler):
    plan = on_device(padded(drawn, side, filler), drawn, image_cu_rows=drawn.boundaries)
    assert_same(plan, drawn.host(True))


@settings(max_examples=4, deadline=None)
@given(drawn=batches(), limit=st.one_of(st.none(), st.integers(1, 20)), pad=st.booleans())
def test_expanded_marks_stand_for_one_row_each(drawn, limit, pad):
    expanded, options = drawn.expanded(), {"max_length": limit, "truncate": "right"}
    plan = on_device(padded(expanded, "left", 0) if pad else packed(expanded), expanded, **options)
    assert_same(plan, expanded.host(True, **options))
    assert torch.equal(plan.source[: plan.cu_seqlens[-1]], drawn.host(True, **options).source)


@settings(max_examples=10, deadline=None)
@given(drawn=batches(), limit=st.one_of(st.none(), st.integers(1, 20)), bidirectional=st.booleans())
def test_reference_gives_the_same_plan_as_the_kernel(drawn, limit, bidirectional):
    options = {"max_length": limit, "truncate": "right", "bidirectional_images": bidirectional}
    plan = on_device(packed(drawn), drawn, image_cu_rows=drawn.boundaries, backend="reference", **options)
    assert_same(plan, drawn.host(True, **options))


def test_images_stand_side_by_side_first_last_and_without_rows(device):
    ids = [[-200] * 6, [1, -200], [-200]]
    drawn = Drawn(ids, [[0, 0, 1, 17, 0, 9], [2], [3]], ids, -200)
    plan = on_device(packed(drawn), drawn, image_cu_rows=drawn.boundaries.to(device), device=device)
    assert_same(plan, drawn.host(True))


def test_more_samples_than_a_block_of_them_are_planned(device):
    ids = [[1, -200], [], [2, 3]] * 6
    drawn = Drawn(ids, [[2], [], []] * 6, ids, -200)
    plan = on_device(packed(drawn), drawn, image_cu_rows=drawn.boundaries.to(device), device=device)
    assert_same(plan, drawn.host(True))


@pytest.mark.parametrize("shape", [(0,), (0, 0), (2, 0)], ids=str)
def test_no_samples_or_no_ids_leave_slack_only(shape, device):
    cu = torch.zeros(1, dtype=torch.int32, device=device) if len(shape) == 1 else None
    plan = experimental.splice_plan(torch.zeros(shape, dtype=torch.int64, device=device), 0, cu_seqlens=cu, total_rows=3, backend="triton")
    assert plan.source.tolist() == [NOWHERE] * 3 and not plan.cu_seqlens.any() and check_plan(plan).rows == 0


GOOD = {
    "token_ids": torch.tensor([[1, -200, 5, 2], [3, 4, -200, 6]]),
    "image_rows": 5,
    "image_cu_rows": torch.tensor([0, 2, 5]),
}
FAULTS = {
    "an id outside the vocabulary": (
        dict(token_ids=torch.tensor([[1, -200, 5, 2], [3, 99, -200, 6]])),
        "token id number 5 ",
    ),
    "an id that is negative": (
        dict(token_ids=torch.tensor([[1, -200, -5, 2], [3, 4, -200, 6]])),
        "token id number 2 ",
    ),
    "a label that is none": (dict(labels=torch.tensor([[1, -7, 5, 2], [3, 4, -7, -7]])), "label number 7 "),
    "more marks than images": (dict(image_rows=2, image_cu_rows=torch.tensor([0, 2])), "2 image marks, more"),
    "fewer marks than images": (
        dict(image_rows=6, image_cu_rows=torch.tensor([0, 2, 5, 6])),
        "2 image marks, fewer",
    ),
    "more expanded marks than rows": (dict(image_rows=1, image_cu_rows=None), "2 image marks, more"),
    "fewer expanded marks than rows": (dict(image_rows=3, image_cu_rows=None), "2 image marks, fewer"),
    "boundaries that end elsewhere": (dict(image_rows=4), "boundary 2"),
    "boundaries that fall": (dict(image_cu_rows=torch.tensor([0, 7, 5])), "boundary 2"),
    "boundaries that don't start at 0": (dict(image_cu_rows=torch.tensor([1, 2, 5])), "boundary 0"),
    "a sample that is too long": (dict(max_length=5), "sample 1 has more rows"),
    "too little room": (dict(total_rows=10), "11 rows, more than the plan has room"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported_and_no_row_is_anothers(fault, device):
    """What can't be placed becomes zeros, gradients included; nothing is read outside the tensors."""
    change, complaint = FAULTS[fault]
    given = {"vocabulary": VOCABULARY, **GOOD, **change}
    given = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    plan = experimental.splice_plan(**given, backend="triton")
    with pytest.raises(LmmError, match=complaint):
        check_plan(plan)
    with pytest.raises(LmmError):
        experimental.splice_plan(**given, backend="reference")
    rows = given["image_rows"]
    source, places = plan.source.tolist(), plan.image_rows.tolist()
    assert all(row == NOWHERE or -rows <= row < VOCABULARY for row in source)
    assert all(place == -1 or source[place] == -1 - row for row, place in enumerate(places))
    table, images = torch.randn(VOCABULARY, 2, device=device), torch.randn(rows, 2, device=device)
    embeds = ops.splice(table, images, plan, backend="triton")
    assert torch.equal(embeds, ops.splice(table, images, plan, backend="reference"))
    assert all(not embeds[i].any() for i, row in enumerate(source) if row == NOWHERE)


def test_first_fault_stays_until_somebody_asks(device):
    """One status for many plans, or for every replay of a captured graph."""
    good = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in GOOD.items()}
    status = torch.zeros(4, dtype=torch.int32, device=device)
    for vocabulary in (VOCABULARY, 6, 3, VOCABULARY):
        plan = experimental.splice_plan(**good, vocabulary=vocabulary, status=status, backend="triton")
    with pytest.raises(LmmError, match="token id number 7 "):
        check_plan(plan)


def test_debugging_checks_every_plan_as_it_is_made(monkeypatch):
    monkeypatch.setenv("LMMBLOCKS_DEBUG", "1")
    experimental.splice_plan(**GOOD, vocabulary=VOCABULARY, backend="triton")
    with pytest.raises(LmmError, match="token id number 2 "):
        experimental.splice_plan(**GOOD, vocabulary=5, backend="triton")


def test_slack_gives_zeros_and_takes_no_gradient(device):
    drawn = Drawn([[1, -200, 5, 1], [2, 2]], [[3], []], [[1, -200, 5, 1], [2, 2]], -200)
    plan = on_device(packed(drawn), drawn, image_cu_rows=drawn.boundaries.to(device), device=device, total_rows=12)
    host = drawn.host(True).to(device)
    for backend in ("triton", "reference"):
        table = torch.randn(VOCABULARY, 4, device=device, requires_grad=True)
        images = torch.randn(3, 4, device=device, requires_grad=True)
        embeds, alone = (ops.splice(table, images, p, backend=backend) for p in (plan, host))
        assert torch.equal(embeds[:8], alone) and not embeds[8:].any()
        grad = torch.randn(8, 4, device=device)
        poisoned = torch.cat([grad, torch.full((4, 4), torch.nan, device=device)])
        found = torch.autograd.grad(embeds, (table, images), poisoned)
        assert all(torch.equal(a, b) for a, b in zip(found, torch.autograd.grad(alone, (table, images), grad)))


def test_plan_without_gradient_is_refused_where_the_table_learns(device):
    ids = torch.tensor([[1, 2]], device=device)
    plan = experimental.splice_plan(ids, 0, gradient=False, backend="triton")
    table = torch.randn(VOCABULARY, 4, device=device)
    assert torch.equal(ops.splice(table, table[:0], plan, backend="triton"), table[1:3])
    with pytest.raises(LmmError, match="gradient=False"):
        ops.splice(table.requires_grad_(), table[:0], plan, backend="triton")


@pytest.mark.parametrize(
    "options, complaint",
    [
        (dict(truncate="turn"), "none of .*need lmmblocks.plan_splice"),
        (dict(bidirectional_images=True, image_cu_rows=None), "needs image_cu_rows"),
        (dict(cu_seqlens=torch.tensor([0, 8])), r"found \(2, 4\) with it"),
        (dict(labels=torch.zeros(8, dtype=torch.int64)), "labels must have the shape"),
        (dict(status=torch.zeros(2)), "status must be the int32"),
        (dict(max_length=0), "at least 1"),
    ],
)
def test_misfits_are_named(options, complaint):
    with pytest.raises(LmmError, match=complaint):
        experimental.splice_plan(**{**GOOD, **options})


def test_kernel_refuses_what_it_cant_read():
    strided = GOOD["token_ids"].repeat(1, 2)[:, ::2]
    with pytest.raises(LmmError, match="has stride 2, not 1"):
        experimental.splice_plan(strided, 5, image_cu_rows=GOOD["image_cu_rows"], backend="triton")


def test_registered_op_passes_opcheck(device):
    ids, bounds = GOOD["token_ids"].to(device), GOOD["image_cu_rows"].to(device)
    status = torch.zeros(4, dtype=torch.int32, device=device)
    arguments = (ids, None, None, ids.clamp_min(0), bounds, status, -200, VOCABULARY, 5, 12, 99, True, True)
    torch.library.opcheck(torch.ops.lmmblocks.splice_plan.default, arguments)
