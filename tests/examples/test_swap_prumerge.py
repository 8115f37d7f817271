"""PruMerge's class against the paper's algorithm, one patch at a time."""

import torch

from examples.swap import prumerge
from lmmblocks.spec import Grid, VisionFeatures


def paper(x, keys, attention, keep, neighbours):
    """Select by attention; add the most similar patches, weighted by theirs; gather the patches that weren't selected."""
    chosen = attention.sort(descending=True).indices[:keep].tolist()
    unit = keys / keys.norm(dim=-1, keepdim=True)
    rows = []
    for i in chosen:
        others = [j for j in range(len(x)) if j != i]
        nearest = sorted(others, key=lambda j: float(unit[i] @ unit[j]), reverse=True)[:neighbours]
        rows.append(x[i] + torch.stack([attention[j] * x[j] for j in nearest]).sum(0))
    left = [j for j in range(len(x)) if j not in chosen]
    return torch.stack([*rows, (attention[left, None] * x[left]).sum(0)])


def test_merged_rows_are_the_papers(record_parity):
    torch.manual_seed(0)
    grids, patches = (Grid(4, 5),) * 3, 60
    features = VisionFeatures(torch.randn(patches, 8), grids, keys=torch.randn(patches, 2, 4), cls_attn=torch.rand(patches))
    rows = prumerge.PruMerge(keep=6, neighbours=5)(features, features.patches, grids)
    own = zip(features.patches.split(20), features.keys.flatten(1).split(20), features.cls_attn.split(20))
    worst = (rows - torch.cat([paper(*image, keep=6, neighbours=5) for image in own])).abs().max().item()
    assert rows.shape == (3 * 7, 8) and worst < 1e-5
    record_parity("PruMerge (examples/swap)", "the paper's algorithm, patch by patch", "rows, max abs diff", worst)


def test_it_runs(capsys):
    prumerge.main()
    assert "['PruMerge']: two images become (9, 9) rows" in capsys.readouterr().out
