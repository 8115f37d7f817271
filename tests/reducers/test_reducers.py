"""Reducers against the formulas of their papers, written out patch by patch; unequal grids in one batch; counts as promised."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmmblocks.reducers import Pool, PruMerge, VisionZip, outlier_counts
from lmmblocks.spec import Grid, LmmError, VisionFeatures, image_count

GRIDS = (Grid(3, 4), Grid(3, 4), Grid(2, 5), Grid(4, 4))
WIDTH, HEADS = 6, 2


def features(grids=GRIDS, seed=0):
    make = torch.Generator().manual_seed(seed)
    rows = sum(grid.rows for grid in grids)
    return VisionFeatures(
        patches=torch.randn(rows, WIDTH, generator=make),
        grids=tuple(grids),
        prefix=torch.randn(len(grids), 1, WIDTH, generator=make),
        keys=torch.randn(rows, HEADS, 3, generator=make),
        cls_attn=torch.rand(rows, generator=make) ** 4,
    )


def images(given):
    """Each image's patches, keys, attention and CLS token."""
    counts = [grid.rows for grid in given.grids]
    return zip(given.patches.split(counts), given.keys.split(counts), given.cls_attn.split(counts), given.prefix)


def run(reducer, given):
    counts = [image_count(reducer.out_count(grid)) for grid in given.grids]
    return reducer(given, given.patches, given.grids).split(counts)


