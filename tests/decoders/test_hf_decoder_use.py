"""A decoder of transformers as a part of a model: composed, trained, saved, loaded, hooked; and what it refuses."""

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn as nn

import lmmblocks as lb
from lmmblocks import ops
from lmmblocks.builder import build
from lmmblocks.config import LMMConfig
from lmmblocks.decoders.hf import HFDecoder, HFDecoderConfig
from lmmblocks.decoders.transformer import Transformer
from lmmblocks.spec import LmmError, Segments
from lmmblocks.weights.parts.hf_decoders import decoder_from_hf
from lmmblocks.weights.sources import load_decoder

LENGTHS = (7, 5)


def run(decoder, seed=0, **options):
    embeds = torch.randn(sum(LENGTHS), decoder.dim, generator=torch.Generator().manual_seed(seed))
    places = torch.cat([torch.arange(n) for n in LENGTHS])
    return decoder(embeds, positions=places, segments=Segments.of(LENGTHS), **options)


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def compose(make_pair, tiny_config, tiny_tokenizer):
    def make(kind, **changes):
        decoder, _ = make_pair(kind, **changes)
        torch.manual_seed(1)
        return build(tiny_config, decoder=decoder, tokenizer=tiny_tokenizer, weights="random")

    return make


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox", "phi", "gemma2", "mixtral", "mamba", "bloom"])
@pytest.mark.filterwarnings("ignore:.*runs padded")
def test_a_model_trains_saves_and_comes_back(compose, conversations, tmp_path, kind):
    model = compose(kind)
    batch = lb.collate(conversations, model)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0] and model.projector.linear_1.weight.grad.abs().max() > 0
    model.save(tmp_path / "out", format="native")
    again = lb.load(tmp_path / "out")
    assert isinstance(again.decoder, HFDecoder) and same(model, again)
    assert again.config.decoder == model.config.decoder and again.decoder.packed == model.decoder.packed
    assert (again.decoder.head_weight is again.decoder.table) == (model.decoder.head_weight is model.decoder.table)
    with torch.no_grad():
        assert torch.equal(again.logits(batch), model.logits(batch))


def test_loss_knows_scale_softcap_and_bias_of_the_decoder(compose, conversations):
    for kind in ("gemma2", "phi", "granite"):
        model = compose(kind)
        batch = lb.collate(conversations, model)
        with torch.no_grad():
            logits_RV = model.logits(batch)[batch.plan.target_rows.long()]
            expected = torch.nn.functional.cross_entropy(logits_RV, batch.plan.targets)
            assert abs(model.loss(batch) - expected) <= 1e-5 * expected


def test_a_model_of_transformers_is_a_decoder_as_it_is(make_hf, tiny_config, tiny_tokenizer):
    model = make_hf("gpt_neox")
    built = build(tiny_config, decoder=model, tokenizer=tiny_tokenizer, weights="random")
    assert isinstance(built.decoder, HFDecoder) and built.decoder.hf_model is model
    assert built.config.decoder == HFDecoderConfig.of(model) and built.max_length == 512


def test_a_folder_of_another_family_is_read_through_transformers(make_hf, tiny_config, tiny_tokenizer, tmp_path):
    twin = make_hf("gpt_neox", tie_word_embeddings=True)
    twin.save_pretrained(tmp_path / "neox")
    built = build(replace(tiny_config, tokenizer_source=None), decoder=tmp_path / "neox", tokenizer=tiny_tokenizer)
    assert isinstance(built.decoder, HFDecoder) and built.decoder.packed and same(built.decoder, twin)
    assert built.decoder.head_weight is built.decoder.table
    rows = torch.randn(1, 6, 32)
    with torch.no_grad():
        found = built.decoder(rows[0], positions=torch.arange(6), segments=Segments.of([6]))
        assert (built.decoder.head(found) - twin(inputs_embeds=rows).logits[0]).abs().max() <= 1e-5
    assert same(HFDecoder.of(tmp_path / "neox"), twin)


