"""Every native decoder family against transformers' own model: two layers, random weights, fp32.

Windows are shorter than the sequences, soft limits low enough to bite, and sequences longer than what rotary scaling calls the first training.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from lmmblocks.spec import Segments
from lmmblocks.weights.parts.hf_decoders import canonical, decoder_from_hf, decoder_to_hf
from lmmblocks.weights.parts.hf_families import FAMILIES
from lmmblocks.weights.sources import load_decoder

TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
LENGTHS = (29, 1, 18, 6)
PROMPTS, NEW_TOKENS = (13, 4, 20), 9
SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SHAPE |= dict(vocab_size=120, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
LONGROPE = {"rope_type": "longrope", "rope_theta": 500.0}
SHORT, LONG = [1.0, 1.1, 1.2, 1.5], [1.0, 2.0, 4.0, 8.0]
GEMMA = dict(head_dim=16, sliding_window=5, query_pre_attn_scalar=11)
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
CASES = {
    "vicuna": ("llama", {"num_key_value_heads": 4}),
    "llama 3.2, tied": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "mistral, window": ("mistral", {"sliding_window": 5, "head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "phi3, window": ("phi3", {"sliding_window": 7}),
    "phi3, longrope": (
        "phi3",
        {"rope_parameters": {**LONGROPE, "short_factor": SHORT, "long_factor": LONG}, "original_max_position_embeddings": 16},
    ),
    "phi4 mini": (
        "phi3",
        {
            "rope_parameters": {**LONGROPE, "short_factor": SHORT[:3], "long_factor": LONG[:3], "partial_rotary_factor": 0.75},
            "original_max_position_embeddings": 16,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": GEMMA3_ROPE}),
}


def hf_model(kind, changes, randomised):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SHAPE, **changes})
    model = randomised(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), 1)
    if kind.startswith("gemma"):
        for name, value in model.named_parameters():
            if "norm" in name:
                value.data -= 1
    return model


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request, randomised, tmp_path_factory):
    """Name of the case, transformers' model, and ours filled from the folder that it wrote."""
    model = hf_model(*CASES[request.param], randomised)
    folder = tmp_path_factory.mktemp("decoder")
    model.save_pretrained(folder)
    config, state = load_decoder(folder)
    decoder = config.build()
    decoder.load_state_dict(state, assign=True)
    return request.param, decoder.eval(), model


@pytest.fixture(scope="module")
def sequences():
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, 120, (length,), generator=generator) for length in LENGTHS]


def packed_logits(decoder, sequences):
    ids = torch.cat(sequences)
    positions = torch.cat([torch.arange(len(ids)) for ids in sequences])
    segments = Segments.of([len(ids) for ids in sequences])
    return decoder.head(decoder(decoder.embed(ids), positions=positions, segments=segments))


def hf_logits(model, sequences):
    return torch.cat([model(ids[None]).logits[0] for ids in sequences])


def largest(difference):
    return difference.abs().max().item()


@torch.no_grad()
def test_packed_logits_equal_transformers_one_sequence_at_a_time(pair, sequences, record_parity):
    case, ours, model = pair
    error = largest(packed_logits(ours, sequences) - hf_logits(model, sequences))
    record_parity(f"decoder, {case}", type(model).__name__, "logits, max abs difference", error)
    assert error <= TOLERANCE, error


@torch.no_grad()
def test_packed_equals_single(pair, sequences):
    _, ours, _ = pair
    single = torch.cat([packed_logits(ours, [ids]) for ids in sequences])
    error = largest(packed_logits(ours, sequences) - single)
    assert error <= TOLERANCE, error


def test_gradients_equal_those_of_transformers(pair, sequences, record_parity):
    case, ours, model = pair
    ours.requires_grad_(True).zero_grad()
    model.zero_grad()
    packed_logits(ours, sequences).square().mean().backward()
    hf_logits(model, sequences).square().mean().backward()
    expected = {name: value.grad for name, value in model.named_parameters()}
    assert expected.keys() == dict(ours.named_parameters()).keys()
    errors = {name: largest(p.grad - expected[name]) / largest(expected[name]) for name, p in ours.named_parameters()}
    record_parity(f"decoder, {case}", type(model).__name__, "gradients, max relative difference", max(errors.values()))
    assert max(errors.values()) <= GRADIENT_TOLERANCE, errors


