"""The native decoder against ``LlamaForCausalLM`` with the same random weights."""

import pytest
import torch

from lmmblocks.spec import Segments
from lmmblocks.weights.sources import load_decoder
from lmmblocks.weights.systems.llava_hf import llama_from_hf, llama_to_hf

TOLERANCE = 1e-5
SHAPES = {
    "grouped queries": {},
    "one kv head": {"num_key_value_heads": 1},
    "multi-head": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 16},
    "theta and eps": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rms_norm_eps": 1e-3},
}
LENGTHS = (7, 1, 12, 4)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request, llama_config, randomised, tmp_path_factory):
    """transformers' model, and ours filled from its folder."""
    from transformers import LlamaForCausalLM

    model = randomised(LlamaForCausalLM(llama_config(**SHAPES[request.param])), 1)
    folder = tmp_path_factory.mktemp("decoder")
    model.save_pretrained(folder)
    config, state = load_decoder(folder)
    decoder = config.build()
    decoder.load_state_dict(state, assign=True)
    return decoder.eval(), model


@pytest.fixture(scope="module")
def sequences():
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, 400, (length,), generator=generator) for length in LENGTHS]


def packed_logits(decoder, sequences):
    ids = torch.cat(sequences)
    positions = torch.cat([torch.arange(len(ids)) for ids in sequences])
    segments = Segments.of([len(ids) for ids in sequences])
    return decoder.head(decoder(decoder.embed(ids), positions=positions, segments=segments))


def test_packed_logits_equal_transformers_one_sequence_at_a_time(pair, sequences):
    ours, model = pair
    with torch.no_grad():
        expected = torch.cat([model(ids[None]).logits[0] for ids in sequences])
        torch.testing.assert_close(packed_logits(ours, sequences), expected, atol=TOLERANCE, rtol=0)


def test_packed_equals_single(pair, sequences):
    ours, _ = pair
    with torch.no_grad():
        single = torch.cat([packed_logits(ours, [ids]) for ids in sequences])
        torch.testing.assert_close(packed_logits(ours, sequences), single, atol=TOLERANCE, rtol=0)


def test_cache_step_by_step_equals_the_whole_at_once(pair, sequences):
    """Sequences of unequal lengths side by side: first half of each, then one token each until all are read."""
    ours, model = pair
    cache = ours.new_cache(len(sequences))
    got = [[] for _ in sequences]
    read = [0] * len(sequences)
    with torch.no_grad():
        while any(done < len(ids) for done, ids in zip(read, sequences)):
            new = [len(ids) // 2 if done == 0 and len(ids) > 1 else min(1, len(ids) - done) for done, ids in zip(read, sequences)]
            rows = [ids[done : done + n] for ids, done, n in zip(sequences, read, new)]
            positions = torch.cat([torch.arange(done, done + n) for done, n in zip(read, new)])
            hidden = ours(ours.embed(torch.cat(rows)), positions=positions, segments=Segments.of(new), cache=cache)
            for index, part in enumerate(ours.head(hidden).split(new)):
                got[index].append(part)
            read = [done + n for done, n in zip(read, new)]
        for ids, parts in zip(sequences, got):
            torch.testing.assert_close(torch.cat(parts), model(ids[None]).logits[0], atol=TOLERANCE, rtol=0)


def test_gradients_equal_those_of_transformers(pair, sequences):
    ours, model = pair
    ours.requires_grad_(True).zero_grad()
    model.zero_grad()
    packed_logits(ours, sequences).square().mean().backward()
    torch.cat([model(ids[None]).logits[0] for ids in sequences]).square().mean().backward()
    expected = {name: value.grad for name, value in model.named_parameters()}
    assert expected.keys() == dict(ours.named_parameters()).keys()
    for name, value in ours.named_parameters():
        scale = max(1.0, expected[name].abs().max().item())
        torch.testing.assert_close(value.grad, expected[name], atol=TOLERANCE * scale, rtol=0, msg=name)


def test_a_tied_head_stays_one_parameter(pair):
    ours, model = pair
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == model.config.tie_word_embeddings


def test_llama_config_survives_both_directions(pair):
    ours, model = pair
    assert llama_from_hf(model.config.to_dict()) == ours.config
    assert llama_from_hf(llama_to_hf(ours.config)) == ours.config
    there, kept = type(model.config)(**llama_to_hf(ours.config)).to_dict(), model.config.to_dict()
    for key in (*llama_to_hf(ours.config), "rope_parameters"):
        if key not in ("rope_theta", "architectures"):
            assert there[key] == kept[key], key