def test_missing_and_unexpected_tensors_of_a_folder_are_listed(make_hf, tmp_path):
    from safetensors.torch import load_file, save_file

    make_hf("gpt_neox").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["gpt_neox.extra"] = tensors.pop("gpt_neox.final_layer_norm.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LmmError, match=r"(?s)1 missing: gpt_neox.final_layer_norm.weight.*1 unexpected: gpt_neox.extra"):
        load_decoder(tmp_path)


def test_built_without_memory_it_is_tried_when_it_has_weights(make_hf):
    twin = make_hf("gemma2")
    config = HFDecoderConfig.of(twin)
    with torch.device("meta"):
        decoder = config.build()
    assert decoder.packed and "not tried yet" in decoder.explain() and decoder.embed_scale is None
    decoder.load_state_dict(twin.state_dict(), assign=True)
    with torch.device("cpu"):
        from lmmblocks.weights.files.buffers import compute_buffers

        compute_buffers(decoder, config.build)
    assert decoder.packed and "tried on two segments" in decoder.explain() and decoder.embed_scale == 32**0.5
    ids = torch.arange(5)
    with torch.no_grad():
        hidden = decoder(decoder.embed(ids), positions=ids, segments=Segments.of([5]))
        assert (decoder.head(hidden) - twin(ids[None]).logits[0]).abs().max() <= 1e-5


def test_computing_buffers_again_takes_no_memory_for_parameters(make_pair):
    from lmmblocks.weights.files.buffers import compute_buffers

    decoder, _ = make_pair("gpt_neox")
    with torch.device("meta"):
        empty = decoder.config.build()
    made = []
    compute_buffers(empty, lambda: made.append(decoder.config.build()) or made[0])
    assert all(parameter.is_meta for parameter in made[0].parameters())
    for (name, found), expected in zip(empty.named_buffers(), decoder.buffers()):
        assert torch.equal(found, expected), name


def test_rotary_frequencies_keep_their_precision(make_pair):
    decoder, _ = make_pair("qwen2")
    before = {name: buffer.clone() for name, buffer in decoder.named_buffers()}
    nn.Sequential(decoder).to(torch.bfloat16)
    assert decoder.table.dtype == torch.bfloat16
    assert before and all(torch.equal(before[name], buffer) for name, buffer in decoder.named_buffers())


class Pruning:
    """Keeps the rows that the last one looked at most; FastV's way."""

    requires = frozenset({"last_row_scores", "drop"})
    layers = (1,)

    def __call__(self, hidden, context):
        keep, lengths = torch.zeros(len(hidden), dtype=torch.bool), []
        for scores, start, count in zip(context.last_row_scores.split(LENGTHS), (0, 7), LENGTHS):
            keep[start + scores[:-1].topk(2).indices] = True
            keep[start + count - 1] = True
            lengths.append(3)
        return context.keep(hidden, keep, lengths)


class Doubling:
    requires = frozenset()
    layers = (0, 1)

    def __init__(self):
        self.seen = []

    def __call__(self, hidden, context):
        table = context.cos_TE
        self.seen.append((context.layer, tuple(hidden.shape), tuple(table.shape) if isinstance(table, torch.Tensor) else None))
        return hidden * 2


def native(decoder):
    made = Transformer(decoder_from_hf(decoder.config.hf))
    made.load_state_dict(decoder.state_dict())
    return made


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "gemma3_text"])
def test_hooks_do_what_they_do_in_the_native_decoder(make_pair, kind):
    decoder, _ = make_pair(kind)
    for hooks in ([Pruning()], [Doubling()], [Doubling(), Pruning()]):
        with torch.no_grad():
            found, expected = run(decoder, hooks=hooks), run(native(decoder), hooks=hooks)
        assert (found - expected).abs().max() <= 1e-5, hooks
    assert not found[1].any() or found[1:6].any(-1).sum() == 2


def test_a_hook_sees_each_layer_once_and_other_passes_are_left_alone(make_pair):
    for kind, table in (("qwen2", (12, 8)), ("gpt2", None)):
        decoder, _ = make_pair(kind)
        hook = Doubling()
        with torch.no_grad():
            plain, hooked, again = run(decoder), run(decoder, hooks=[hook]), run(decoder)
        assert hook.seen == [(layer, (12, 32), table) for layer in (0, 1)]
        assert torch.equal(plain, again) and (plain - hooked).abs().max() > 1e-2


def test_rows_dropped_by_a_hook_stay_away_with_a_cache_and_in_gpt2(make_pair):
    for kind in ("gpt2", "qwen2"):
        decoder, _ = make_pair(kind)
        cache = decoder.new_cache(2)
        with torch.no_grad():
            plain = run(decoder, hooks=[Pruning()])
            cached = run(decoder, hooks=[Pruning()], cache=cache)
        assert cache.lengths == [7, 5] and cache.stored(0) == [7, 5] and cache.stored(1) == [3, 3]
        assert (plain - cached).abs().max() <= 1e-5 and int(plain.any(-1).sum()) == 6


