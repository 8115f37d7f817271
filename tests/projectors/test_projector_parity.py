"""Projectors that have a twin in transformers: the same features, gradients and parameters, at toy size."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from lmmblocks.projectors import InstructQFormer, Perceiver, PixelShuffle, Pool, QFormer
from lmmblocks.spec import Grid

IN, OUT, SIDE = 6, 8, 4
IMAGES = [Grid(SIDE, SIDE)] * 3
BERT = dict(queries=3, dim=8, layers=3, heads=2, mlp_dim=10)
FEATURES, GRADIENTS = 1e-5, 1e-4


def sizes(**changes):
    text, vision = SimpleNamespace(hidden_size=OUT), SimpleNamespace(hidden_size=IN, embed_dim=IN, model_args={"embed_dim": IN})
    return SimpleNamespace(text_config=text, vision_config=vision, **changes)


def batched(features):
    """(I, P, C) of images of one size."""
    return features.patches.unflatten(0, (len(features.grids), -1))


def with_prefix(features):
    return torch.cat([features.prefix, batched(features)], 1)


def same_names(projector):
    return {name: name for name, _ in projector.named_parameters()}


def check(result):
    output, gradient = result
    print(f"features {output:.1e}, gradients {gradient:.1e}")
    assert output <= FEATURES and gradient <= GRADIENTS


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("model", ["idefics3", "smolvlm"])
def test_pixel_shuffle_equals_the_connector_of_idefics3(model, factor, features_of, randomised, compare):
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

    made = {"idefics3": Idefics3Connector, "smolvlm": SmolVLMConnector}[model]
    twin = randomised(made(sizes(scale_factor=factor)))
    projector = PixelShuffle(IN, OUT, factor=factor, norm=False, depth=1, bias=False)
    projector.load_state_dict({"linear_1.weight": twin.modality_projection.proj.weight})
    features = features_of(IMAGES, IN)
    names = {"linear_1.weight": "modality_projection.proj.weight"}
    check(compare(projector, twin, features, lambda: twin(batched(features)).flatten(0, 1), names, "pixel_shuffle", made.__name__))


def test_pixel_shuffle_equals_the_one_of_internvl(features_of, randomised, compare):
    from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

    twin = randomised(InternVLMultiModalProjector(sizes(downsample_ratio=0.5, projector_hidden_act="gelu")))
    projector = PixelShuffle(IN, OUT)
    projector.load_state_dict(twin.state_dict())
    features = features_of(IMAGES, IN)

    def run():
        maps = batched(features).unflatten(1, (SIDE, SIDE))
        return twin(InternVLModel.pixel_shuffle(None, maps, scale_factor=0.5).flatten(1, 2)).flatten(0, 1)

    check(compare(projector, twin, features, run, same_names(projector), "pixel_shuffle", "InternVLMultiModalProjector"))


def test_pool_equals_the_projector_of_perception_lm(features_of, randomised, compare):
    from transformers.models.perception_lm.modeling_perception_lm import PerceptionLMMultiModalProjector

    twin = randomised(PerceptionLMMultiModalProjector(sizes(projector_pooling_ratio=2)))
    projector = Pool(IN, OUT, first="mlp")
    projector.load_state_dict(twin.state_dict())
    features = features_of(IMAGES, IN)
    result = compare(
        projector,
        twin,
        features,
        lambda: twin(batched(features)).flatten(0, 1),
        same_names(projector),
        "pool",
        "PerceptionLMMultiModalProjector",
    )
    check(result)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_perceiver_equals_the_one_of_idefics(qk_norm, features_of, randomised, compare):
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = sizes(perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=qk_norm))
    twin = randomised(IdeficsPerceiverResampler(config, IN, 2, 2, 4, 5))
    projector = Perceiver(IN, IN, latents=5, depth=2, heads=2, head_dim=4, qk_norm=qk_norm, prefix=True, project=False)
    projector.load_state_dict(twin.state_dict())
    features = features_of(IMAGES, IN, prefix=1)
    result = compare(
        projector,
        twin,
        features,
        lambda: twin(with_prefix(features)).flatten(0, 1),
        same_names(projector),
        "perceiver",
        "IdeficsPerceiverResampler",
    )
    check(result)


class Connector(nn.Module):
    """What is between tower and language model in ``Blip2Model`` and ``InstructBlipModel``, under their names."""

    def __init__(self, qformer):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, BERT["queries"], BERT["dim"]))
        self.qformer = qformer
        self.language_projection = nn.Linear(BERT["dim"], OUT)

    def forward(self, features, **text):
        images = len(features.grids)
        queries = self.query_tokens.expand(images, -1, -1)
        out = self.qformer(query_embeds=queries, encoder_hidden_states=with_prefix(features), **text).last_hidden_state
        return self.language_projection(out[:, : BERT["queries"]]).flatten(0, 1)


def bert_shape(**more):
    return dict(
        hidden_size=BERT["dim"],
        num_hidden_layers=BERT["layers"],
        num_attention_heads=BERT["heads"],
        intermediate_size=BERT["mlp_dim"],
        encoder_hidden_size=IN,
        **more,
    )


@pytest.mark.parametrize("cross_every", [1, 2])
def test_qformer_equals_the_one_of_blip2(cross_every, features_of, randomised, compare):
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    twin = randomised(Connector(Blip2QFormerModel(Blip2QFormerConfig(**bert_shape(cross_attention_frequency=cross_every)))))
    projector = QFormer(IN, OUT, **BERT, cross_every=cross_every, prefix=True)
    projector.load_state_dict(twin.state_dict())
    features = features_of(IMAGES, IN, prefix=1)
    check(compare(projector, twin, features, lambda: twin(features), same_names(projector), "qformer", "Blip2QFormerModel"))


def test_instruct_qformer_equals_the_one_of_instructblip(features_of, randomised, compare):
    """Instructions of unequal lengths: packed here, padded and masked there."""
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

    config = InstructBlipQFormerConfig(**bert_shape(vocab_size=20, max_position_embeddings=9))
    twin = randomised(Connector(InstructBlipQFormerModel(config)))
    projector = InstructQFormer(IN, OUT, **BERT, vocab=20, positions=9, prefix=True)
    projector.load_state_dict(twin.state_dict())
    asked = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
    features = features_of(IMAGES, IN, prefix=1, asked=asked)
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, BERT["queries"] + 7, dtype=torch.long)
    for row, text in enumerate(asked):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : BERT["queries"] + len(text)] = 1
    result = compare(
        projector,
        twin,
        features,
        lambda: twin(features, input_ids=ids, attention_mask=mask),
        same_names(projector),
        "instruct_qformer",
        "InstructBlipQFormerModel",
    )
    check(result)


def test_instruct_qformer_reads_the_instruction(features_of, randomised):
    projector = randomised(InstructQFormer(IN, OUT, **BERT, vocab=20, positions=9))
    rows = [projector(features_of(IMAGES[:1], IN, asked=[ids])) for ids in ([3, 1], [1, 3], [3], [])]
    for index, one in enumerate(rows):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in rows[index + 1 :])


@pytest.mark.parametrize("made, twin_name", [(QFormer, "Blip2ForConditionalGeneration"), (InstructQFormer, "InstructBlipForConditionalGeneration")])
def test_qformer_has_the_names_and_shapes_of_the_released_models(made, twin_name):
    """At full size, without memory."""
    import transformers

    twin_class = getattr(transformers, twin_name)
    config = twin_class.config_class()
    with torch.device("meta"):
        twin = twin_class(config)
        projector = made(config.vision_config.hidden_size, config.text_config.hidden_size, eps=config.qformer_config.layer_norm_eps)
    parts = ("query_tokens", "qformer.", "language_projection.")
    expected = {name: tuple(value.shape) for name, value in twin.named_parameters() if name.removeprefix("model.").startswith(parts)}
    expected = {name.removeprefix("model."): shape for name, shape in expected.items()}
    found = {name: tuple(value.shape) for name, value in projector.named_parameters()}
    if made is InstructQFormer:
        assert config.qformer_config.vocab_size in (30522, 30523)
        found["qformer.embeddings.word_embeddings.weight"] = (config.qformer_config.vocab_size, 768)
    assert found == expected
