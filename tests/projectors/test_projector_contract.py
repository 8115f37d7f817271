"""What every projector must hold: rows as out_grid() says, images independent of each other, none at all, gradients, options, dtypes."""

import inspect
import json
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmmblocks import registry
from lmmblocks.projectors import (
    LDP,
    SVA,
    AdaptivePool,
    CAbstractor,
    InstructQFormer,
    LDPv2,
    Perceiver,
    PixelShuffle,
    Pool,
    QFormer,
    Resampler,
    TokenPacker,
)
from lmmblocks.spec import Grid, LmmError, Projector, image_count

IN, OUT = 6, 8
BERT = dict(queries=3, dim=8, layers=3, heads=2, mlp_dim=10, eps=1e-6)
ASKED = [[3, 1, 4], [], [1, 5, 9, 2, 6]]
CASES = {
    "pixel_shuffle": (PixelShuffle, {}, {}),
    "pixel_shuffle of 3, linear": (PixelShuffle, {"factor": 3, "depth": 1, "norm": False, "bias": False}, {}),
    "pixel_shuffle, even only": (PixelShuffle, {"odd": "error"}, {}),
    "pool": (Pool, {}, {}),
    "pool of 3 after the mlp": (Pool, {"factor": 3, "first": "mlp", "depth": 1}, {}),
    "pool, even only": (Pool, {"odd": "error", "bias": False}, {}),
    "adaptive_pool": (AdaptivePool, {"grid": 4}, {}),
    "adaptive_pool, large only": (AdaptivePool, {"grid": [2, 3], "small": "error"}, {}),
    "perceiver": (Perceiver, {"latents": 3, "depth": 2, "heads": 2, "head_dim": 4}, {}),
    "perceiver with prefix": (Perceiver, dict(latents=2, depth=1, heads=2, head_dim=4, qk_norm=True, activation="gelu", prefix=True), dict(prefix=2)),
    "qformer": (QFormer, BERT, {}),
    "qformer with prefix": (QFormer, {**BERT, "prefix": True}, {"prefix": 1}),
    "instruct_qformer": (InstructQFormer, {**BERT, "vocab": 11, "positions": 7}, {"asked": ASKED}),
    "resampler": (Resampler, {"grid": 3, "heads": 2}, {}),
    "resampler without post": (Resampler, {"grid": 2, "heads": 4, "post": False}, {}),
    "c_abstractor": (CAbstractor, {"grid": 3, "dim": 8, "depth": 2}, {}),
    "c_abstractor with positions": (CAbstractor, dict(grid=[2, 4], dim=6, depth=1, mlp_depth=3, positions=3), {}),
    "ldp": (LDP, {}, {}),
    "ldpv2": (LDPv2, {"grid": 4}, {}),
    "token_packer": (TokenPacker, {"layers": 2, "dim": 8, "heads": 2}, {"layers": 2}),
    "token_packer of 3": (TokenPacker, {"layers": 3, "factor": 3, "dim": 8, "heads": 2}, {"layers": 3}),
    "sva": (SVA, {"dim": 8, "depth": 2, "heads": 2, "windows": [2]}, {}),
    "sva of two towers": (SVA, {"dims": [6, 4], "windows": [1, 2], "dim": 8, "depth": 2, "heads": 2}, {"towers": [(6, 1), (4, 2)]}),
}
NEVER_READ = re.compile(r"qformer\.encoder\.layer\.2\.(intermediate|output)\.")
"""The text's MLP of the last layer of an instruction-aware Q-Former."""


@pytest.fixture(scope="module", params=CASES)
def case(request, randomised, features_of):
    """A projector and what makes features for it."""
    made, options, given_ = CASES[request.param]
    projector = randomised(made(IN, OUT, **options))
    return projector, lambda grids, **more: features_of(grids, IN, **given_, **more)


@pytest.fixture(autouse=True, scope="module")
def convolutions_without_compiling():
    """oneDNN makes code for every new shape of a convolution, which takes far longer than computing so small a one."""
    enabled, *_ = torch.backends.mkldnn.set_flags(False)
    yield
    torch.backends.mkldnn.set_flags(enabled)


def accepted(projector, sizes):
    """The grids that the projector takes; a refusal must name the grid."""
    taken = []
    for grid in sizes:
        try:
            projector.out_grid(grid)
            taken.append(grid)
        except LmmError as error:
            assert str(grid) in str(error), error
    return taken


