"""Any language model of transformers as a decoder: rows, loss and gradients are those of transformers for each conversation alone."""

import pytest
import torch
import torch.nn.functional as F

from lmmblocks import ops
from lmmblocks.decoders.hf import HFDecoder
from lmmblocks.spec import Decoder, Segments

LENGTHS = (9, 1, 6)
PACKED = "gpt2 opt gpt_neox qwen2 qwen3 mistral gemma2 gemma3_text phi olmo2 cohere granite mixtral qwen3_moe deepseek_v3".split()
PADDED = "bloom gptj falcon mamba jamba gpt_oss".split()


@pytest.fixture(scope="module")
def pair(make_pair):
    made = {}

    def get(kind):
        return made.setdefault(kind, None) or made.update({kind: make_pair(kind)}) or made[kind]

    return get


def sequences(vocab=400, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocab, (n,), generator=generator) for n in lengths]


def run(decoder, ids, **options):
    lengths = [len(each) for each in ids]
    places = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])
    return decoder(decoder.embed(torch.cat(ids)), positions=places, segments=Segments.of(lengths), **options)


def worst(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected))


@pytest.mark.parametrize("kind", PACKED + PADDED)
def test_packed_logits_equal_each_sequence_alone_in_transformers(pair, kind, record_parity):
    decoder, twin = pair(kind)
    assert isinstance(decoder, Decoder)
    if kind != "gptj":  # whether its attention can be ours depends on the version of transformers
        assert decoder.packed == (kind in PACKED), decoder.explain()
    ids = sequences()
    with torch.no_grad():
        found = decoder.head(run(decoder, ids)).split(LENGTHS)
        expected = [twin(each[None]).logits[0] for each in ids]
    difference = worst(found, expected)
    size = max(each.abs().max().item() for each in expected)
    record_parity(f"decoders.hf {'packed' if decoder.packed else 'padded'}", type(twin).__name__, "logits, max abs diff", difference)
    assert size > 0.5 and difference <= 1e-5 * max(1.0, size), (difference, size)


@pytest.mark.parametrize("kind", PACKED + PADDED)
def test_loss_and_gradients_equal_those_of_transformers(pair, kind, record_parity):
    decoder, twin = pair(kind)
    ids = sequences()
    last = torch.tensor(LENGTHS).cumsum(0) - 1
    rows = torch.tensor([row for row in range(sum(LENGTHS)) if row not in last.tolist()])
    targets = torch.cat([each[1:] for each in ids])
    loss = ops.linear_cross_entropy(run(decoder, ids)[rows], decoder.head_weight, targets, softcap=decoder.logit_softcap, bias_V=decoder.head_bias)
    expected = torch.cat([F.cross_entropy(twin(each[None]).logits[0, :-1], each[1:], reduction="none") for each in ids]).mean()
    assert abs(loss - expected) <= 1e-5 * expected, (loss, expected)
    decoder.zero_grad()
    twin.zero_grad()
    loss.backward()
    expected.backward()
    ours, theirs = dict(decoder.named_parameters()), dict(twin.named_parameters())
    assert ours.keys() == theirs.keys() and len(ours) > 10
    relative = {
        name: ((ours[name].grad - value.grad).norm() / value.grad.norm().clamp_min(1e-3)).item()
        for name, value in theirs.items()
        if value.grad is not None
    }
    assert all((ours[name].grad is None) == (value.grad is None) for name, value in theirs.items())
    name = max(relative, key=lambda key: relative[key])
    record_parity("decoders.hf", type(twin).__name__, "gradients, max rel diff", relative[name])
    assert relative[name] <= 1e-4, (name, relative[name])


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "phi", "gptj", "mamba"])
def test_state_dict_is_that_of_the_model(pair, kind):
    decoder, twin = pair(kind)
    state, expected = decoder.state_dict(), twin.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
    assert (decoder.head_weight is decoder.table) == twin.config.tie_word_embeddings
    assert (decoder.vocab, decoder.dim) == tuple(decoder.table.shape)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gptj"])
def test_rows_are_where_positions_say(pair, kind):
    decoder, twin = pair(kind)
    (ids,) = sequences(lengths=(7,))
    places = torch.tensor([3, 4, 5, 9, 10, 11, 30])
    with torch.no_grad():
        found = decoder.head(decoder(decoder.embed(ids), positions=places, segments=Segments.of([7])))
        expected = twin(inputs_embeds=decoder.embed(ids)[None], position_ids=places[None]).logits[0]
        plain = decoder.head(run(decoder, [ids]))
    assert worst([found], [expected]) <= 1e-5 and worst([found], [plain]) > 1e-2


def test_text_rows_are_scaled_table_rows_where_the_model_scales_them(pair):
    ids = torch.arange(9)
    for kind, scale in {"gemma2": 32**0.5, "gemma3_text": 32**0.5, "qwen2": None, "granite": None}.items():
        decoder, _ = pair(kind)
        assert decoder.embed_scale == scale
        torch.testing.assert_close(decoder.embed(ids), decoder.table[ids] * (scale or 1.0))


def test_scales_of_logits_are_the_numbers_of_the_config(pair):
    assert pair("cohere")[0]._findings().logit_scale == 0.3
    assert pair("granite")[0]._findings().logit_scale == 0.5
    assert pair("gemma2")[0].logit_softcap == 30.0


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "mamba"])
def test_empty_segments_and_slack_rows_change_nothing(pair, kind):
    decoder, _ = pair(kind)
    ids = sequences(lengths=(4, 3))
    places = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 0])
    with torch.no_grad():
        embeds = torch.cat([decoder.embed(torch.cat(ids)), torch.randn(2, decoder.dim)])
        found = decoder(embeds, positions=places, segments=Segments.of([0, 4, 0, 3]))
        expected = run(decoder, ids)
    assert found.shape == embeds.shape and worst([found[:7]], [expected]) <= 1e-5


def test_packed_equals_padded(make_pair):
    for kind in ("gpt2", "gemma2", "qwen3_moe"):
        (packed, _), (padded, _) = make_pair(kind), make_pair(kind, way="padded")
        assert packed.packed and not padded.packed
        with torch.no_grad():
            assert worst([run(packed, sequences())], [run(padded, sequences())]) <= 1e-5


def test_recomputed_layers_give_equal_gradients(make_pair):
    gradients = []
    for recompute in (False, True):
        decoder, _ = make_pair("qwen2", recompute=recompute)
        decoder.train()
        run(decoder, sequences()).square().mean().backward()
        gradients.append([p.grad for p in decoder.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10 and all(torch.equal(a, b) for a, b in zip(*gradients))


def test_rows_may_see_ahead_where_kv_end_says_so(make_pair):
    decoder, twin = make_pair("qwen2")
    (ids,) = sequences(lengths=(8,))
    ends = torch.tensor([1, 5, 5, 5, 5, 6, 7, 8], dtype=torch.int32)
    visible = torch.arange(8)[None, :] < ends[:, None]
    mask = torch.zeros(8, 8).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        found = decoder.head(run(decoder, [ids], kv_end=ends))
        expected = twin(ids[None], attention_mask=mask[None, None]).logits[0]
    assert worst([found], [expected]) <= 1e-5


def test_hf_decoder_of_a_wrapped_model_is_the_same_decoder(pair):
    decoder, _ = pair("gpt2")
    again = HFDecoder.of(decoder.hf_model)
    with torch.no_grad():
        assert again.packed and torch.equal(run(again, sequences()), run(decoder, sequences()))
