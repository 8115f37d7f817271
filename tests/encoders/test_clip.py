"""CLIP against a plain vision transformer written here, padded and one head at a time, from the same weights."""

import pytest
import torch
import torch.nn.functional as F

from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.spec import Encoder, Grid, LmmError

LAYERS, HEADS, WIDTH, SIDE = 4, 3, 24, 3
TOKENS = SIDE * SIDE + 1
EVERYTHING = frozenset({"patches", "prefix", "layers", "keys", "cls_attn"})


def config(**changes):
    shape = dict(dim=WIDTH, layers=LAYERS, heads=HEADS, mlp_dim=40, image_size=14 * SIDE, patch=14)
    return CLIPConfig(**{**shape, **changes})


def encoder(**changes):
    torch.manual_seed(0)
    made = config(**changes).build()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def pixels(images=2, seed=1):
    return torch.randn(images, 3, 14 * SIDE, 14 * SIDE, generator=torch.Generator().manual_seed(seed))


def norm(weights, name, x):
    return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def one_head(weights, layer, x, head):
    """Queries, keys, values and attention of one head, (I, T, E) and (I, T, T)."""
    own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
    name = f"vision_model.encoder.layers.{layer}"
    normed = norm(weights, f"{name}.layer_norm1", x)
    q, k, v = (linear(weights, f"{name}.self_attn.{part}_proj", normed)[..., own] for part in "qkv")
    return k, v, (q @ k.transpose(1, 2) / (WIDTH // HEADS) ** 0.5).softmax(-1)


def plain_states(made, images):
    """Every hidden state (I, T, C), embeddings first, by the definition of the vision transformer with QuickGELU."""
    weights = made.state_dict()
    kernel = weights["vision_model.embeddings.patch_embedding.weight"].flatten(1)
    patches = F.unfold(images, 14, stride=14).transpose(1, 2) @ kernel.T
    cls = weights["vision_model.embeddings.class_embedding"].expand(len(images), 1, -1)
    x = torch.cat([cls, patches], 1) + weights["vision_model.embeddings.position_embedding.weight"]
    states = [norm(weights, "vision_model.pre_layrnorm", x)]
    for layer in range(made.config.layers):
        x, name = states[-1], f"vision_model.encoder.layers.{layer}"
        mixed = torch.cat([a @ v for _, v, a in (one_head(weights, layer, x, h) for h in range(HEADS))], -1)
        x = x + linear(weights, f"{name}.self_attn.out_proj", mixed)
        inner = linear(weights, f"{name}.mlp.fc1", norm(weights, f"{name}.layer_norm2", x))
        states.append(x + linear(weights, f"{name}.mlp.fc2", inner * torch.sigmoid(1.702 * inner)))
    return states


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def without_cls(state):
    return state[:, 1:].flatten(0, 1)


@pytest.mark.parametrize("select", [(-2,), (-1,), (0,), (3,), (-2, -1), (1, -5, 4), (-2, -2)])
def test_features_are_the_selected_hidden_states_without_cls_joined_on_channels(select):
    made, images = encoder(select=select), pixels()
    states = plain_states(made, images)
    got = made(images)
    assert_close(got.patches, torch.cat([without_cls(states[s]) for s in select], -1))
    assert got.grids == (Grid(SIDE, SIDE),) * 2
    assert made.spec.dim == WIDTH * len(select) == got.patches.shape[1]
    assert got.prefix is None and got.keys is None and got.cls_attn is None and got.layers == {}


def test_images_are_independent_of_each_other():
    made, images = encoder(), pixels(3)
    alone = torch.cat([made(image[None]).patches for image in images])
    assert_close(made(images).patches, alone)


@pytest.mark.parametrize("need", [frozenset({"patches"}), EVERYTHING])
@pytest.mark.parametrize("select, run", [((-2,), 3), ((-1,), 4), ((0,), 0), ((2,), 2), ((-4, 1), 1), ((-1, 1), 4)])
def test_no_layer_behind_the_selected_one_runs(select, run, need):
    made = encoder(select=select)
    calls = []
    for index, layer in enumerate(made.vision_model.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    made.vision_model.post_layernorm.register_forward_hook(lambda *_: calls.append("post_layernorm"))
    made(pixels(), need=need)
    assert calls == list(range(run))


def test_unused_layers_are_carried_and_get_no_gradient():
    made = encoder()
    made.frozen = False
    made(pixels()).patches.square().sum().backward()
    unused = ("vision_model.encoder.layers.3.", "vision_model.post_layernorm.")
    carried = [name for name in made.state_dict() if name.startswith(unused)]
    assert len(carried) == 16 + 2
    for name, parameter in made.named_parameters():
        if name.startswith(unused):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name


def test_frozen_encoder_keeps_no_activation_and_builds_no_graph():
    made, kept = encoder(), []
    assert made.frozen and not any(parameter.requires_grad for parameter in made.parameters())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        got = made(pixels(), need=EVERYTHING)
        assert not kept
        for tensor in (got.patches, got.prefix, got.keys, got.cls_attn, *got.layers.values()):
            assert not tensor.requires_grad and tensor.grad_fn is None
        made.frozen = False
        assert made(pixels()).patches.requires_grad and kept
        with torch.no_grad():
            assert not made(pixels()).patches.requires_grad


@pytest.mark.parametrize("select", [(-2,), (-1, 2), (0,)])
def test_extras_equal_an_independent_computation(select):
    made, images = encoder(select=select), pixels()
    states = plain_states(made, images)
    got = made(images, need=EVERYTHING)
    assert_close(got.prefix, torch.cat([states[s][:, :1] for s in select], -1))
    assert set(got.layers) == set(select)
    for name, rows in got.layers.items():
        assert_close(rows, without_cls(states[name]))
    deepest = max(s % (LAYERS + 1) for s in select)
    scoring = max(deepest - 1, 0)
    heads = [one_head(made.state_dict(), scoring, states[scoring], h) for h in range(HEADS)]
    assert_close(got.keys, torch.stack([without_cls(k) for k, _, _ in heads], 1))
    assert_close(got.cls_attn, torch.stack([a[:, 0, 1:].flatten() for _, _, a in heads]).mean(0))


def test_only_the_extras_that_are_needed_are_given():
    got = encoder()(pixels(), need=frozenset({"patches", "cls_attn"}))
    assert got.cls_attn.shape == (2 * SIDE * SIDE,)
    assert got.prefix is None and got.keys is None and got.layers == {}


def test_zero_images_give_zero_rows():
    got = encoder(select=(-2, -1))(pixels(0), need=EVERYTHING)
    assert got.grids == ()
    shapes = [tuple(t.shape) for t in (got.patches, got.prefix, got.keys, got.cls_attn)]
    assert shapes == [(0, 2 * WIDTH), (0, 1, 2 * WIDTH), (0, HEADS, WIDTH // HEADS), (0,)]


@pytest.mark.parametrize("shape", [(3, 42, 42), (1, 3, 42, 28), (1, 3, 336, 336), (1, 1, 42, 42), (1, 42, 42, 3)])
def test_pixels_of_another_shape_are_refused(shape):
    with pytest.raises(LmmError, match=r"needs pixels \(I, 3, 42, 42\), found") as error:
        encoder()(torch.zeros(shape))
    assert str(tuple(shape)) in str(error.value)


def test_what_it_does_not_offer_is_refused():
    with pytest.raises(LmmError, match="can't give .'depth'.*offers .'cls_attn', 'keys'"):
        encoder()(pixels(), need=frozenset({"patches", "depth"}))


def test_features_have_the_dtype_of_the_weights():
    made = encoder().to(torch.bfloat16)
    assert made(pixels()).patches.dtype == torch.bfloat16


def test_exact_gelu_differs_from_quick_gelu():
    exact, quick = encoder(activation="gelu"), encoder()
    exact.load_state_dict(quick.state_dict())
    difference = (exact(pixels()).patches - quick(pixels()).patches).abs().max()
    assert difference > 1e-3, difference


def test_spec_is_known_without_memory_and_needs_no_value_of_a_tensor():
    with torch.device("meta"):
        made = config(select=(-2, 1)).build()
    spec = made.spec
    assert (spec.dim, spec.patch, spec.image_size, spec.prefix) == (2 * WIDTH, 14, 42, 1)
    assert spec.layers == (-2, 1) and spec.offers == EVERYTHING
    assert (made.preprocess.size_px, made.preprocess.patch_px) == (42, 14)
    got = made(torch.zeros(2, 3, 42, 42, device="meta"), need=EVERYTHING)
    assert got.patches.is_meta and got.patches.shape == (2 * SIDE * SIDE, 2 * WIDTH)


def test_satisfies_the_contract_of_an_encoder():
    assert isinstance(encoder(), Encoder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 40}, "image_size 40 px is not a multiple of patch 14 px"),
        ({"heads": 5}, "dim 24 is not a multiple of heads 5"),
        ({"activation": "relu"}, "activation 'relu' is none of"),
        ({"select": (-6,)}, r"select \(-6,\) must name hidden states 0..4 \(or -5..-1\)"),
        ({"select": ()}, r"select \(\) must name"),
        ({"select": -2}, "select must be a tuple of whole numbers, found -2"),
        ({"patch": 0}, "patch must be a whole number above 0, found 0"),
        ({"dim": "24"}, "dim must be a whole number above 0, found '24'"),
        ({"eps": True}, "eps must be a number above 0, found True"),
        ({"heads": 5, "image_size": 40}, "image_size 40.*; dim 24"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(LmmError, match=f"CLIPConfig: .*{message}"):
        config(**changes)