ALL_GRIDS = [Grid(h, w) for h in range(1, 21) for w in range(1, 21)]
sizes = st.lists(st.sampled_from(ALL_GRIDS), max_size=3)


@settings(max_examples=6, deadline=None)
@given(grids=sizes)
@example(grids=[Grid(1, 1), Grid(2, 1), Grid(1, 20)])
@example(grids=[Grid(6, 12), Grid(12, 6), Grid(6, 12)])
def test_out_grid_equals_the_rows_that_come_out(case, grids):
    projector, features = case
    taken = accepted(projector, grids)
    counts = [image_count(projector.out_grid(grid)) for grid in taken]
    assert projector(features(taken)).shape == (sum(counts), OUT) and min((1, *counts)) == 1


def test_out_grid_holds_for_every_grid_up_to_20_by_20(case):
    projector, features = case
    taken = accepted(projector, ALL_GRIDS)
    assert Grid(6, 6) in taken
    with torch.no_grad():
        for grid in taken:
            assert projector(features([grid])).shape == (image_count(projector.out_grid(grid)), OUT), grid


def test_runs_where_tensors_hold_no_values(case):
    """On the meta device asking for a value, or mixing in a tensor of the host, is an error."""
    projector, features = case
    grids = [Grid(6, 6), Grid(6, 12)]
    rows = meta(projector)(moved(features(grids), "meta"))
    assert rows.is_meta and rows.shape == projector(features(grids)).shape


def test_a_refused_grid_is_refused_by_forward_too(case):
    projector, features = case
    refused = [grid for grid in ALL_GRIDS if grid not in accepted(projector, [grid])][:3]
    for grid in refused:
        with pytest.raises(LmmError, match=str(grid)):
            projector(features([grid]))


def test_images_of_a_batch_give_what_each_gives_alone(case, only):
    projector, features = case
    batch = features([Grid(6, 6), Grid(12, 6), Grid(6, 6), Grid(6, 18)])
    alone = [projector(only(batch, image)) for image in range(4)]
    counts = [image_count(projector.out_grid(grid)) for grid in batch.grids]
    for got, expected in zip(projector(batch).split(counts), alone):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(alone[0], alone[2])


def test_no_images_give_no_rows(case):
    projector, features = case
    rows = projector(features([]))
    assert rows.shape == (0, OUT)
    rows.sum().backward()


