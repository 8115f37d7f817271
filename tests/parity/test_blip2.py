"""The whole model against ``Blip2ForConditionalGeneration`` with OPT: read from its files, and written for it.

Ours are packed; transformers' are padded on the right, each image written out as one image token per query, before the first token.
"""

import copy
import json
import shutil

import pytest
import torch

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.chat import encode_chat
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.hf_config import HFDecoderConfig
from lmmblocks.encoders.blip2_vit import Blip2ViTConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.presets import preset
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch, Grid, LmmError, Sample
from lmmblocks.weights.inspect import inspect
from lmmblocks.weights.systems.blip2 import LAYOUT, TEMPLATE, blip2_from_hf

TOLERANCE = 1e-5
QUERIES = 5
TWIN = "Blip2ForConditionalGeneration"

# transformers' options and ours, written twice on purpose.
VISION = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7)
BERT = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20)
TEXT = dict(model_type="opt", hidden_size=32, word_embed_proj_dim=32, ffn_dim=56, num_hidden_layers=2, num_attention_heads=4)
TEXT |= dict(vocab_size=400, max_position_embeddings=512, dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2)
OUR_VISION = Blip2ViTConfig(dim=24, mlp_dim=40, layers=2, heads=4, image_size=28, patch=7)
OUR_BERT = dict(queries=QUERIES, dim=16, layers=3, heads=2, mlp_dim=20, prefix=True)


def hf_config(**text):
    from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

    text = OPTConfig(**{key: value for key, value in {**TEXT, **text}.items() if key != "model_type"})
    parts = dict(vision_config=Blip2VisionConfig(**VISION), qformer_config=Blip2QFormerConfig(**BERT), text_config=text)
    return Blip2Config(**parts, num_query_tokens=QUERIES, image_token_index=399, tie_word_embeddings=text.tie_word_embeddings)


def our_model(words, randomised, seed, *, encoder=OUR_VISION, vocab=400, tied=False, **projector):
    torch.manual_seed(seed)
    decoder = HFDecoderConfig({**TEXT, "vocab_size": vocab, "tie_word_embeddings": tied})
    config = LMMConfig(encoder=encoder, projector=Block("qformer", {**OUR_BERT, **projector}), decoder=decoder, template=TEMPLATE)
    return randomised(build(config, weights="random", tokenizer=words), seed)


@pytest.fixture(scope="module")
def words(tokenizer):
    """The tiny one, beginning a text with its first token as OPT's does; ours takes the token from the template."""
    from tokenizers import processors

    beginning = copy.deepcopy(tokenizer)
    beginning.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return beginning


@pytest.fixture(scope="module", params=["read", "written", "read tied", "written tied"])
def pair(request, randomised, words, tmp_path_factory):
    """Ours and theirs with the same weights."""
    from transformers import Blip2ForConditionalGeneration

    way, _, tied = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("blip2")
    if way == "read":
        theirs = randomised(Blip2ForConditionalGeneration(hf_config(tie_word_embeddings=bool(tied))), 1)
        theirs.save_pretrained(folder)
        ours = lb.load(folder)
    else:
        ours = our_model(words, randomised, 2, tied=bool(tied))
        ours.save(folder, format="hf")
        theirs, report = Blip2ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
    assert (ours.decoder.table is ours.decoder.head_weight) == bool(tied) and theirs.dtype == torch.float32
    assert ours.decoder.packed
    return ours, theirs.eval()


@pytest.fixture(scope="module")
def samples():
    """Token ids and labels of four samples with an image in front, one with two; and the pixels of all images."""
    generator = torch.Generator().manual_seed(7)

    def text(length):
        return torch.randint(3, 379, (length,), generator=generator).tolist()

    ids = [[IMAGE_TOKEN, 1, *text(9)], [IMAGE_TOKEN, 1, *text(21)], [IMAGE_TOKEN, IMAGE_TOKEN, 1, *text(4)], [IMAGE_TOKEN, 1, *text(2)]]
    labels = [[IGNORE_LABEL if i < 3 or i % 4 == 0 else token for i, token in enumerate(row)] for row in ids]
    return ids, labels, torch.randn(5, 3, 28, 28, generator=generator)


def our_batch(ids, labels, pixels):
    plan = lb.plan_splice(ids, [[QUERIES] * row.count(IMAGE_TOKEN) for row in ids], labels=labels)
    return Batch(pixels, (Grid(4, 4),) * len(pixels), plan)


