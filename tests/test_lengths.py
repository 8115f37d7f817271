"""No entry point lets a sequence grow beyond the decoder's positions: composing, training, batches, answers."""

import dataclasses
import warnings

import pytest
from PIL import Image

import lmmblocks as lb
from lmmblocks.decoders.rotary import LinearRope
from lmmblocks.generate import Conversation
from lmmblocks.lmm import LMM
from lmmblocks.spec import LmmError
from lmmblocks.train import Stage, train

POSITIONS = 128
LONG = lb.Sample([{"role": "user", "content": "cat " * 200}, {"role": "assistant", "content": "Black"}])
SHORT = lb.Sample([{"role": "user", "content": "cat"}, {"role": "assistant", "content": "Black"}])


def native(config, **changes):
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, max_positions=POSITIONS, **changes))


@pytest.fixture(params=["native", "window", "rope scaling", "hf packed", "hf padded"])
def model(request, make_tiny_model, tiny_config):
    if not request.param.startswith("hf"):
        changes = {"window": {"window": 16}, "rope scaling": {"rope_scaling": LinearRope(2.0)}}.get(request.param, {})
        return make_tiny_model(config=native(tiny_config, **changes))
    from transformers import GPT2Config, GPT2LMHeadModel

    values = dict(
        n_embd=24,
        n_layer=2,
        n_head=4,
        vocab_size=400,
        n_positions=POSITIONS,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    decoder = GPT2LMHeadModel(GPT2Config(**values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        way = "padded" if request.param == "hf padded" else "auto"
        return make_tiny_model(config=tiny_config, decoder=lb.decoders.hf.HFDecoder.of(decoder, way=way))


def stage(**changes):
    return Stage(name="s", train={"decoder": 1e-4}, batch_size=1, max_steps=1, **changes)


ABOVE = f"above the {POSITIONS} positions of the decoder"


@pytest.mark.parametrize("length", [POSITIONS + 1, 5000])
def test_a_length_above_the_positions_is_refused_wherever_it_is_set(model, tmp_path, length):
    with pytest.raises(LmmError, match=f"max_length is {length}, {ABOVE}"):
        lb.collate([SHORT], model, max_length=length)
    with pytest.raises(LmmError, match=f"stage 's': max_length is {length}, {ABOVE}"):
        train(model, stage(max_length=length), [SHORT], tmp_path / "run")
    with pytest.raises(LmmError, match=f"max_length {length} is above the decoder's max_positions {POSITIONS}"):
        LMM(model.encoder, model.projector, model.decoder, max_length=length)
    model.max_length = length
    with pytest.raises(LmmError, match=f"the model's max_length is {length}, {ABOVE}"):
        lb.collate([SHORT], model)
    with pytest.raises(LmmError, match=f"the model's max_length is {length}, {ABOVE}"):
        train(model, stage(), [SHORT], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("composed", [False, True])
def test_without_a_length_of_its_own_the_positions_are_the_limit(model, composed):
    if composed:
        model = LMM(model.encoder, model.projector, model.decoder, tokenizer=model.tokenizer)
    with pytest.raises(LmmError, match=f"rows .*max_length is {POSITIONS}"):
        lb.collate([LONG], model)
    plan = lb.collate([LONG], model, truncate="right").plan
    assert plan.lengths == (POSITIONS,)
    assert lb.collate([LONG], model, truncate="right", max_length=POSITIONS).plan.lengths == (POSITIONS,)


def test_an_answer_has_to_fit_behind_its_prompt(model):
    rows = lb.collate([lb.Sample(SHORT.messages[:1])], model, add_generation_prompt=True).plan.total_rows
    model.generate("cat", max_new_tokens=POSITIONS - rows)
    for prompts in ("cat", ["cat", "cat cat"]):
        with pytest.raises(LmmError, match=f"together more than the decoder's {POSITIONS} positions"):
            model.generate(prompts, max_new_tokens=POSITIONS - rows + 1)
    chat = Conversation(model)
    chat.ask("<image>\ncat", Image.new("RGB", (9, 9)), max_new_tokens=4)
    with pytest.raises(LmmError, match="the conversation has .* rows and its answer"):
        chat.ask("cat", max_new_tokens=POSITIONS - rows)


@pytest.mark.parametrize("value", ["128", 0, -3, 1.5, True])
def test_lengths_that_are_no_number_are_refused(model, tiny_config, value):
    with pytest.raises(LmmError, match="max_length must be"):
        lb.collate([SHORT], model, max_length=value)
    with pytest.raises(LmmError, match="max_length must be"):
        LMM(model.encoder, model.projector, model.decoder, max_length=value)
    with pytest.raises(LmmError, match="max_length must be"):
        dataclasses.replace(tiny_config, max_length=value)
