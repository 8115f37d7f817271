"""TokenPacker and SVA against their formulas: one query and its window at a time, one head at a time, in fp64."""

import math

import pytest
import torch

from lmmblocks.projectors import SVA, TokenPacker
from lmmblocks.spec import Grid

IN, OUT, DIM, HEADS = 6, 8, 8, 2


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def two_layers(x, state, name, ends=("0", "2")):
    return linear(gelu(linear(x, state, f"{name}.{ends[0]}")), state, f"{name}.{ends[1]}")


def norm(x, state, name, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def attend(q, keys, values):
    """One query of all heads; returns the heads side by side."""
    width = DIM // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = torch.stack([(q[part] * key[part]).sum() / math.sqrt(width) for key in keys])
        weights = (scores - scores.max()).exp()
        heads.append(sum(w * value[part] for w, value in zip(weights / weights.sum(), values)))
    return torch.cat(heads)


def state_of(projector):
    return {name: value.double() for name, value in projector.state_dict().items()}


def check(projector, features, expected, record_parity, name):
    rows = projector(features)
    error = (rows.double() - torch.stack(expected)).abs().max().item()
    record_parity(name, "the formula in fp64", "features: largest absolute difference", error)
    assert len(rows) == len(expected) and error <= 1e-5, error


def coarse(patches, grid, factor, y, x):
    """Bilinear interpolation halves by the mean of four; by three it lands on the middle patch."""
    square = [patches[(y * factor + dy) * grid.w + x * factor + dx] for dy in range(factor) for dx in range(factor)]
    return sum(square) / 4 if factor == 2 else square[4]


@pytest.mark.parametrize("factor", [2, 3])
def test_token_packer_equals_its_formula(factor, features_of, randomised, record_parity):
    projector = randomised(TokenPacker(IN, OUT, layers=2, factor=factor, dim=DIM, heads=HEADS))
    grids = [Grid(6, 6), Grid(6, 12)]
    features, state = features_of(grids, IN, layers=2), state_of(projector)
    q_weight, k_weight, v_weight = state["clip_attn.in_proj_weight"].chunk(3)
    q_bias, k_bias, v_bias = state["clip_attn.in_proj_bias"].chunk(3)
    expected = []
    for grid, patches in zip(grids, features.patches.double().split([grid.rows for grid in grids])):
        keys = norm(two_layers(patches, state, "k_proj_1"), state, "ln_k_1", 1e-6) @ k_weight.T + k_bias
        values = norm(two_layers(patches, state, "v_proj_1"), state, "ln_v_1", 1e-6) @ v_weight.T + v_bias
        last = patches[:, IN // 2 :]  # the second of the two layers
        for y in range(grid.h // factor):
            for x in range(grid.w // factor):
                query = norm(linear(coarse(last, grid, factor, y, x), state, "q_proj_1"), state, "ln_q_1", 1e-6) @ q_weight.T + q_bias
                window = [(y * factor + dy) * grid.w + x * factor + dx for dy in range(factor) for dx in range(factor)]
                seen = attend(query, [keys[i] for i in window], [values[i] for i in window])
                expected.append(two_layers(linear(seen, state, "clip_attn.out_proj"), state, "mlp"))
    check(projector, features, expected, record_parity, "token_packer")


def sva_layer(query, context, windows, state, name):
    """One query; windows: of each tower, its patches row by row."""
    x = linear(torch.cat([query, linear(context, state, f"{name}.proj_context")]), state, f"{name}.proj_in")
    keys, values = [], []
    for tower, window in enumerate(windows):
        places = state.get(f"{name}.pos_embed_{tower}", torch.zeros(len(window), DIM))
        for patch, place in zip(window, places):
            for kind, found in (("k", keys), ("v", values)):
                normed = norm(patch + place, state, f"{name}.cross_attn.{kind}_proj_{tower}.0", 1e-5)
                found.append(linear(normed, state, f"{name}.cross_attn.{kind}_proj_{tower}.1"))
    q = linear(norm(x, state, f"{name}.cross_attn.q_proj.0", 1e-5), state, f"{name}.cross_attn.q_proj.1")
    x = norm(x + linear(attend(q, keys, values), state, f"{name}.cross_attn.o_proj"), state, f"{name}.norm", 1e-5)
    return two_layers(x, state, f"{name}.proj_out", ("linear_1", "linear_2")) + query


@pytest.mark.parametrize("windows", [(1, 2), (2, 1), (1, 1), (3, 2)])
def test_sva_equals_its_formula(windows, features_of, randomised, record_parity):
    projector = randomised(SVA(IN, OUT, dims=(IN, 4), windows=windows, dim=DIM, depth=2, heads=HEADS))
    queries = [Grid(2, 2), Grid(1, 3)]
    features, state = features_of(queries, IN, towers=list(zip((IN, 4), windows))), state_of(projector)
    towers = []  # of each tower, of each image: (H, W, C)
    for index, tower in enumerate(features.towers):
        rows = two_layers(tower.patches.double(), state, f"mm_projector_aux_{index}")
        rows = norm(rows, state, f"mm_projector_aux_{index}.3", 1e-5)
        towers.append([part.view(grid.h, grid.w, DIM) for part, grid in zip(rows.split([g.rows for g in tower.grids]), tower.grids)])
    expected = []
    for image, grid in enumerate(queries):
        context = towers[0][image].mean((0, 1))
        for y in range(grid.h):
            for x in range(grid.w):
                seen = [maps[image][y * side : (y + 1) * side, x * side : (x + 1) * side].flatten(0, 1) for maps, side in zip(towers, windows)]
                query = state["vision_query"][0]
                for layer in range(2):
                    query = sva_layer(query, context, seen, state, f"vision_sampler_0.layers.{layer}")
                expected.append(two_layers(query, state, "mm_projector"))
    check(projector, features, expected, record_parity, "sva")


def test_sva_of_one_tower_reads_the_patches_themselves(features_of, randomised):
    alone = randomised(SVA(IN, OUT, windows=[2], dim=DIM, depth=1, heads=HEADS))
    as_tower = SVA(IN, OUT, dims=[IN], windows=[2], dim=DIM, depth=1, heads=HEADS)
    as_tower.load_state_dict(alone.state_dict())
    features = features_of([Grid(4, 2)], IN)
    features.towers = (features,)
    assert alone.requires == {"patches"} and as_tower.requires == {"towers"}
    assert torch.equal(alone(features)[0], as_tower(features)[0])