def padded(rows, value):
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def their_batch(ids, labels, pixels, image_token):
    written = [[QUERIES if token == IMAGE_TOKEN else 1 for token in row] for row in ids]
    rows = [[image_token if token == IMAGE_TOKEN else token for token, n in zip(row, counts) for _ in range(n)] for row, counts in zip(ids, written)]
    targets = [[label for label, n in zip(row, counts) for _ in range(n)] for row, counts in zip(labels, written)]
    mask = padded([[1] * len(row) for row in rows], 0)
    return {"input_ids": padded(rows, 0), "attention_mask": mask, "labels": padded(targets, IGNORE_LABEL), "pixel_values": pixels}


def test_every_row_of_logits_equals_transformers(pair, samples, record_parity):
    ours, theirs = pair
    batch = their_batch(*samples, theirs.config.image_token_index)
    with torch.no_grad():
        got, expected = ours.logits(our_batch(*samples)), theirs(**batch).logits[batch["attention_mask"].bool()]
    difference = (got - expected).abs().max()
    print("largest logit", expected.abs().max().item(), "largest difference", difference.item())
    record_parity("BLIP-2", TWIN, "logits", difference)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_loss_and_every_gradient_equal_transformers(pair, samples, record_parity):
    ours, theirs = pair
    ours.encoder.frozen = False
    ours.requires_grad_(True).zero_grad()
    theirs.requires_grad_(True).zero_grad()
    loss = ours.loss(our_batch(*samples))
    expected_loss = theirs(**their_batch(*samples, theirs.config.image_token_index)).loss
    torch.testing.assert_close(loss, expected_loss, atol=TOLERANCE, rtol=0)
    loss.backward()
    expected_loss.backward()
    expected = {LAYOUT.to_model(name): value.grad for name, value in theirs.named_parameters()}
    got = {name: value.grad for name, value in ours.named_parameters()}
    assert got.keys() == expected.keys()
    errors = {name: (gradient - expected[name]).abs().max().item() for name, gradient in got.items()}
    record_parity("BLIP-2", TWIN, "gradients", max(errors.values()))
    assert all(error <= TOLERANCE for error in errors.values()), errors
    for part in ("vision_tower.", "multi_modal_projector.query_tokens", "language_model."):
        assert max(value.abs().max() for name, value in got.items() if name.startswith(part)) > 0, part


def test_greedy_tokens_equal_transformers(pair, samples):
    ours, theirs = pair
    ids, labels, pixels = samples
    for index in (0, 1):
        one = ([ids[index]], [labels[index]], pixels[index : index + 1])
        batch = their_batch(*one, theirs.config.image_token_index)
        del batch["labels"]
        expected = theirs.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0, -12:].tolist()
        grown = list(ids[index])
        for _ in range(12):
            with torch.no_grad():
                grown.append(int(ours.logits(our_batch([grown], [[IGNORE_LABEL] * len(grown)], one[2]))[-1].argmax()))
        assert grown[-12:] == expected


def test_what_transformers_writes_of_ours_comes_back_bitwise(pair, samples, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "theirs")
    for folder, format in (("hf", "hf"), ("native", "native"), ("theirs", None)):
        if format:
            ours.save(tmp_path / folder, format=format)
        again = lb.load(tmp_path / folder)
        assert again.config.encoder == ours.config.encoder and again.template == ours.template
        state = again.state_dict()
        assert state.keys() == ours.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items()), folder
        with torch.no_grad():
            assert torch.equal(again.logits(our_batch(*samples)), ours.logits(our_batch(*samples)))


@pytest.fixture(scope="module", params=[400, 380], ids=["room for the image token", "no room"])
def whole(request, words, randomised, tmp_path_factory):
    """A model with its tokenizer, and the folder it was written to for transformers."""
    vocab = 400 if request.param == 400 else len(words)
    ours = our_model(words, randomised, 5, vocab=vocab)
    ours.decoder.head_weight.data[3:259] = 0  # no bytes, so that every greedy token is text
    ours.decoder.head_weight.data[len(words) :] = 0
    folder = tmp_path_factory.mktemp("whole") / "out"
    with pytest.warns(UserWarning, match="stop_strings"):
        ours.save(folder, format="hf")
    return ours, folder


@pytest.fixture(scope="module")
def picture():
    from PIL import Image

    return Image.effect_mandelbrot((40, 60), (-2, -1, 1, 1), 20).convert("RGB")


def pil_processor(folder):
    """With torchvision in the environment the processor would resize by other arithmetic than Pillow's."""
    from transformers import AutoProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = BlipImageProcessorPil.from_pretrained(folder)
    return processor