def test_hooks_and_recomputation_give_the_same_gradients(make_pair):
    gradients = []
    for recompute in (False, True):
        decoder, _ = make_pair("qwen2", recompute=recompute)
        run(decoder.train(), hooks=[Doubling(), Pruning()]).square().mean().backward()
        gradients.append([p.grad for p in decoder.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10 and all(torch.equal(a, b) for a, b in zip(*gradients))


@pytest.mark.parametrize("kind, why", [("mamba", "carries a state"), ("bloom", "attention interface"), ("gpt_oss", "s_aux")])
def test_what_runs_padded_says_so_once_and_refuses_what_needs_packing(make_hf, kind, why):
    with pytest.warns(UserWarning, match=f"{kind} runs padded: .*{why}") as seen:
        decoder = HFDecoder.of(make_hf(kind))
        run(decoder)
        assert not decoder.packed and decoder.hook_offers == frozenset()
    assert len([w for w in seen if "runs padded" in str(w.message)]) == 1
    with pytest.raises(LmmError, match=f"layer hooks need a decoder that runs packed, and {kind} runs padded"):
        run(decoder, hooks=[Doubling()])
    with pytest.raises(LmmError, match="kv_end"):
        run(decoder, kv_end=torch.arange(1, 13))


def test_the_way_can_be_chosen(make_hf):
    with pytest.raises(LmmError, match="mamba can't run packed: it carries a state"):
        HFDecoder.of(make_hf("mamba"), way="packed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = HFDecoder.of(make_hf("gpt2"), way="padded")
    assert not decoder.packed and "way='padded' says so" in decoder.explain()
    assert HFDecoder.of(make_hf("gpt2"), way="packed").packed


def test_frequencies_that_depend_on_the_batch_are_noted(make_hf):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert "note: rope_type 'dynamic' chooses its frequencies by the longest" in HFDecoder.of(make_hf("qwen2", rope_parameters=rope)).explain()
    assert "note" not in HFDecoder.of(make_hf("qwen2")).explain()


def test_a_model_behind_packed_attention_alone_is_refused_until_it_gets_its_own_back(make_hf):
    twin = make_hf("gpt2")
    model = HFDecoder.of(copy.deepcopy(twin)).hf_model
    ids = torch.arange(5)[None]
    with pytest.raises(LmmError, match=r"without its segments: .*set_attn_implementation\('sdpa'\)"):
        model(ids)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert (model(ids).logits - twin(ids).logits).abs().max() <= 1e-5


def test_a_leak_between_segments_is_noticed(make_hf):
    model = make_hf("qwen2")
    layer = model.model.layers[0]
    layer.input_layernorm.register_forward_hook(lambda module, args, output: output + output.roll(1, 1) * (output.shape[1] > 6))
    with pytest.warns(UserWarning, match="in a trial, packed rows differed from single ones by"):
        assert not HFDecoder.of(model).packed


def test_attention_dropout_is_refused_in_training_only(make_hf):
    decoder = HFDecoder.of(make_hf("gpt2", attn_pdrop=0.1))
    run(decoder.eval())
    with pytest.raises(LmmError, match="dropout 0.1 of attention weights: set it to 0"):
        run(decoder.train())


def test_models_that_are_no_decoders_are_refused(make_hf):
    with pytest.raises(LmmError, match="lets rows see the rows after them"):
        HFDecoder.of(make_hf("bert", num_key_value_heads=4))
    with pytest.raises(LmmError, match="GPT2Model is not a language model with a head"):
        HFDecoder.of(make_hf("gpt2").transformer)
    with pytest.raises(LmmError, match="expected a model of transformers, a folder or a hub id, found 'Linear'"):
        HFDecoder.of(nn.Linear(2, 2))


def test_the_config_survives_json_and_refuses_what_it_can_not_build(make_hf, tiny_config):
    config = replace(tiny_config, decoder=HFDecoderConfig.of(make_hf("mamba")))
    again = LMMConfig.from_json(config.to_json())
    assert again == config and json.loads(config.to_json())["decoder"]["type"] == "hf"
    shape = HFDecoderConfig({"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 3, "vocab_size": 9, "n_positions": 17})
    assert (shape.dim, shape.layers, shape.vocab, shape.max_positions) == (32, 3, 9, 17)
    for values, message in [
        (dict(hf={}), "lacks 'model_type'"),
        (dict(hf={"model_type": "gpt2"}, way="fast"), "way must be one of auto, packed, padded, found 'fast'"),
        (dict(hf={"model_type": "gpt2", "x": object()}), "JSON can't"),
    ]:
        with pytest.raises(LmmError, match=message):
            HFDecoderConfig(**values)
    with pytest.raises(LmmError, match="no model_type 'gptt2'; did you mean 'gpt2'"):
        HFDecoderConfig({"model_type": "gptt2"}).build()
    with pytest.raises(LmmError, match="no causal language model of 'clip'"):
        HFDecoderConfig({"model_type": "clip"}).build()


@pytest.mark.parametrize("rows", [5, 2500])
def test_loss_with_a_bias_equals_the_formula(rows):
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((rows, 4), (9, 4), (9,)))
    targets = torch.randint(0, 9, (rows,))
    for softcap in (None, 2.0):
        found = ops.linear_cross_entropy(hidden, weight, targets, softcap=softcap, bias_V=bias)
        logits = ops.softcapped(hidden @ weight.T + bias, softcap)
        expected = torch.nn.functional.cross_entropy(logits, targets)
        torch.testing.assert_close(found.double(), expected)
        for a, b in zip(*(torch.autograd.grad(value, (hidden, weight, bias)) for value in (found, expected))):
            torch.testing.assert_close(a, b)
