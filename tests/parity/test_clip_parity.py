"""The native CLIP tower against ``CLIPVisionModel`` with the same random weights."""

import pytest
import torch

from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.weights.sources import load_encoder
from lmmblocks.weights.systems.llava_hf import clip_from_hf, clip_to_hf

TOLERANCE = 1e-5
LAYERS = 4


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def tower(request, clip_config, randomised, tmp_path_factory):
    """transformers' tower and the folder it was saved to."""
    from transformers import CLIPVisionModel

    model = randomised(CLIPVisionModel(clip_config(num_hidden_layers=LAYERS, hidden_act=request.param)), 1)
    folder = tmp_path_factory.mktemp("tower")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(2))


def native(folder, select):
    config, state, _ = load_encoder(folder)
    encoder = CLIPConfig(**{**vars(config), "select": select}).build()
    encoder.load_state_dict(state)
    return encoder


@pytest.mark.parametrize("select", [(-2,), (-1,), (0,), (2,), (-2, -1), (-4, 1, -1), (-2, -2)])
def test_features_equal_the_hidden_states_of_transformers_without_cls(tower, pixels, select):
    model, folder = tower
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states
        got = native(folder, select)(pixels)
    expected = torch.cat([states[layer][:, 1:] for layer in select], -1).flatten(0, 1)
    assert got.patches.shape == expected.shape == (3 * 16, 32 * len(select))
    torch.testing.assert_close(got.patches, expected, atol=TOLERANCE, rtol=0)


def test_prefix_and_layers_equal_the_hidden_states(tower, pixels):
    model, folder = tower
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states
        got = native(folder, (-3, -1))(pixels, need=frozenset({"patches", "prefix", "layers"}))
    cls = torch.cat([states[-3][:, :1], states[-1][:, :1]], -1)
    torch.testing.assert_close(got.prefix, cls, atol=TOLERANCE, rtol=0)
    for layer in (-3, -1):
        torch.testing.assert_close(got.layers[layer], states[layer][:, 1:].flatten(0, 1), atol=TOLERANCE, rtol=0)


def test_gradients_equal_those_of_transformers(tower, pixels):
    model, folder = tower
    model.zero_grad()
    encoder = native(folder, (-2,))
    encoder.frozen = False
    weights = torch.randn(3 * 16, 32, generator=torch.Generator().manual_seed(3))
    states = model(pixels, output_hidden_states=True).hidden_states
    (states[-2][:, 1:].flatten(0, 1) * weights).sum().backward()
    (encoder(pixels).patches * weights).sum().backward()
    expected = {f"vision_model.{name}": value.grad for name, value in model.named_parameters()}
    for name, value in encoder.named_parameters():
        if expected[name] is None:
            assert value.grad is None, name
        else:
            scale = max(1.0, expected[name].abs().max().item())
            torch.testing.assert_close(value.grad, expected[name], atol=TOLERANCE * scale, rtol=0, msg=name)


def test_attention_of_cls_equals_transformers_eager_attention(tower, pixels):
    """``cls_attn`` is that of the last layer that is run: layer 3 of 4 for select -2."""
    model, folder = tower
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(pixels, output_attentions=True).attentions
        got = native(folder, (-2,))(pixels, need=frozenset({"patches", "cls_attn"})).cls_attn
    expected = attentions[-2][:, :, 0, 1:].mean(1).flatten()
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_clip_config_survives_both_directions(tower):
    model, _ = tower
    ours = clip_from_hf(model.config.to_dict())
    assert clip_from_hf(clip_to_hf(ours)) == ours
    there = type(model.config)(**clip_to_hf(ours)).to_dict()
    kept = {key: there[key] for key in clip_to_hf(ours)}
    assert kept == {key: model.config.to_dict()[key] for key in kept}


def test_tower_is_read_out_of_clip_llava_and_bare_checkpoints(clip_config, hf_llava, randomised, tmp_path):
    from transformers import CLIPConfig as HFCLIPConfig
    from transformers import CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    both = HFCLIPConfig(vision_config=clip_config().to_dict(), text_config=text, projection_dim=8)
    models = [
        CLIPModel(both),
        CLIPVisionModelWithProjection(clip_config()),
        CLIPVisionModel(clip_config()),
        hf_llava(),
    ]
    for index, model in enumerate(models):
        randomised(model, 5).save_pretrained(tmp_path / str(index))
        _, state, _ = load_encoder(tmp_path / str(index))
        table = "embeddings.position_embedding.weight"
        towers = [v for name, v in model.state_dict().items() if name.endswith(table) and v.shape[0] == 17]
        assert len(towers) == 1
        assert torch.equal(state[f"vision_model.{table}"], towers[0])
        assert sorted(state) == sorted(clip_from_hf(clip_config().to_dict()).build().state_dict())