@torch.no_grad()
def greedy(decoder, prompts):
    """Tokens that follow prompts read side by side after one cache."""
    cache, found = decoder.new_cache(len(prompts)), [[] for _ in prompts]
    rows = prompts
    for _ in range(NEW_TOKENS):
        positions = torch.cat([torch.arange(len(new)) + read for new, read in zip(rows, cache.lengths)])
        segments = Segments.of([len(new) for new in rows])
        hidden = decoder(decoder.embed(torch.cat(rows)), positions=positions, segments=segments, cache=cache)
        tokens = decoder.head(hidden[segments.cu_q[1:].long() - 1]).argmax(-1)
        rows = [token[None] for token in tokens]
        for answer, token in zip(found, tokens.tolist()):
            answer.append(token)
    return found


@torch.no_grad()
def test_greedy_tokens_behind_a_cache_equal_those_of_transformers(pair, record_parity):
    case, ours, model = pair
    generator = torch.Generator().manual_seed(8)
    prompts = [torch.randint(3, 120, (length,), generator=generator) for length in PROMPTS]
    options = dict(do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, eos_token_id=None, use_cache=True)
    expected = [model.generate(ids[None], **options)[0, len(ids) :].tolist() for ids in prompts]
    found = greedy(ours, prompts)
    wrong = sum(a != b for ours, theirs in zip(found, expected) for a, b in zip(ours, theirs))
    record_parity(f"decoder, {case}", type(model).__name__, "greedy tokens that differ", wrong)
    assert found == expected


@torch.no_grad()
def test_pieces_behind_a_cache_equal_the_whole_at_once(pair, sequences):
    """Logits of each sequence's last row, after reading it in pieces of unequal sizes beside the others."""
    _, ours, _ = pair
    cache, sizes = ours.new_cache(len(sequences)), [(7, 1, 3, 2), (1, 0, 9, 0), (8, 0, 1, 3), (13, 0, 5, 1)]
    for new in sizes:
        rows = [ids[read : read + n] for ids, read, n in zip(sequences, cache.lengths, new)]
        positions = torch.cat([torch.arange(n) + read for n, read in zip(new, cache.lengths)])
        got = ours(ours.embed(torch.cat(rows)), positions=positions, segments=Segments.of(new), cache=cache)
    expected = torch.cat([packed_logits(ours, [ids])[len(ids) - n :] for ids, n in zip(sequences, new)])
    error = largest(ours.head(got) - expected)
    assert error <= TOLERANCE, error


def test_config_survives_both_directions(pair):
    _, ours, model = pair
    assert decoder_from_hf(model.config.to_dict()) == ours.config
    written = decoder_to_hf(ours.config)
    assert canonical(decoder_from_hf(json.loads(json.dumps(written)))) == canonical(ours.config)


@torch.no_grad()
def test_folder_that_we_write_is_transformers_model_bit_by_bit(pair, sequences, tmp_path):
    from transformers import AutoModelForCausalLM

    _, ours, model = pair
    own = dict(ours.named_parameters())
    save_file({name: value.detach().clone() for name, value in own.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(decoder_to_hf(ours.config)))
    _, state = load_decoder(tmp_path)
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32).eval()
    theirs = model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in again.state_dict().items())
    error = largest(hf_logits(again, sequences) - hf_logits(model, sequences))  # memory may be aligned otherwise: not bitwise
    assert error <= TOLERANCE, error


@pytest.mark.parametrize("kind", FAMILIES)
def test_keys_left_out_have_the_defaults_of_transformers(kind):
    """The classes of transformers are asked, not a list in this file."""
    from transformers import AutoConfig

    assert decoder_from_hf({"model_type": kind}) == decoder_from_hf(AutoConfig.for_model(kind).to_dict())
