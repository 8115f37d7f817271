"""Who learns is said by ``requires_grad`` alone, and what wraps a table or a head is computed with: in losses, training and answers alike."""

import dataclasses
import sys
from importlib.metadata import version

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import lmmblocks as lb
from lmmblocks.decoders.hf import HFDecoder
from lmmblocks.decoders.hf_read import OLDEST_TRANSFORMERS
from lmmblocks.spec import LmmError
from lmmblocks.spec.versions import release
from lmmblocks.train import train
from lmmblocks.train.optimizer import prepare_parts, trainable_table


@pytest.fixture(autouse=True)
def without_slow_extras(monkeypatch):
    for name in ("torch.utils.tensorboard", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


class Lora(nn.Module):
    """An adapter as peft puts it around a layer: the layer stays as ``base_layer``, its weight shows through."""

    def __init__(self, base_layer, rank=2):
        super().__init__()
        rows, columns = base_layer.weight.shape
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, columns) * 0.5)
        self.lora_B = nn.Parameter(torch.randn(rows, rank) * 0.5)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def merged(self):
        return self.base_layer.weight + self.lora_B @ self.lora_A

    def forward(self, x):
        if isinstance(self.base_layer, nn.Embedding):
            return self.base_layer(x) + F.embedding(x, self.lora_B) @ self.lora_A
        return self.base_layer(x) + x @ self.lora_A.T @ self.lora_B.T


def hf_llama(model):
    """The decoder of the model as one of transformers, with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=448,
    )
    decoder = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=512, rms_norm_eps=1e-5))
    decoder.load_state_dict(model.decoder.state_dict())
    return HFDecoder.of(decoder)


DECODERS = ["native", *(["hf"] if release(version("transformers")) >= release(OLDEST_TRANSFORMERS) else [])]


@pytest.fixture(params=DECODERS)
def both(request, model):
    if request.param == "hf":
        model.language_model = hf_llama(model)
    return model


ENDS = {"head": ("lm_head", None), "table": ("embed_tokens", "model")}


def wrap(model, end, wrapper=Lora):
    name, inside = ENDS[end]
    owner = model.decoder if inside is None else getattr(model.decoder, inside)
    torch.manual_seed(3)
    setattr(owner, name, wrapper(getattr(owner, name)))
    return getattr(owner, name)


def merged(model, end):
    """Put the adapter's weights into the layer, and the layer back."""
    name, inside = ENDS[end]
    owner = model.decoder if inside is None else getattr(model.decoder, inside)
    adapter = getattr(owner, name)
    adapter.base_layer.weight.data = adapter.merged.detach()
    setattr(owner, name, adapter.base_layer)


