"""Packed features of toy images, and projectors whose every parameter matters."""

import pytest
import torch

from lmmblocks.projectors.instruction_tokens import Instruction
from lmmblocks.spec import VisionFeatures


def _features(grids, width, *, prefix=0, layers=0, towers=(), asked=None, seed=0):
    """Random features of images of these grids.

    layers: so many hidden states, which ``patches`` joins. towers: (width, window) each, on grids ``window`` times as large.
    """
    random = torch.Generator().manual_seed(seed)
    grids = tuple(grids)
    rows = sum(grid.h * grid.w for grid in grids)
    features = VisionFeatures(torch.randn(rows, width, generator=random), grids)
    if prefix:
        features.prefix = torch.randn(len(grids), prefix, width, generator=random)
    if layers:
        features.layers = dict(enumerate(features.patches.chunk(layers, -1)))
    if towers:
        larger = [tuple(type(g)(g.h * window, g.w * window) for g in grids) for _, window in towers]
        features.towers = tuple(
            VisionFeatures(torch.randn(sum(g.h * g.w for g in own), own_width, generator=random), own) for own, (own_width, _) in zip(larger, towers)
        )
    if asked is not None:
        features.instruction = Instruction.of([asked[index % len(asked)] for index in range(len(grids))])
    return features


def _only(features, image):
    """The features of one image by itself."""
    cut = slice(sum(g.rows for g in features.grids[:image]), sum(g.rows for g in features.grids[: image + 1]))
    return VisionFeatures(
        features.patches[cut],
        features.grids[image : image + 1],
        prefix=None if features.prefix is None else features.prefix[image : image + 1],
        layers={name: rows[cut] for name, rows in features.layers.items()},
        towers=tuple(_only(tower, image) for tower in features.towers),
        instruction=None if features.instruction is None else features.instruction.select([image]),
    )


def _randomised(module, seed=1):
    """Norms near 1, everything else random and large enough to matter."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=random)
            norm = name.endswith("weight") and value.dim() == 1
            value.copy_(1 + 0.1 * noise if norm else noise * (0.25 if value.dim() > 1 else 0.1))
    return module.eval()


@pytest.fixture(scope="session")
def features_of():
    return _features


@pytest.fixture(scope="session")
def only():
    return _only


@pytest.fixture(scope="session")
def randomised():
    return _randomised


@pytest.fixture(scope="session")
def compare(record_parity):
    """Compare output and gradients of a projector with a twin's on the same input; returns the largest differences, having noted them."""

    def run(projector, twin, features, twin_forward, names, block, twin_name):
        """names: parameter of the projector -> parameter of the twin, all of the twin's."""
        features.patches.requires_grad_(True)
        rows = projector(features)
        pull = torch.randn(rows.shape, generator=torch.Generator().manual_seed(5))
        ours = dict(projector.named_parameters())
        theirs = dict(twin.named_parameters())
        assert set(names.values()) == set(theirs), set(names.values()) ^ set(theirs)
        got = torch.autograd.grad((rows * pull).sum(), [features.patches, *(ours[n] for n in names)], allow_unused=True)
        expected = twin_forward()
        assert expected.shape == rows.shape
        want = torch.autograd.grad((expected * pull).sum(), [features.patches, *(theirs[n] for n in names.values())], allow_unused=True)
        # A parameter that nothing reads has no gradient here and one of zeros (or none) there.
        pairs = [(a, b) for a, b in zip(got, want) if a is not None or (b is not None and b.any())]
        scale = max(b.abs().max().item() for _, b in pairs)
        output = (rows - expected).abs().max().item()
        # Each tensor by its own size; one far smaller than the others (keys' biases: nought but for rounding) by a thousandth of theirs.
        gradient = max(((a - b).abs().max() / max(b.abs().max().item(), 1e-3 * scale)).item() for a, b in pairs)
        record_parity(block, twin_name, "features: largest absolute difference", output)
        record_parity(block, twin_name, "gradients: largest difference, relative to the largest of its tensor", gradient)
        return output, gradient

    return run
