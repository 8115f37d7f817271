"""Other language models than Llama inside of transformers' multimodal models: read, compared with images, written again."""

import pytest
import torch

import lmmblocks as lb
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch, Grid, LmmError, Segments
from lmmblocks.weights.sources import load_decoder

TOLERANCE, PATCHES, IMAGE_ID = 1e-5, 16, 119
SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SHAPE |= dict(vocab_size=120, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
GEMMA = dict(head_dim=16, sliding_window=21, query_pre_attn_scalar=11)
TEXTS = {
    "mistral": {"sliding_window": 21},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "phi3": {},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": None},
    "gemma3_text": {**GEMMA, "sliding_window_pattern": 2},
}


@pytest.fixture(scope="module", params=TEXTS)
def pair(request, clip_config, randomised, tmp_path_factory):
    """Name of the language model, ours and theirs with the same weights, and their folder."""
    from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

    text = AutoConfig.for_model(request.param, **{**SHAPE, **TEXTS[request.param]})
    tied = text.tie_word_embeddings
    config = LlavaConfig(vision_config=clip_config(), text_config=text, image_token_index=IMAGE_ID, tie_word_embeddings=tied)
    theirs = randomised(LlavaForConditionalGeneration._from_config(config, attn_implementation="eager"), 3)
    for name, value in theirs.named_parameters():
        if request.param.startswith("gemma") and "language_model" in name and "norm" in name:
            value.data -= 1  # Gemma stores norm weights less one
    folder = tmp_path_factory.mktemp("llava")
    theirs.save_pretrained(folder)
    return request.param, lb.load(folder), theirs, folder


@pytest.fixture(scope="module")
def sample():
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 119, (14,), generator=generator).tolist()
    ids[2] = ids[9] = IMAGE_TOKEN
    return ids, torch.randn(2, 3, 28, 28, generator=generator)


def our_batch(ids, pixels):
    labels = [IGNORE_LABEL if token == IMAGE_TOKEN else token for token in ids]
    return Batch(pixels, (Grid(4, 4),) * 2, lb.plan_splice([ids], [[PATCHES] * 2], labels=[labels]))


def their_inputs(ids, pixels):
    spread = [token for i in ids for token in ([IMAGE_ID] * PATCHES if i == IMAGE_TOKEN else [i])]
    input_ids = torch.tensor([spread])
    return {"input_ids": input_ids, "pixel_values": pixels, "labels": torch.where(input_ids == IMAGE_ID, -100, input_ids)}


@torch.no_grad()
def test_logits_and_loss_with_images_equal_those_of_transformers(pair, sample, record_parity):
    """Image rows are not scaled where text rows are (Gemma)."""
    kind, ours, theirs, _ = pair
    expected, batch = theirs(**their_inputs(*sample)), our_batch(*sample)
    found = ours.logits(batch)[:, : expected.logits.shape[-1]]
    error = (found - expected.logits[0]).abs().max().item()
    loss_error = (ours.loss(batch) - expected.loss).abs().item()
    record_parity(f"LLaVA with {kind}", type(theirs).__name__, "logits, max abs difference", error)
    record_parity(f"LLaVA with {kind}", type(theirs).__name__, "loss, abs difference", loss_error)
    assert error <= TOLERANCE and loss_error <= TOLERANCE, (error, loss_error)


@torch.no_grad()
def test_folder_that_we_write_is_read_by_transformers(pair, sample, tmp_path):
    from transformers import LlavaForConditionalGeneration

    _, ours, theirs, _ = pair
    ours.save(tmp_path / "out", format="hf")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    expected = theirs(**their_inputs(*sample)).logits
    ids, pixels = sample
    image_id = again.config.image_token_index
    inputs = their_inputs(ids, pixels) | {"labels": None}
    inputs["input_ids"] = torch.where(inputs["input_ids"] == IMAGE_ID, image_id, inputs["input_ids"])
    error = (again(**inputs).logits[..., : expected.shape[-1]] - expected).abs().max().item()
    assert error <= TOLERANCE, error
    kept = lb.load(tmp_path / "out").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in ours.state_dict().items())


def test_decoder_alone_is_read_out_of_the_checkpoint(pair):
    _, ours, _, folder = pair
    config, state = load_decoder(folder)
    assert config == ours.config.decoder
    assert all(torch.equal(state[name], value) for name, value in ours.decoder.state_dict().items())


@torch.no_grad()
def test_language_model_of_gemma3_is_read_out_of_its_multimodal_checkpoint(randomised, tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7)
    text = {**SHAPE, **GEMMA, "sliding_window_pattern": 2, "sliding_window": 5}
    ids_of = dict(image_token_index=IMAGE_ID, boi_token_index=117, eoi_token_index=118, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **ids_of))
    randomised(model, 5).save_pretrained(tmp_path)
    config, state = load_decoder(tmp_path)
    decoder = config.build()
    decoder.load_state_dict(state, assign=True)
    ids = torch.arange(3, 30)
    hidden = decoder(decoder.embed(ids), positions=torch.arange(27), segments=Segments.of([27]))
    error = (decoder.head(hidden) - model(input_ids=ids[None]).logits[0]).abs().max().item()
    assert error <= TOLERANCE, error


def test_a_soft_limit_of_logits_has_no_place_in_transformers_llava(make_tiny_model, tiny_config, tmp_path):
    from dataclasses import replace

    model = make_tiny_model(config=replace(tiny_config, decoder=replace(tiny_config.decoder, logit_softcap=2.0)))
    with pytest.raises(LmmError, match="logit_softcap=2.0"):
        model.save(tmp_path / "out", format="hf")
