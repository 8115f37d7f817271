"""Rows merged by similarity in Triton: against the references in fp64, ties and unequal images among them, and the choice row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmmblocks.kernels.row_choice import choose_rows

from lmmblocks import experimental
from lmmblocks.reducers import merging
from lmmblocks.spec import LmmError, Segments

NEIGHBOURS, NEAREST = experimental.merge_neighbours, experimental.merge_to_nearest


def _images(lengths, width=24, key_width=16, device="cpu", dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    rows = sum(lengths)
    x, keys = (torch.randn(rows, 2 * w, device=device).to(dtype)[:, :w] for w in (width, key_width))
    return x, keys, torch.rand(rows, device=device) ** 4, Segments.of(lengths, device=device)


@pytest.mark.parametrize("lengths", [(70, 21)])
@pytest.mark.parametrize(
    "options",
    [dict(keep=5), dict(keep=14, spread=4, neighbours=6), dict(keep=1, neighbours=0, rest=False)],
    ids=str,
)
def test_neighbours_are_added_as_exactly_as_torch_does(lengths, options, dtype, device, as_exact_as_torch):
    x, keys, scores, images = _images(lengths, device=device, dtype=dtype)
    settled = {"spread": 0, "neighbours": 32, "rest": True} | options
    order = [settled[name] for name in ("keep", "spread", "neighbours", "rest")]
    own, exact = (merging.merge_neighbours(x.to(t), keys.to(t), scores.to(t), images, *order) for t in (dtype, torch.float64))
    as_exact_as_torch(NEIGHBOURS(x, keys, scores.to(dtype), images, backend="triton", **options), own, exact)


@pytest.mark.parametrize("lengths", [(70, 21)])
@pytest.mark.parametrize("keep, targets", [(3, 2), (4, 17)])
def test_rows_join_their_nearest_target_as_exactly_as_torch_does(lengths, keep, targets, dtype, device, as_exact_as_torch):
    x, keys, scores, images = _images(lengths, device=device, dtype=dtype)
    own, exact = (merging.merge_to_nearest(x.to(t), keys.to(t), scores.to(t), images, keep, targets) for t in (dtype, torch.float64))
    as_exact_as_torch(NEAREST(x, keys, scores.to(dtype), images, keep=keep, targets=targets, backend="triton"), own, exact)


@settings(max_examples=5, deadline=None)
@given(
    lengths=st.lists(st.integers(6, 24), min_size=1, max_size=2),
    keep=st.integers(1, 4),
    spread=st.integers(0, 2),
    levels=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_ties_go_to_the_earlier_row(lengths, keep, spread, levels, seed):
    """Scores of a few levels, keys of unit vectors: equal similarities everywhere, computed without rounding."""
    x, _, _, images = _images(lengths, seed=seed)
    rows = x.shape[0]
    scores = torch.randint(levels, (rows,)) / 8
    keys = torch.zeros(rows, 16).scatter(1, torch.randint(3, (rows, 1)), 1.0)
    for op, options in (
        (NEIGHBOURS, dict(keep=keep, spread=spread, neighbours=3)),
        (NEAREST, dict(keep=keep, targets=spread + 1)),
    ):
        if keep + options.get("targets", spread) <= min(lengths):
            found, expected = (op(x, keys, scores, images, backend=name, **options) for name in ("triton", "reference"))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(*(experimental.outlier_counts(scores, images, backend=name) for name in ("triton", "reference")))


def test_what_stays_is_what_a_sort_of_each_image_says(device):
    x, _, scores, images = _images((9, 50, 200), device=device)
    scores = (scores * 8).round()
    for by_rank, others in ((True, 0), (True, 4), (False, 3)):
        kept, slot = choose_rows(scores, images.cu_k, 200, 5, others, by_rank)
        start = 0
        for own, length in zip(kept.tolist(), images.lengths_k):
            values = scores[start : start + length].tolist()
            top = sorted(range(length), key=lambda row: -values[row])[:5]
            left = [row for row in range(length) if row not in top]
            if by_rank:
                more = [left[(2 * s + 1) * len(left) // (2 * others)] for s in range(others)]
            else:
                top, more = sorted(top), left[:: max(1, len(left) // others)][:others]
            assert own == [start + row for row in top + more], (by_rank, others, length)
            places = {row: place for place, row in enumerate(own)}
            assert slot[start : start + length].tolist() == [places.get(row, -1) for row in range(start, start + length)]
            start += length


def test_outliers_are_counted_as_torch_counts_them(dtype, device):
    _, _, scores, images = _images((7, 1, 64, 201), device=device)
    counts = experimental.outlier_counts(scores.to(dtype), images, backend="triton")
    assert counts.dtype == torch.int64 and counts.tolist() == merging.outlier_counts(scores.to(dtype), images).tolist()
    assert counts.sum() > 0


def test_every_run_and_every_neighbour_gives_the_same_bits(device):
    x, keys, scores, images = _images((70, 40), device=device)
    alone = tuple(tensor[70:] for tensor in (x, keys, scores))
    for op, options, rows in ((NEIGHBOURS, dict(keep=3, spread=2), 6), (NEAREST, dict(keep=3, targets=3), 6)):
        first = op(x, keys, scores, images, backend="triton", **options)
        assert torch.equal(first, op(x, keys, scores, images, backend="triton", **options))
        assert torch.equal(first[rows:], op(*alone, Segments.of((40,), device=device), backend="triton", **options))


def test_no_images_give_no_rows_and_a_gradient_is_left_to_the_reference(device):
    x, keys, scores, images = _images((), device=device)
    assert NEIGHBOURS(x, keys, scores, images, keep=3, backend="triton").shape == (0, 24)
    assert NEAREST(x, keys, scores, images, keep=3, targets=1, backend="triton").shape == (0, 24)
    x, keys, scores, images = _images((9,), device=device)
    with pytest.raises(LmmError, match="no backward"):
        NEIGHBOURS(x.requires_grad_(), keys, scores, images, keep=3, backend="triton")
    with pytest.raises(LmmError, match="keeps 8 . 2 rows, an image has 9"):
        NEAREST(x, keys, scores, images, keep=8, targets=2)
    with pytest.raises(LmmError, match="of M = 9 rows of images"):
        NEAREST(x[:5], keys, scores, images, keep=2, targets=2)


def test_gradients_of_the_references_are_those_of_the_formula():
    x, keys, scores, images = _images((6, 5), 3, 4, dtype=torch.float64)
    x, scores = x.clone().requires_grad_(), scores.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: merging.merge_neighbours(x, keys, s, images, 2, 1, 3, True), (x, scores))
    assert torch.autograd.gradcheck(lambda x: merging.merge_to_nearest(x, keys, scores, images, 2, 2), (x,))


def test_registered_ops_pass_opcheck(device):
    x, keys, scores, images = _images((20, 12), device=device)
    own = torch.ops.lmmblocks
    torch.library.opcheck(own.merge_neighbours.default, (x, keys, scores, images.cu_k, 20, 3, 1, 4, True))
    torch.library.opcheck(own.merge_to_nearest.default, (x, keys, scores, images.cu_k, 20, 3, 2))
    torch.library.opcheck(own.outlier_counts.default, (scores, images.cu_k, 20))
