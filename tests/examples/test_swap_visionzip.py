"""VisionZip's class against the paper's algorithm, one patch at a time."""

import torch

from examples.swap import visionzip
from lmmblocks.spec import Grid, VisionFeatures


def paper(cls, x, keys, attention, dominant, contextual):
    """Keep CLS and the most attended patches; of the others, every so many is a target that takes the mean of those it is most similar to."""
    kept = set(attention.sort(descending=True).indices[: dominant - 1].tolist())
    others = [i for i in range(len(x)) if i not in kept]
    targets = others[:: len(others) // contextual][:contextual]
    metric = keys.mean(1)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    groups = {t: [] for t in targets}
    for i in others:
        if i not in groups:
            groups[max(targets, key=lambda t: float(metric[i] @ metric[t]))].append(i)
    merged = [x[t] + (x[members].mean(0) if members else 0) for t, members in groups.items()]
    return torch.stack([cls, *(x[i] for i in sorted(kept)), *merged])


def test_merged_rows_are_the_papers(record_parity):
    torch.manual_seed(0)
    grids, patches, worst = (Grid(5, 5),) * 3, 75, 0.0
    features = VisionFeatures(torch.randn(patches, 8), grids, torch.randn(3, 1, 8), keys=torch.randn(patches, 2, 4), cls_attn=torch.rand(patches))
    for dominant, contextual in ((8, 3), (2, 1), (12, 13)):
        rows = visionzip.VisionZip(dominant, contextual)(features, features.patches, grids)
        own = zip(features.prefix[:, 0], features.patches.split(25), features.keys.split(25), features.cls_attn.split(25))
        expected = torch.cat([paper(*image, dominant, contextual) for image in own])
        worst = max(worst, (rows - expected).abs().max().item())
        assert len(rows) == len(expected)
    assert worst < 1e-5
    record_parity("VisionZip (examples/swap)", "the paper's algorithm, patch by patch", "rows, max abs diff", worst)


def test_it_runs(capsys):
    visionzip.main()
    assert "['VisionZip']: two images become (16, 16) rows" in capsys.readouterr().out
