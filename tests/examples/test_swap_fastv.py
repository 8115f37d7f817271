"""FastV's class against the paper's algorithm, carried out on transformers' Llama with whole attention maps."""

import pytest
import torch

from examples.swap import fastv
from lmmblocks.config import LMMConfig
from lmmblocks.data.collate import collate
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def config():
    return LMMConfig(
        encoder=CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=56, patch=14),
        decoder=TransformerConfig(dim=24, layers=4, heads=4, kv_heads=2, ffn_dim=32, vocab=400, max_positions=256),
    )


def llama_of(decoder):
    """transformers' Llama with the same weights, which shows its attention maps."""
    from transformers import LlamaConfig, LlamaForCausalLM

    own = decoder.config
    shape = LlamaConfig(
        hidden_size=own.dim,
        num_hidden_layers=own.layers,
        num_attention_heads=own.heads,
        num_key_value_heads=own.kv_heads,
        intermediate_size=own.ffn_dim,
        vocab_size=own.vocab,
        rms_norm_eps=own.eps,
        attn_implementation="eager",
    )
    twin = LlamaForCausalLM(shape).eval()
    twin.load_state_dict(decoder.state_dict())
    return twin.model


@torch.no_grad()
def paper(llama, embeds, is_image, layer, ratio):
    """Hidden states of one sequence, and the rows that are left: rank the image rows by the last token's mean attention, drop the lowest."""
    seen = llama(inputs_embeds=embeds[None], output_attentions=True, output_hidden_states=True, use_cache=False)
    phi = seen.attentions[layer - 1][0].mean(0)[-1]
    image = is_image.nonzero().flatten().tolist()
    dropped = sorted(image, key=lambda row: phi[row].item())[: round(ratio * len(image))]
    left = torch.tensor([row for row in range(len(embeds)) if row not in dropped])
    x = seen.hidden_states[layer][:, left]
    causal = torch.full((len(left), len(left)), -torch.inf).triu(1)[None, None]
    for own in llama.layers[layer:]:
        x = own(x, attention_mask=causal, position_ids=left[None], position_embeddings=llama.rotary_emb(x, left[None]))
    return llama.norm(x)[0], left


@pytest.mark.parametrize("layer, ratio", [(2, 0.5), (1, 0.75), (3, 1.0)])
def test_rows_behind_the_drop_are_the_papers(make_tiny_model, config, conversations, record_parity, layer, ratio):
    model = make_tiny_model(config=config, hooks=[fastv.FastV(layer, ratio)])
    batch, llama = collate(conversations, model), llama_of(model.decoder)
    with torch.no_grad():
        hidden = model(batch)
        model.hooks.entries = ()
        plain = model.read(model.encode_images(batch.pixels), batch.plan)
        rows, _ = model.encode(batch.pixels)
    table = model.decoder.table.detach()
    embeds = torch.where((batch.plan.source < 0)[:, None], rows[(-batch.plan.source - 1).clamp_min(0)], table[batch.plan.source.clamp_min(0)])
    start, worst = 0, 0.0
    for length in batch.plan.lengths:
        own = slice(start, start + length)
        expected, left = paper(llama, embeds[own], batch.plan.source[own] < 0, layer, ratio)
        worst = max(worst, (hidden[own][left] - expected).abs().max().item())
        gone = torch.ones(length).index_fill(0, left, 0).bool()
        assert gone.sum() == round(ratio * (batch.plan.source[own] < 0).sum().item()) and not hidden[own][gone].any()
        start += length
    assert worst < TOLERANCE
    assert (hidden - plain).abs().max() > 1e-3
    record_parity("FastV (examples/swap)", "the paper's algorithm on transformers' Llama", "hidden states, max abs diff", worst)


def test_layers_behind_the_drop_cache_what_is_left_and_answers_follow(make_tiny_model, config, colour_picture):
    model = make_tiny_model(config=config, hooks=[fastv.FastV(2, 0.5)])
    seen, make = [], model.decoder.new_cache
    model.decoder.new_cache = lambda sequences: seen.append(make(sequences)) or seen[-1]
    answer = model.generate("What is it?", colour_picture(0), max_new_tokens=4, stop=())
    stored = [seen[0].stored(layer)[0] for layer in range(4)]
    assert stored[0] == stored[1] and stored[2] == stored[3] == stored[0] - 8 and isinstance(answer, str)


def test_it_runs(capsys):
    fastv.main()
    assert "of the image 64" in capsys.readouterr().out
