"""Projectors swapped in by a word: what they need of the encoder, and the instruction on its way from the conversation to the Q-Former."""

import pickle
from dataclasses import replace

import pytest
import torch

from lmmblocks.builder import build
from lmmblocks.config import Block
from lmmblocks.data.collate import collate, read_samples
from lmmblocks.encoders.fused import FusedConfig
from lmmblocks.projectors import SVA, TokenPacker
from lmmblocks.projectors.instruction_tokens import Instruction, InstructionTokens, image_instructions
from lmmblocks.spec import LmmError, Sample

BERT = {"queries": 3, "dim": 8, "layers": 2, "heads": 2, "mlp_dim": 8}
ASKING = Block("instruct_qformer", {**BERT, "vocab": 400, "positions": 40})


@pytest.fixture(scope="module")
def asking(make_tiny_model):
    return make_tiny_model(projector=ASKING)


def about(picture, *contents):
    roles = ("user", "assistant")
    return Sample([{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)], [picture] if "<image>" in contents[0] else [])


def test_token_packer_takes_the_number_of_layers_from_the_encoder(tiny_config):
    encoder = replace(tiny_config.encoder, select=(1, 2, -1))
    model = build(replace(tiny_config, encoder=encoder), projector=Block("token_packer", {"dim": 8, "heads": 2}), weights="random")
    assert isinstance(model.projector, TokenPacker) and model.projector.layers == 3
    assert model.encode(torch.zeros(2, 3, 28, 28))[1] == (1, 1)


def test_sva_takes_widths_and_windows_from_the_towers(tiny_config, colour_picture):
    towers = (tiny_config.encoder, replace(tiny_config.encoder, dim=8, image_size=56))
    model = build(replace(tiny_config, encoder=FusedConfig(towers, combine="list")), projector=Block("sva", {"dim": 8, "heads": 2}), weights="random")
    assert isinstance(model.projector, SVA) and model.projector.windows == (1, 2)
    pixels, grids = model.encoder.preprocess.batch([colour_picture(0), colour_picture(1)])
    assert model.encode(pixels)[1] == (4, 4)


def test_the_instruction_is_the_message_that_shows_the_image():
    turns = ("<image>\nWhat is it?", "A cat.", "And <image> these <image>?", "Dogs.", "Sure?", "Yes.")
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    assert image_instructions(messages) == ["What is it?", "And  these ?", "And  these ?"]


def test_collate_fills_in_what_is_asked_about_each_image(asking, tiny_model, conversations, tiny_tokenizer):
    batch = collate(conversations, pickle.loads(pickle.dumps(asking.input_spec)))
    texts = [text for sample in conversations for text in image_instructions(sample.messages)]
    ids = [tiny_tokenizer(text)["input_ids"] for text in texts]
    assert len(ids) == len(batch.grids) == 4
    assert batch.instruction.ids.tolist() == sum(ids, []) and batch.instruction.segments.lengths_q == tuple(map(len, ids))
    assert collate(conversations, tiny_model).instruction is None
    moved = batch.to("meta").instruction
    assert moved.ids.is_meta and moved.segments.cu_q.is_meta


def test_image_rows_depend_on_what_is_asked(asking, colour_picture):
    picture = colour_picture(0)
    rows = [
        asking.encode(batch.pixels, instruction=batch.instruction)[0]
        for batch in (collate([about(picture, f"<image>\n{text}", "Yes")], asking) for text in ("Is it red?", "Is it red?", "How many?"))
    ]
    assert torch.equal(rows[0], rows[1]) and not torch.allclose(rows[0], rows[2], atol=1e-3)


def test_a_batch_gives_the_losses_of_its_samples(asking, conversations):
    together = asking.loss(collate(conversations, asking), reduction="none")
    alone = torch.cat([asking.loss(collate([sample], asking), reduction="none") for sample in conversations])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)


def test_micro_batches_keep_the_instruction_of_their_images(asking, conversations):
    read = read_samples(conversations, asking)
    for first, last in ((0, 2), (1, 2), (2, 4)):
        part, expected = read.batch_of(first, last).instruction, collate(conversations[first:last], asking).instruction
        assert part.ids.tolist() == expected.ids.tolist() and part.positions.tolist() == expected.positions.tolist()
        assert part.segments.lengths_q == expected.segments.lengths_q


def test_generation_reads_the_instruction(asking, colour_picture):
    prompts = ["What color is it?", "Is it asleep?"]
    pictures = [[colour_picture(0)], [colour_picture(1)]]
    together = asking.generate(prompts, pictures, max_new_tokens=6)
    alone = [asking.generate(prompt, own, max_new_tokens=6) for prompt, own in zip(prompts, pictures)]
    assert together == alone
    other = [asking.generate(prompts[0], pictures[0], max_new_tokens=6) for _ in range(2)]
    assert other == [alone[0], alone[0]]


def test_a_tokenizer_that_does_not_fit_is_refused_when_composed(tiny_config, tiny_tokenizer):
    block = Block("instruct_qformer", {**BERT, "vocab": 100})
    with pytest.raises(LmmError, match=f"instruction's tokenizer has {len(tiny_tokenizer)} ids, the projector's table has 100 rows"):
        build(tiny_config, projector=block, tokenizer=tiny_tokenizer, weights="random")


def test_a_tokenizer_of_its_own_is_read_when_it_is_needed(tiny_tokenizer, tmp_path):
    tokens = InstructionTokens(str(tmp_path / "later"), vocab=400, max_length=3)
    tiny_tokenizer.save_pretrained(tmp_path / "later")
    assert tokens("Is it asleep?") == tiny_tokenizer("Is it asleep?")["input_ids"][:3]


def test_instructions_are_packed_and_picked():
    packed = Instruction.of([[1, 2, 3], [], [4]])
    assert packed.positions.tolist() == [0, 1, 2, 0] and packed.segments.cu_q.tolist() == [0, 3, 3, 4]
    assert packed.select([2, 0]).ids.tolist() == [4, 1, 2, 3]


SAVED = [ASKING, Block("resampler", {"grid": 3, "heads": 2}), Block("c_abstractor", {"grid": [2, 1], "dim": 8})]


@pytest.mark.parametrize("block", SAVED, ids=lambda block: block.type)
def test_a_saved_model_answers_as_it_did(block, make_tiny_model, conversations, tmp_path):
    from lmmblocks import load

    model = make_tiny_model(projector=block)
    model.save(tmp_path / "saved", format="native")
    again = load(tmp_path / "saved")
    assert again.projector.options == model.projector.options
    batch = collate(conversations, model)
    assert torch.equal(again.logits(collate(conversations, again)), model.logits(batch))


def test_cutting_an_instruction_leaves_the_models_tokenizer_as_it_is(tiny_tokenizer):
    text = "What is to the left of the red circle, and how many are there?"
    whole = tiny_tokenizer(text)["input_ids"]
    cut = InstructionTokens(tiny_tokenizer, len(tiny_tokenizer), 5)(text)
    assert len(cut) == 5 < len(whole)
    assert tiny_tokenizer(text)["input_ids"] == whole
