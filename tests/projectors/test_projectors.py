"""Projectors: rows counted as out_grid() says, values by the formula, and each is rebuilt from what it says it was made with."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks.projectors import MLP, Identity, Linear
from lmmblocks.spec import Grid, LmmError, Projector, VisionFeatures, image_count

IN, OUT = 5, 8
MAKERS = {
    "identity": lambda: Identity(IN, IN),
    "linear": lambda: Linear(IN, OUT),
    "linear, no bias": lambda: Linear(IN, OUT, bias=False),
    "mlp": lambda: MLP(IN, OUT),
    "mlp of 1": lambda: MLP(IN, OUT, depth=1),
    "mlp of 4, no bias": lambda: MLP(IN, OUT, depth=4, bias=False),
}


def features(grids, width=IN):
    rows = sum(grid.h * grid.w for grid in grids)
    return VisionFeatures(torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)), tuple(grids))


def exact_gelu(x):
    """x times the normal distribution's mass below x, number by number."""
    values = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.double().flatten().tolist()]
    return torch.tensor(values, dtype=torch.float64).view(x.shape)


grids = st.lists(st.builds(Grid, st.integers(1, 7), st.integers(1, 7)), max_size=4)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None)
@given(grids=grids)
def test_out_grid_equals_the_rows_that_come_out(name, grids):
    projector = MAKERS[name]()
    width = IN if name == "identity" else OUT
    counts = [image_count(projector.out_grid(grid)) for grid in grids]
    assert projector(features(grids)).shape == (sum(counts), width)
    assert all(projector(features([grid])).shape == (count, width) for grid, count in zip(grids, counts))


@pytest.mark.parametrize("name", MAKERS)
def test_every_row_depends_on_its_own_patch_only(name):
    projector, given_ = MAKERS[name](), features([Grid(2, 3)])
    rows = projector(given_).clone()
    given_.patches[4] += 1
    changed = (projector(given_) != rows).any(-1)
    assert changed.tolist() == [False] * 4 + [True, False]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_mlp_equals_linear_layers_with_the_exact_gelu_between(depth):
    projector, given_ = MLP(IN, OUT, depth=depth), features([Grid(3, 4)])
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.mul_(6)  # far enough from 0 for the tanh approximation to differ
        got = projector(given_).double()
    x = given_.patches.double()
    state = {name: value.double() for name, value in projector.state_dict().items()}
    tanh = x
    for layer in range(1, depth + 1):
        weight, bias = state[f"linear_{layer}.weight"], state[f"linear_{layer}.bias"]
        x = (exact_gelu(x) if layer > 1 else x) @ weight.T + bias
        tanh = (torch.nn.functional.gelu(tanh, approximate="tanh") if layer > 1 else tanh) @ weight.T + bias
    error, apart = (got - x).abs().max().item(), (got - tanh).abs().max().item()
    assert error < 2e-5, error
    assert depth == 1 or apart > 10 * error, (apart, error)


def test_mlp_has_the_parameter_names_and_the_size_of_llava15():
    with torch.device("meta"):
        sizes = {width: MLP(1024, width) for width in (4096, 5120)}
    assert list(sizes[4096].state_dict()) == ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"]
    counts = [sum(p.numel() for p in projector.parameters()) for projector in sizes.values()]
    assert counts == [20_979_712, 31_467_520]


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_the_product(bias):
    projector, given_ = Linear(IN, OUT, bias=bias), features([Grid(2, 2)])
    expected = given_.patches @ projector.linear.weight.T + (projector.linear.bias if bias else 0)
    torch.testing.assert_close(projector(given_), expected)


def test_identity_hands_the_features_on():
    given_ = features([Grid(1, 2), Grid(2, 2)])
    assert Identity(IN, IN)(given_) is given_.patches


def test_identity_refuses_unequal_widths():
    with pytest.raises(LmmError, match="equal widths, encoder gives 5, decoder takes 8: use projector 'linear'"):
        Identity(5, 8)


@pytest.mark.parametrize("depth", [0, -1])
def test_mlp_refuses_a_depth_below_one(depth):
    with pytest.raises(LmmError, match=f"needs depth >= 1, found {depth}"):
        MLP(IN, OUT, depth=depth)


@pytest.mark.parametrize("name", MAKERS)
def test_options_say_how_it_was_made(name):
    projector = MAKERS[name]()
    width = IN if name == "identity" else OUT
    again = type(projector)(IN, width, **getattr(projector, "options", {}))
    again.load_state_dict(projector.state_dict())
    assert str(again) == str(projector)


@pytest.mark.parametrize("name", MAKERS)
def test_satisfies_the_contract_of_a_projector(name):
    projector = MAKERS[name]()
    assert isinstance(projector, Projector) and projector.requires == frozenset({"patches"})
