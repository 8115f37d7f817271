"""C-Abstractor, LDP and LDPv2, and pooling, against their formulas written with loops over places, in fp64."""

import math

import pytest
import torch

from lmmblocks.projectors import LDP, AdaptivePool, CAbstractor, LDPv2, Pool
from lmmblocks.spec import Grid

IN, OUT = 6, 8


def image_of(features):
    """(H, W, C) in fp64 of the only image."""
    (grid,) = features.grids
    return features.patches.double().view(grid.h, grid.w, -1)


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def pointwise(x, state, name):
    """A 1x1 convolution is a linear layer at each place."""
    return x @ state[f"{name}.weight"][:, :, 0, 0].T + state.get(f"{name}.bias", 0)


def depthwise(x, state, name, stride=1):
    """3x3, zeros around the image, each channel by itself."""
    h, w, channels = x.shape
    weight = state[f"{name}.weight"]
    out = torch.zeros((h - 1) // stride + 1, (w - 1) // stride + 1, channels, dtype=torch.float64)
    for y in range(out.shape[0]):
        for x_ in range(out.shape[1]):
            for dy in range(3):
                for dx in range(3):
                    row, column = y * stride + dy - 1, x_ * stride + dx - 1
                    if 0 <= row < h and 0 <= column < w:
                        out[y, x_] += weight[:, 0, dy, dx] * x[row, column]
    return out + state.get(f"{name}.bias", 0)


def norm(x, state, name, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def squeeze_excite(x, state, name, activation, gate):
    means = x.mean((0, 1))
    return x * gate(pointwise(activation(pointwise(means, state, f"{name}.fc1")), state, f"{name}.fc2"))


def silu(x):
    return x / (1 + (-x).exp())


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def cells(x, rows, columns):
    """Means of cells; cell i of n reaches from floor(i * size / n) to ceil((i + 1) * size / n)."""
    h, w, channels = x.shape
    out = torch.zeros(rows, columns, channels, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            ys = slice(i * h // rows, -(-(i + 1) * h // rows))
            xs = slice(j * w // columns, -(-(j + 1) * w // columns))
            out[i, j] = x[ys, xs].reshape(-1, channels).mean(0)
    return out


def state_of(projector):
    return {name: value.double() for name, value in projector.state_dict().items()}


def mlp(x, state, depth=2):
    for index in range(depth):
        x = linear(gelu(x) if index else x, state, f"linear_{index + 1}")
    return x


def check(projector, features, expected, record_parity, name):
    rows = projector(features)
    error = (rows.double() - expected.flatten(0, 1)).abs().max().item()
    record_parity(name, "the formula in fp64", "features: largest absolute difference", error)
    assert projector.out_grid(features.grids[0]).rows == len(rows) and error <= 1e-5, error


@pytest.mark.parametrize("grid", [Grid(4, 6), Grid(5, 7), Grid(1, 3)], ids=str)
@pytest.mark.parametrize("first", ["pool", "mlp"])
@pytest.mark.parametrize("factor", [2, 3])
def test_pool_is_the_mean_of_the_patches_that_are_there(grid, first, factor, features_of, randomised, record_parity):
    projector, features = randomised(Pool(IN, OUT, factor=factor, first=first)), features_of([grid], IN)
    state, x = state_of(projector), image_of(features)
    x = mlp(x, state) if first == "mlp" else x
    squares = [[x[y : y + factor, x_ : x_ + factor].flatten(0, 1).mean(0) for x_ in range(0, grid.w, factor)] for y in range(0, grid.h, factor)]
    pooled = torch.stack([torch.stack(line) for line in squares])
    check(projector, features, pooled if first == "mlp" else mlp(pooled, state), record_parity, "pool")


@pytest.mark.parametrize("grid, target", [(Grid(7, 7), (3, 3)), (Grid(8, 5), (4, 2)), (Grid(2, 9), (2, 4))], ids=str)
def test_adaptive_pool_is_the_mean_of_each_cell(grid, target, features_of, randomised, record_parity):
    projector = randomised(AdaptivePool(IN, OUT, grid=(4 if target[0] == 2 else target[0], target[1])))
    features = features_of([grid], IN)
    check(projector, features, mlp(cells(image_of(features), *target), state_of(projector)), record_parity, "adaptive_pool")


def test_a_side_shorter_than_the_target_is_kept_and_not_repeated(features_of, randomised):
    projector, features = randomised(AdaptivePool(IN, OUT, grid=8, depth=1)), features_of([Grid(3, 4)], IN)
    torch.testing.assert_close(projector(features).double(), linear(features.patches.double(), state_of(projector), "linear_1"), atol=1e-5, rtol=0)


def regnet_stage(x, state, name, depth):
    for index in range(depth):
        block = f"{name}.b{index + 1}"
        y = silu(norm(pointwise(x, state, f"{block}.conv1.conv"), state, f"{block}.conv1.bn"))
        y = silu(norm(depthwise(y, state, f"{block}.conv2.conv"), state, f"{block}.conv2.bn"))
        y = squeeze_excite(y, state, f"{block}.se", silu, torch.sigmoid)
        y = norm(pointwise(y, state, f"{block}.conv3.conv"), state, f"{block}.conv3.bn")
        if f"{block}.downsample.conv.weight" in state:
            x = norm(pointwise(x, state, f"{block}.downsample.conv"), state, f"{block}.downsample.bn")
        x = silu(x + y)
    return x


@pytest.mark.parametrize("dim, depth, mlp_depth", [(6, 1, 2), (10, 2, 3)])
@pytest.mark.parametrize("grid", [Grid(5, 5), Grid(4, 7)], ids=str)
def test_c_abstractor_equals_its_formula(grid, dim, depth, mlp_depth, features_of, randomised, record_parity):
    projector = randomised(CAbstractor(IN, OUT, grid=3, dim=dim, depth=depth, mlp_depth=mlp_depth, positions=5))
    features, state = features_of([grid], IN), state_of(projector)
    places = state["pos_emb"].view(5, 5, IN)
    if grid != Grid(5, 5):
        places = torch.nn.functional.interpolate(places.permute(2, 0, 1)[None], (grid.h, grid.w), mode="bilinear")[0].permute(1, 2, 0)
    x = regnet_stage(image_of(features) + places, state, "net.0", depth)
    x = regnet_stage(cells(x, 3, 3), state, "net.2", depth)
    for index in range(mlp_depth):
        x = linear(silu(x) if index else x, state, f"readout.{2 * index}")
    check(projector, features, x, record_parity, "c_abstractor")


def hard_sigmoid(x):
    return (x / 6 + 0.5).clamp(0, 1)


def inverted_residual(x, state, name, stride):
    y = norm(depthwise(x, state, f"{name}.0.0", stride), state, f"{name}.0.1")
    y = squeeze_excite(y * hard_sigmoid(y), state, f"{name}.1", torch.relu, hard_sigmoid)
    y = norm(pointwise(y, state, f"{name}.2.0"), state, f"{name}.2.1")
    return x + y if stride == 1 else y


@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(5, 6), Grid(1, 1)], ids=str)
def test_ldp_equals_its_formula(grid, features_of, randomised, record_parity):
    projector, features = randomised(LDP(IN, OUT)), features_of([grid], IN)
    state = state_of(projector)
    x = linear(gelu(linear(image_of(features), state, "model.mlp.1")), state, "model.mlp.3")
    x = inverted_residual(x, state, "model.mb_block.1.block", 1)
    check(projector, features, inverted_residual(x, state, "model.mb_block.2.block", 2), record_parity, "ldp")


@pytest.mark.parametrize("width, squeezed", [(2048, 512), (2560, 640), (24, 8), (100, 24), (120, 32)])
def test_ldp_squeezes_to_a_quarter_in_multiples_of_8(width, squeezed):
    with torch.device("meta"):
        assert LDP(4, width).model.mb_block[1].block[1].fc1.out_channels == squeezed


@pytest.mark.parametrize("grid", [Grid(6, 6), Grid(7, 5), Grid(2, 9)], ids=str)
def test_ldpv2_equals_its_formula(grid, features_of, randomised, record_parity):
    projector, features = randomised(LDPv2(IN, OUT, grid=4)), features_of([grid], IN)
    state = state_of(projector)
    x = linear(gelu(linear(image_of(features), state, "mlp.mlp.0")), state, "mlp.mlp.2")
    x = cells(x, min(4, grid.h), min(4, grid.w))
    check(projector, features, x + depthwise(x, state, "peg.peg.0"), record_parity, "ldpv2")


def test_names_are_those_of_the_originals():
    c_abstractor = set(CAbstractor(8, OUT, dim=12, depth=1, positions=2).state_dict())
    assert {"pos_emb", "net.0.b1.conv1.conv.weight", "net.0.b1.conv2.bn.bias", "net.0.b1.se.fc2.bias"} <= c_abstractor
    assert {"net.0.b1.downsample.bn.weight", "net.2.b1.conv3.conv.weight", "readout.2.weight"} <= c_abstractor
    ldp = set(LDP(IN, OUT).state_dict())
    assert {"model.mlp.1.weight", "model.mlp.3.bias", "model.mb_block.1.block.0.0.weight"} <= ldp
    assert {"model.mb_block.2.block.0.1.bias", "model.mb_block.2.block.1.fc1.weight", "model.mb_block.2.block.2.1.weight"} <= ldp
    names = {"mlp.mlp.0.weight", "mlp.mlp.0.bias", "mlp.mlp.2.weight", "mlp.mlp.2.bias", "peg.peg.0.weight", "peg.peg.0.bias"}
    assert set(LDPv2(IN, OUT).state_dict()) == names