@pytest.mark.parametrize("question", ["Question: what color is the cat? Answer:", ""])
def test_the_processor_of_transformers_builds_the_same_prompt_and_pixels(whole, picture, question):
    ours, folder = whole
    processor = pil_processor(folder)
    assert type(processor).__name__ == "Blip2Processor"
    inputs = processor(images=picture, text=question, return_tensors="pt")
    asked = Sample([{"role": "user", "content": f"{question} <image>"}], [picture])
    batch = lb.collate([asked], ours, add_generation_prompt=True)
    ids = encode_chat(asked.messages, ours.template, ours.tokenizer, add_generation_prompt=True).ids
    image_token = processor.tokenizer.get_vocab()["<image>"]
    assert json.loads((folder / "config.json").read_text())["image_token_index"] == image_token
    assert inputs["input_ids"][0].tolist() == [image_token] * QUERIES + ids[1:] and ids[:2] == [IMAGE_TOKEN, 1]
    assert batch.plan.total_rows == inputs["input_ids"].shape[1]
    assert torch.equal(inputs["pixel_values"], batch.pixels)


def test_answers_equal_transformers(whole, picture):
    """The same questions and picture, each library with its own image processing, tokenizers and decoding."""
    from transformers import Blip2ForConditionalGeneration

    ours, folder = whole
    theirs, processor = Blip2ForConditionalGeneration.from_pretrained(folder).eval(), pil_processor(folder)
    questions = ["Question: what color is the cat? Answer:", "a photo of", "Question: how many are there? Answer:"]
    answers = ours.generate(questions, images=[picture] * 3, max_new_tokens=16)
    for question, answer in zip(questions, answers):
        inputs = processor(images=picture, text=question, return_tensors="pt")
        new = theirs.generate(**inputs, max_new_tokens=16, do_sample=False, tokenizer=processor.tokenizer)[0, inputs["input_ids"].shape[1] :]
        assert answer.strip() == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert len(new) > 3


def test_a_folder_of_transformers_alone_says_all_but_the_template(whole, picture):
    ours, folder = whole
    plain = folder.parent / "plain"
    shutil.copytree(folder, plain, dirs_exist_ok=True)
    again = lb.load(folder)
    assert again.decoder.vocab == ours.decoder.vocab and again.decoder.config == ours.decoder.config
    (plain / "lmmblocks.json").unlink()
    again = lb.load(plain)
    assert again.encoder.preprocess == ours.encoder.preprocess and again.template == ours.template
    ask = dict(images=picture, max_new_tokens=8)
    assert again.generate("a photo of", **ask) == ours.generate("a photo of", **ask)
    found = inspect(plain)
    assert (found.layout, found.problems, found.missing) == ("Hugging Face (blip-2)", [], [])
    assert found.image_tokens["640x480"] == QUERIES
    (plain / "chat_template.jinja").unlink()
    assert inspect(plain).settings["template"] == "blip2 (BLIP-2's; the files don't say)"


def test_an_answer_ends_with_the_line(whole, picture):
    ours, _ = whole
    messages = [{"role": "user", "content": "<image>\nQuestion: is it asleep? Answer:"}, {"role": "assistant", "content": "No"}]
    batch = lb.collate([Sample(messages, [picture])], ours)
    taught = [*ours.tokenizer(" No", add_special_tokens=False)["input_ids"], *ours.tokenizer("\n", add_special_tokens=False)["input_ids"]]
    assert ours.tokenizer.decode(batch.plan.targets) == "No\n" and batch.plan.targets.tolist()[-1] == taught[-1]


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_an_encoder_decoder_is_refused(kind):
    values = {**hf_config().to_dict(), "text_config": {"model_type": kind, "d_model": 32}}
    with pytest.raises(LmmError, match=f"text_config, is a '{kind}'.*decoder-only language models: use .*blip2-opt-2.7b"):
        blip2_from_hf(values)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder": CLIPConfig(dim=24, mlp_dim=40, layers=2, heads=4, image_size=28, patch=7)}, "encoder 'CLIP' .expected 'Blip2ViT'."),
        ({"prefix": False}, "prefix=False .expected prefix=True."),
    ],
)
def test_what_transformers_blip2_has_no_place_for_is_refused(changes, message, words, randomised, tmp_path):
    model = our_model(words, randomised, 3, **changes)
    with pytest.raises(LmmError, match=f"BLIP-2 has no place for .*{message}.*format='native'"):
        model.save(tmp_path / "out", format="hf")


def test_the_preset_has_the_names_and_shapes_of_transformers_own_model():
    """At full size, without memory."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

    shape = dict(hidden_size=2560, word_embed_proj_dim=2560, num_hidden_layers=32, num_attention_heads=32, ffn_dim=10240, vocab_size=50304)
    with torch.device("meta"):
        theirs = Blip2ForConditionalGeneration(Blip2Config(text_config=OPTConfig(**shape)))
    ours = build(preset("blip2-opt-2.7b"), weights="random", device="meta")
    expected = {LAYOUT.to_model(name): tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == expected
