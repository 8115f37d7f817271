"""``recompute`` is a choice beside the weights: kept when they are read, saved, set at any time; gradients stay what they were."""

import dataclasses

import pytest
import torch

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.decoders.hf import HFDecoder, HFDecoderConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.spec import LmmError


@pytest.fixture(scope="module")
def folders(make_hf, tiny_tokenizer, tmp_path_factory):
    """A family that is read natively, and one that is run through transformers."""
    made = {}
    for kind in ("llama", "gpt2"):
        made[kind] = tmp_path_factory.mktemp(kind)
        make_hf(kind).save_pretrained(made[kind])
        tiny_tokenizer.save_pretrained(made[kind])
    return made


def calls_in_backward(model, batch):
    """How often the norm of the first layer is run by a loss and its gradients, and the gradients."""
    norm = model.decoder.model.layers[0].input_layernorm if hasattr(model.decoder, "model") else model.decoder.transformer.h[0].ln_1
    count = []
    handle = norm.register_forward_hook(lambda *_: count.append(1))
    model.train()
    model.zero_grad()
    model.loss(batch).backward()
    handle.remove()
    return len(count), [p.grad.clone() for p in model.decoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_is_kept_with_pretrained_weights_and_saved(tiny_config, folders, conversations, tmp_path, kind):
    wanted = TransformerConfig(recompute=True) if kind == "llama" else HFDecoderConfig({"model_type": "gpt2"}, recompute=True)
    config = dataclasses.replace(tiny_config, decoder=wanted, decoder_source=str(folders[kind]))
    torch.manual_seed(0)
    model = build(config)
    assert model.decoder.recompute and model.config.decoder.recompute and model.config.decoder.dim == 32
    batch = lb.collate(conversations, model)
    runs, gradients = calls_in_backward(model, batch)
    assert runs == 2
    model.save(tmp_path / "model", format="native")
    again = lb.load(tmp_path / "model")
    assert again.decoder.recompute and calls_in_backward(again, batch)[0] == 2
    again.decoder.recompute = False
    assert not again.decoder.config.recompute
    runs, plain = calls_in_backward(again, batch)
    assert runs == 1 and len(plain) == len(gradients) > 10
    for one, other in zip(plain, gradients):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    again.decoder.recompute = True
    assert calls_in_backward(again, batch)[0] == 2


def test_without_the_choice_nothing_is_recomputed(tiny_config, folders, conversations):
    model = build(dataclasses.replace(tiny_config, decoder_source=str(folders["llama"])))
    assert not model.decoder.recompute and calls_in_backward(model, lb.collate(conversations, model))[0] == 1


def test_the_way_of_running_is_kept_too(tiny_config, folders):
    wanted = HFDecoderConfig({"model_type": "gpt2"}, way="padded")
    model = build(dataclasses.replace(tiny_config, decoder=wanted, decoder_source=str(folders["gpt2"])))
    assert model.config.decoder.way == "padded" and not model.decoder.packed


def test_a_model_that_cant_recompute_says_so(make_hf):
    decoder = HFDecoder.of(make_hf("qwen2"))
    type(decoder.hf_model).supports_gradient_checkpointing = False
    try:
        with pytest.raises(LmmError, match="recompute=True, but transformers' Qwen2ForCausalLM can't recompute"):
            decoder.recompute = True
        with pytest.raises(LmmError, match="recompute=True, but transformers' Qwen2ForCausalLM can't recompute"):
            HFDecoder.of(decoder.hf_model, recompute=True)
    finally:
        del type(decoder.hf_model).supports_gradient_checkpointing
    assert not decoder.recompute


def test_an_encoder_has_no_such_choice():
    with pytest.raises(LmmError, match="CLIPConfig: unknown keywords 'recompute'"):
        lb.encoders.clip.CLIPConfig(recompute=True)
    with pytest.raises(LmmError, match="unknown keys 'recompute'"):
        lb.config.LMMConfig.from_dict({**small().to_dict(), "encoder": {"type": "clip", "recompute": True}})


def small():
    from lmmblocks.encoders.clip import CLIPConfig

    return lb.config.LMMConfig(encoder=CLIPConfig(), decoder=TransformerConfig())