def prumerge(x, keys, attention, keep, spatial, neighbours, rest):
    """Algorithm 1 of the paper with the sums of its code, one patch at a time."""
    order = sorted(range(len(x)), key=lambda i: -attention[i])
    kept, others = order[:keep], sorted(order[keep:])
    kept += [others[(2 * s + 1) * len(others) // (2 * spatial)] for s in range(spatial)]
    flat, out = keys.flatten(1), []
    for i in kept:
        similarity = F.cosine_similarity(flat, flat[i][None])
        nearest = sorted((j for j in range(len(x)) if j != i), key=lambda j: -similarity[j])[:neighbours]
        out.append(x[i] + sum(attention[j] * x[j] for j in nearest))
    if rest:
        out.append(sum((attention[j] * x[j] for j in range(len(x)) if j not in kept), torch.zeros(x.shape[1])))
    return torch.stack(out)


@pytest.mark.parametrize("options", [dict(keep=3), dict(keep=2, spatial=3, neighbours=4), dict(keep=1, neighbours=0, rest=False)], ids=str)
def test_prumerge_equals_the_paper_patch_by_patch(options):
    given, settings = features(), {"spatial": 0, "neighbours": 32, "rest": True, **options}
    got = run(PruMerge(**options), given)
    assert [len(own) for own in got] == [settings["keep"] + settings["spatial"] + settings["rest"]] * 4
    for own, (x, keys, attention, _) in zip(got, images(given)):
        expected = prumerge(x, keys, attention, **settings)
        assert (own - expected).abs().max() < 1e-5


def test_outliers_are_those_above_the_third_quartile_and_a_half_more():
    given = features()
    expected = []
    for _, _, attention, _ in images(given):
        low, high = np.percentile(attention.numpy(), [25, 75])
        expected.append(int((attention.numpy() > high + 1.5 * (high - low)).sum()))
    assert outlier_counts(given.cls_attn, given.grids).tolist() == expected and any(expected)


def visionzip(x, keys, attention, cls, dominant, contextual):
    """The paper's two steps, one patch at a time; ``dominant`` without CLS."""
    stays = sorted(sorted(range(len(x)), key=lambda i: -attention[i])[:dominant])
    others = [i for i in range(len(x)) if i not in stays]
    step = max(1, len(others) // contextual)
    targets = others[::step][:contextual]
    metric = keys.mean(1)
    joined = {target: [] for target in targets}
    for i in others:
        if i not in targets:
            best = max(targets, key=lambda t: F.cosine_similarity(metric[i], metric[t], dim=0).item())
            joined[best].append(x[i])
    merged = [x[t] + (torch.stack(own).mean(0) if own else 0) for t, own in joined.items()]
    return torch.stack([*([] if cls is None else [cls[0]]), *(x[i] for i in stays), *merged])


@pytest.mark.parametrize("dominant, contextual", [(4, 3), (2, 1), (6, 4)])
@pytest.mark.parametrize("cls", [True, False])
def test_visionzip_equals_the_paper_patch_by_patch(dominant, contextual, cls):
    given = features()
    got = run(VisionZip(dominant, contextual, cls=cls), given)
    assert [len(own) for own in got] == [dominant + contextual] * 4
    for own, (x, keys, attention, prefix) in zip(got, images(given)):
        expected = visionzip(x, keys, attention, prefix if cls else None, dominant - cls, contextual)
        assert (own - expected).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["average", "max", "bilinear"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pool_takes_whole_windows_and_what_is_left_at_the_edges(mode, stride):
    given = features()
    got = run(Pool(stride, mode), given)
    for own, grid, x in zip(got, given.grids, given.patches.split([g.rows for g in given.grids])):
        small = Pool(stride).out_count(grid)
        image = x.unflatten(0, (grid.h, grid.w))
        if mode == "bilinear":
            expected = F.interpolate(image.permute(2, 0, 1)[None], (small.h, small.w), mode="bilinear")[0].permute(1, 2, 0)
        else:
            windows = [
                [image[r * stride : (r + 1) * stride, c * stride : (c + 1) * stride].flatten(0, 1) for c in range(small.w)] for r in range(small.h)
            ]
            expected = torch.stack([torch.stack([w.mean(0) if mode == "average" else w.amax(0) for w in line]) for line in windows])
        assert (own - expected.flatten(0, 1)).abs().max() < 1e-5


REDUCERS = {"prumerge": PruMerge(keep=3, spatial=2), "visionzip": VisionZip(4, 2), "pool": Pool()}


@pytest.mark.parametrize("name", REDUCERS)
def test_one_image_gives_what_it_gives_in_a_batch_and_none_gives_none(name):
    given, reducer = features(), REDUCERS[name]
    together = run(reducer, given)
    starts = np.cumsum([0, *(grid.rows for grid in given.grids)])
    for place, grid in enumerate(given.grids):
        at = slice(starts[place], starts[place + 1])
        alone = VisionFeatures(given.patches[at], (grid,), given.prefix[place : place + 1], keys=given.keys[at], cls_attn=given.cls_attn[at])
        assert (run(reducer, alone)[0] - together[place]).abs().max() < 1e-5
    assert reducer(features(()), features(()).patches, ()).shape == (0, WIDTH)


@pytest.mark.parametrize("name", REDUCERS)
def test_gradients_reach_the_rows(name):
    given = features()
    given.patches.requires_grad_()
    rows = REDUCERS[name](given, given.patches, given.grids)
    rows.square().sum().backward()
    touched = given.patches.grad.abs().sum(1) > 0
    assert touched.all() if name != "prumerge" else touched.sum() > 3 * len(GRIDS)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PruMerge(), "needs keep >= 1.*adaptive number of the paper isn't known before the encoder runs.*outlier_counts"),
        (lambda: PruMerge(keep=9).out_count(Grid(2, 4)), "keeps 9 . 0 patches, an image has 8: lower keep"),
        (lambda: VisionZip(1, 1), "needs dominant > 1 and contextual >= 1"),
        (lambda: VisionZip(4, 2, before_projector=False), "CLS token isn't projected: set cls=False"),
        (lambda: VisionZip(8, 2).out_count(8), r"makes 7 \+ 2 rows of patches, an image has 8"),
        (lambda: Pool(mode="mean"), "mode 'mean' must be one of"),
        (lambda: Pool().out_count(9), "needs rows on a grid, found 9 rows"),
        (lambda: PruMerge(3)(features(), features().patches[:5], GRIDS), "one row for each of 50, found 5: use it with a projector that keeps"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(LmmError, match=message):
        make()