@pytest.mark.parametrize("end", ENDS)
def test_loss_logits_and_answers_hear_an_adapter_as_if_it_were_merged(both, samples, end):
    model, batch = both, lb.collate(samples, both)
    plain = model.loss(batch).item()
    adapter = wrap(model, end)
    found = {how: model.loss(batch, reduction=how) for how in ("mean", "sum", "none")}
    weights = torch.rand(sum(batch.plan.target_counts))
    weighted = model.loss(batch, weights=weights)
    found["mean"].backward()
    assert adapter.lora_A.grad.any() and adapter.lora_B.grad.any() and adapter.base_layer.weight.grad is None
    logits, answer = model.logits(batch), model.generate("What colour is it?", max_new_tokens=6)
    merged(model, end)
    for how, loss in found.items():
        torch.testing.assert_close(loss, model.loss(batch, reduction=how), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(weighted, model.loss(batch, weights=weights), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(logits, model.logits(batch), atol=1e-4, rtol=1e-5)
    assert answer == model.generate("What colour is it?", max_new_tokens=6)
    assert abs(found["mean"].item() - plain) > 1e-3  # the adapter does something


@pytest.mark.parametrize("end", ENDS)
def test_text_without_pictures_hears_it_too(both, samples, end):
    text = lb.collate([sample for sample in samples if not sample.images], both)
    wrap(both, end)
    found = both.loss(text)
    merged(both, end)
    torch.testing.assert_close(found, both.loss(text), atol=1e-4, rtol=1e-5)


def test_a_hook_on_the_head_is_heard(both, samples):
    batch = lb.collate(samples, both)
    plain = both.loss(batch)
    head = both.decoder.lm_head
    handle = head.register_forward_hook(lambda module, given, out: out * 3)
    expected = F.cross_entropy(both.logits(batch).index_select(0, batch.plan.target_rows), batch.plan.targets)
    torch.testing.assert_close(both.loss(batch), expected, atol=1e-4, rtol=1e-5)
    handle.remove()
    torch.testing.assert_close(both.loss(batch), plain)


def test_a_weight_that_is_parametrized_is_still_a_weight(model, samples):
    from torch.nn.utils import parametrize

    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    batch = lb.collate(samples, model)
    parametrize.register_parametrization(model.decoder.lm_head, "weight", Double())
    assert model.decoder.head_is_weight
    expected = F.cross_entropy(model.logits(batch).index_select(0, batch.plan.target_rows), batch.plan.targets)
    torch.testing.assert_close(model.loss(batch), expected, atol=1e-5, rtol=1e-5)


def adapted(model):
    """Adapters on every query and value layer; everything else of the decoder frozen."""
    model.decoder.requires_grad_(False)
    for layer in model.decoder.model.layers:
        layer.self_attn.q_proj = Lora(layer.self_attn.q_proj)
        layer.self_attn.v_proj = Lora(layer.self_attn.v_proj)
    return model


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model, before):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def test_only_what_requires_a_gradient_of_a_part_is_trained(model, samples, stage, tmp_path, capsys):
    adapted(model)
    before = snapshot(model)
    parts = {"projector": 1e-2, "decoder": 1e-2}
    train(model, dataclasses.replace(stage, train=parts, max_steps=3, warmup_ratio=0.0), samples, tmp_path)
    moved = {name for name in changed(model, before) if name.startswith("language_model.")}
    assert moved == {name for name in before if ".lora_" in name}
    total = sum(p.numel() for name, p in before.items() if name.startswith("language_model."))
    learned = sum(before[name].numel() for name in moved)
    assert f"decoder    {total:>14,} {learned:>14,}" in capsys.readouterr().out


def test_a_stage_in_between_doesnt_forget_who_learns(model, samples, stage, tmp_path):
    adapted(model)
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    train(model, dataclasses.replace(stage, train={"projector": 1e-2}, max_steps=1), samples, tmp_path / "one")
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == learns
    before = snapshot(model)
    train(
        model,
        dataclasses.replace(stage, train={"decoder": 1e-2}, max_steps=2, warmup_ratio=0.0),
        samples,
        tmp_path / "two",
    )
    assert changed(model, before) == {name for name in before if ".lora_" in name}


def test_a_frozen_base_that_changed_isnt_resumed_from(make_model, tokenizer, samples, stage, tmp_path):
    stage = dataclasses.replace(stage, train={"decoder": 1e-2}, max_steps=1)
    train(adapted(make_model(tokenizer)), stage, samples, tmp_path)
    other = adapted(make_model(tokenizer))
    with torch.no_grad():
        other.decoder.lm_head.weight[0, 0] += 1
    with pytest.raises(LmmError, match=r"(?s)belongs to another run.*frozen weights.decoder, beside what is trained"):
        train(other, stage, samples, tmp_path)


def test_a_part_that_is_frozen_or_learns_as_a_whole_is_woken_by_its_stage(model, stage):
    model.decoder.requires_grad_(False)
    prepare_parts(model, dataclasses.replace(stage, train={"decoder": 1e-3, "encoder": 1e-3}))
    assert all(p.requires_grad for part in (model.decoder, model.encoder) for p in part.parameters())
    assert not any(p.requires_grad for p in model.projector.parameters())
    assert trainable_table(model).splitlines()[2].split()[-1] == "0"


def test_a_tower_learns_when_its_parameters_say_so(model, samples):
    batch = lb.collate(samples, model)
    model.loss(batch).backward()
    assert model.encoder.frozen and all(p.grad is None for p in model.encoder.parameters())
    model.encoder.train().requires_grad_(True)
    model.loss(batch).backward()
    assert not model.encoder.frozen
    assert model.encoder.vision_model.embeddings.patch_embedding.weight.grad.any()


def test_an_adapter_inside_a_frozen_tower_learns_alone(model, samples):
    layer = model.encoder.vision_model.encoder.layers[0]
    layer.mlp.fc1 = Lora(layer.mlp.fc1)
    model.loss(lb.collate(samples, model)).backward()
    with_gradient = {name for name, p in model.encoder.named_parameters() if p.grad is not None}
    assert with_gradient == {
        "vision_model.encoder.layers.0.mlp.fc1.lora_A",
        "vision_model.encoder.layers.0.mlp.fc1.lora_B",
    }


def test_a_trained_tower_is_no_longer_said_to_be_the_hubs(model, samples, stage, tmp_path):
    model.config = dataclasses.replace(model.config, encoder_source="openai/clip-vit-large-patch14-336")
    train(model, dataclasses.replace(stage, train={"projector": 1e-3}, max_steps=1), samples, tmp_path / "one")
    assert model.config.encoder_source == "openai/clip-vit-large-patch14-336"
    train(model, dataclasses.replace(stage, train={"encoder": 1e-3}, max_steps=1), samples, tmp_path / "two")
    assert model.config.encoder_source is None and model.encoder.frozen
    answer = model.generate("What colour is it?", images=Image.new("RGB", (9, 9)), max_new_tokens=2)
    assert isinstance(answer, str)
