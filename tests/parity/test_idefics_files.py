"""IDEFICS read with all its files, and asked: ids and pixels as its processor makes them, the formats, the released size, what is refused."""

import copy

import pytest
import torch

import lmmblocks as lb
from lmmblocks.chat import written
from lmmblocks.chat.idefics import END, FAKE, IDEFICS, IDEFICS_BASE
from lmmblocks.spec import LmmError, Sample
from lmmblocks.weights.systems.idefics import ADDED_ROWS, LAYOUT, idefics_from_hf


@pytest.fixture(scope="module")
def complete(hf_idefics, tiny_tokenizer, tmp_path_factory):
    """Ours and theirs with a tokenizer, and their processor; the tokenizer's two tokens are the added ones."""
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import IdeficsProcessor
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

    tokenizer = copy.deepcopy(tiny_tokenizer)  # as Llama's first one, whose every text after a special token begins with a space
    tokenizer.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always", split=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [FAKE, "<image>", END]})
    size = len(tokenizer)
    theirs = hf_idefics(vocab_size=size - 3, additional_vocab_size=3, use_resampler=True)
    processor = IdeficsProcessor(IdeficsImageProcessorPil(image_size=28), tokenizer, add_end_of_utterance_token=False)
    folder = tmp_path_factory.mktemp("complete")
    theirs.save_pretrained(folder)
    processor.save_pretrained(folder)
    return lb.load(folder), theirs, processor


def test_ids_and_pixels_equal_those_of_the_processor(complete, colour_picture):
    ours, theirs, processor = complete
    one, two, three = (colour_picture(number) for number in range(3))
    messages = [
        {"role": "user", "content": "What color is the cat?<image>"},
        {"role": "assistant", "content": "Black"},
        {"role": "user", "content": "<image><image>Is it asleep?"},
    ]
    prompt = ["User: What color is the cat?", one, f"{END}\nAssistant: Black{END}\nUser:", two, three, f"Is it asleep?{END}\nAssistant:"]
    expected = processor(text=[prompt], add_end_of_utterance_token=False, return_tensors="pt")
    batch = lb.collate([Sample(messages, [one, two, three])], ours, add_generation_prompt=True)
    token = ours.projector.token
    ids = [token if source < 0 else source for source in batch.plan.source.tolist()]
    assert ids == expected["input_ids"][0].tolist() and ids.count(token) == 3
    torch.testing.assert_close(batch.pixels, expected["pixel_values"][0], atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(batch), theirs(**expected).logits[0], atol=1e-5, rtol=0)


def test_answers_to_questions_with_and_without_images(complete, colour_picture):
    ours = complete[0]
    assert ours.template == IDEFICS
    ours.decoder.lm_head.weight.data[:259] = 0  # no bytes and no tokens without text
    prompts, images = ["What is it?", "Hello", "<image> and <image>?"], [colour_picture(1), None, [colour_picture(2), colour_picture(3)]]
    together = ours.generate(prompts, images=images, max_new_tokens=6)
    assert all(together), together
    assert together == [ours.generate(prompt, images=image, max_new_tokens=6) for prompt, image in zip(prompts, images)]


def test_models_before_instruction_tuning_end_an_answer_with_the_line(hf_idefics, tmp_path):
    hf_idefics().save_pretrained(tmp_path)
    assert lb.load(tmp_path).template == IDEFICS_BASE
    turns = ["<image>Why?", "So.", "Why not?", "Well."]
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, turns)]
    expected = f"User:{FAKE}<image>{FAKE}Why?\nAssistant: So.\nUser: Why not?\nAssistant: Well.\n"
    assert written(IDEFICS_BASE.render(messages)) == expected


def test_the_preset_has_the_names_and_shapes_of_the_9b_model():
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    vision = dict(embed_dim=1280, image_size=224, patch_size=14, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16)
    config = IdeficsConfig(
        **dict(additional_vocab_size=2, cross_layer_interval=4, qk_layer_norms=True, use_resampler=True, vision_config=vision),
        perceiver_config=dict(qk_layer_norms_perceiver=True),
    )
    with torch.device("meta"):
        theirs = {name: tuple(value.shape) for name, value in IdeficsForVisionText2Text(config).named_parameters()}
    for table, added in ADDED_ROWS.items():
        theirs[table] = (theirs[table][0] + theirs.pop(added)[0], *theirs[table][1:])
    ours = lb.build("idefics-9b", device="meta")
    assert {name: tuple(value.shape) for name, value in ours.named_parameters()} == {LAYOUT.to_model(name): shape for name, shape in theirs.items()}
    assert idefics_from_hf(config.to_dict()).to_dict() == described(lb.presets.preset("idefics-9b"))
    assert round(sum(value.numel() for value in ours.parameters()) / 1e9, 2) == 8.93


def described(config):
    """With every option of the hook written out."""
    values = config.to_dict()
    written_out = {"heads": 32, "ffn_dim": 11008, "gate": "float", "eps": 1e-6, **values["hooks"][0]}
    return {**values, "hooks": [written_out]}


def test_files_that_do_not_fit_are_refused(hf_idefics, tmp_path):
    theirs = hf_idefics(additional_vocab_size=1)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(LmmError, match="none of the 401 tokens is '<image>'"):
        lb.load(tmp_path)
    theirs = hf_idefics(alpha_type="float", additional_vocab_size=2)
    theirs.config.alpha_type = "matrix"
    theirs.save_pretrained(tmp_path)
    with pytest.raises(LmmError, match="alpha_type='matrix' .expected 'float' or 'vector'"):
        lb.load(tmp_path)