def test_gradients_reach_every_parameter(case):
    projector, features = case
    projector.zero_grad()
    rows = projector(features([Grid(6, 6), Grid(12, 6), Grid(6, 6)]))
    (rows * torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    names = {name for name, value in projector.named_parameters() if value.grad is None or not value.grad.abs().max() > 1e-9}
    # Shifting all keys of a query by the same vector changes no attention weight.
    without = {name for name in names if not name.endswith("attention.key.bias") and not NEVER_READ.match(name)}
    assert not without, without


def test_bf16_is_near_fp32(case):
    projector, features = case
    given_ = features([Grid(6, 6), Grid(6, 12)])
    expected = projector(given_)
    half = type(projector)(IN, OUT, **projector.options).to(torch.bfloat16)
    half.load_state_dict(projector.state_dict())
    rows = half(moved(given_, dtype=torch.bfloat16))
    assert rows.dtype == torch.bfloat16
    error = (rows.float() - expected).norm() / expected.norm()
    assert error < 0.05, error


def test_options_say_how_it_was_made(case):
    projector, features = case
    again = type(projector)(IN, OUT, **json.loads(json.dumps(projector.options)))
    assert again.options == projector.options and set(projector.options) == set(inspect.signature(type(projector)).parameters) - {"in_dim", "out_dim"}
    again.load_state_dict(projector.state_dict())
    given_ = features([Grid(6, 6)])
    assert str(again) == str(projector) and again.requires == projector.requires
    assert torch.equal(again(given_), projector(given_))


def test_satisfies_the_contract_and_is_registered(case):
    projector, _ = case
    assert isinstance(projector, Projector)
    assert registry.resolve("projector", registry.name_of("projector", type(projector))) is type(projector)
    assert ":" not in registry.name_of("projector", type(projector))


def moved(features, device=None, dtype=None):
    """The same features elsewhere."""

    def to(tensor):
        return None if tensor is None else tensor.to(device=device, dtype=dtype)

    return type(features)(
        to(features.patches),
        features.grids,
        prefix=to(features.prefix),
        layers={name: to(rows) for name, rows in features.layers.items()},
        towers=tuple(moved(tower, device, dtype) for tower in features.towers),
        instruction=features.instruction and features.instruction.to(device or "cpu"),
    )


def meta(projector):
    with torch.device("meta"):
        return type(projector)(IN, OUT, **projector.options)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PixelShuffle(4, 8, factor=0), "'pixel_shuffle': factor must be a whole number above 0, found 0"),
        (lambda: PixelShuffle(4, 8, odd="crop"), r"odd must be one of pad, error, found 'crop'"),
        (lambda: PixelShuffle(4, 8, odd="error").out_grid(Grid(27, 27)), r"divisible by 2, found 27x27; factors that divide it: \[3, 9, 27\]"),
        (lambda: Pool(4, 8, factor=2.0), "'pool': factor must be a whole number above 0, found 2.0"),
        (lambda: Pool(4, 8, first="last", odd="no"), "odd must be one of .* found 'no'; first must be one of .* found 'last'"),
        (lambda: Pool(4, 8, depth=0), "'Pool' needs depth >= 1, found 0"),
        (lambda: AdaptivePool(4, 8, grid=[1, 2, 3]), r"grid must be one number or \(rows, columns\), found \[1, 2, 3\]"),
        (lambda: AdaptivePool(4, 8, grid=12, small="error").out_grid(Grid(8, 20)), "pools to 12x12, found an image of 8x20 patches"),
        (lambda: Perceiver(4, 8, latents=0, heads=-1), "latents must be .*; heads must be"),
        (lambda: Perceiver(4, 8, project=False), "gives the encoder's width 4, decoder takes 8: set project=True"),
        (lambda: QFormer(4, 8, dim=10, heads=4), "'qformer': dim 10 is not a multiple of heads 4"),
        (lambda: InstructQFormer(4, 8, vocab=0), "'instruct_qformer': vocab must be"),
        (lambda: Resampler(4, 10), "width that is a multiple of 4 and of its 1 heads, found 10"),
        (lambda: CAbstractor(4, 8, depth=0, dim=0), "dim must be .*; depth must be"),
        (lambda: TokenPacker(5, 8, layers=2), "the encoder's width 5 must be a multiple of layers 2"),
        (lambda: TokenPacker(4, 8).out_grid(Grid(9, 9)), r"divisible by 2, found 9x9; factors that divide it: \[3, 9\]"),
        (lambda: SVA(4, 8, dims=[2, 2], windows=[1]), r"found dims \(2, 2\), windows \(1,\)"),
        (lambda: SVA(4, 8, windows=[2]).out_grid(Grid(3, 4)), "windows of 2x2 in tower 0, which don't divide its 3x4 patches"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(make, message):
    with pytest.raises(LmmError, match=message):
        make()


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("token_packer", {"layers": {}}, r"was made for 2 layers, the encoder gives \[\]: set layers=0, or select 2 layers"),
        ("sva of two towers", {"towers": ()}, "was made for 2 towers, the encoder gives 0"),
        ("perceiver with prefix", {"prefix": None}, "needs features.prefix: call the encoder with need="),
        ("instruct_qformer", {"instruction": None}, "reads what is asked about each image: make batches with collate"),
    ],
)
def test_features_that_lack_something_are_refused(name, changes, message, features_of):
    made, options, given_ = CASES[name]
    features = features_of([Grid(6, 6)], IN, **given_)
    for field, value in changes.items():
        setattr(features, field, value)
    with pytest.raises(LmmError, match=message):
        made(IN, OUT, **options)(features)


def test_sva_refuses_towers_that_do_not_fit_together(features_of):
    made, options, given_ = CASES["sva of two towers"]
    features = features_of([Grid(6, 6), Grid(4, 4)], IN, **given_)
    features.towers[1].grids = (Grid(12, 12), Grid(4, 16))
    with pytest.raises(LmmError, match=r"unequal grids of queries \(4x4 / 1, 4x16 / 2\)"):
        made(IN, OUT, **options)(features)


def test_instructions_must_be_one_per_image(features_of):
    made, options, given_ = CASES["instruct_qformer"]
    features = features_of([Grid(2, 2), Grid(2, 2)], IN, **given_)
    features.instruction = features.instruction.select([0])
    with pytest.raises(LmmError, match="one instruction per image: 1 for 2 images"):
        made(IN, OUT, **options)(features)
