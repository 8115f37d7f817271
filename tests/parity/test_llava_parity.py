"""The whole model against ``LlavaForConditionalGeneration``: read from its files, and written for it.

The batch is of unequal lengths with 0, 1 and 2 images per sample. Ours is packed; transformers' is padded on the right with an attention
mask, each image written out as one image token per patch.
"""

import pytest
import torch

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.chat import encode_chat
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch, Grid
from lmmblocks.weights.files.maps import RUNTIME_5

TOLERANCE = 1e-5
PATCHES = 16

# transformers' options and ours, written twice on purpose.
HF_SHAPES = {
    "llava": {},
    "tied": {"text": {"tie_word_embeddings": True}},
    "two layers joined": {"vision_feature_layer": [-3, -1], "vision": {"num_hidden_layers": 3}},
    "others": {
        "multimodal_projector_bias": False,
        "vision": {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
        "text": {
            "head_dim": 12,
            "rms_norm_eps": 1e-4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 2e4},
        },
    },
}
OUR_SHAPES = {
    "llava": {},
    "tied": {"decoder": {"tied": True}},
    "two layers joined": {"encoder": {"select": (-3, -1), "layers": 3}},
    "others": {
        "projector": {"bias": False},
        "encoder": {"activation": "gelu", "eps": 1e-3},
        "decoder": {"head_dim": 12, "eps": 1e-4, "rope_theta": 2e4},
    },
}


def our_model(tokenizer, *, seed, vocab=400, encoder=None, decoder=None, projector=None):
    vision = dict(dim=32, layers=2, heads=4, mlp_dim=48, image_size=28, patch=7)
    text = dict(dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=56, vocab=vocab, max_positions=512)
    config = LMMConfig(
        encoder=CLIPConfig(**{**vision, **(encoder or {})}),
        decoder=TransformerConfig(**{**text, **(decoder or {})}),
        projector=Block("mlp", {"depth": 2, **(projector or {})}),
    )
    torch.manual_seed(seed)
    return build(config, weights="random", tokenizer=tokenizer)


@pytest.fixture(scope="module", params=[(way, shape) for shape in HF_SHAPES for way in ("read", "written")], ids=" ".join)
def pair(request, hf_llava, randomised, tokenizer, tmp_path_factory):
    """Ours and theirs with the same weights, and the image token of theirs."""
    from transformers import LlavaForConditionalGeneration

    way, shape = request.param
    folder = tmp_path_factory.mktemp("llava")
    if way == "read":
        theirs = hf_llava(seed=1, **HF_SHAPES[shape])
        theirs.save_pretrained(folder)
        ours = lb.load(folder)
    else:
        ours = randomised(our_model(tokenizer, seed=2, **OUR_SHAPES[shape]), 2)
        ours.save(folder, format="hf")
        theirs = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    assert theirs.dtype == ours.decoder.table.dtype == torch.float32
    return ours, theirs


def text(generator, length):
    return torch.randint(3, 379, (length,), generator=generator).tolist()


@pytest.fixture(scope="module")
def samples():
    """Token ids and labels of five samples: image first, image inside, none, two adjacent, two apart; and the pixels of all images."""
    generator = torch.Generator().manual_seed(7)
    ids = [
        [IMAGE_TOKEN, *text(generator, 9)],
        [1, *text(generator, 4), IMAGE_TOKEN, *text(generator, 15)],
        [1, *text(generator, 11)],
        [1, IMAGE_TOKEN, IMAGE_TOKEN, *text(generator, 3)],
        [1, *text(generator, 2), IMAGE_TOKEN, *text(generator, 6), IMAGE_TOKEN, *text(generator, 8)],
    ]
    labels = [[IGNORE_LABEL if i % 3 == 0 or t == IMAGE_TOKEN else t for i, t in enumerate(row)] for row in ids]
    pixels = torch.randn(6, 3, 28, 28, generator=generator)
    return ids, labels, pixels


def our_batch(ids, labels, pixels):
    counts = [[PATCHES] * row.count(IMAGE_TOKEN) for row in ids]
    plan = lb.plan_splice(ids, counts, labels=labels)
    return Batch(pixels, (Grid(4, 4),) * len(pixels), plan)


def their_batch(ids, labels, pixels, image_token):
    """Right-padded ids with every image written out, an attention mask, and labels."""
    rows, targets = [], []
    for row, row_labels in zip(ids, labels):
        repeats = [PATCHES if token == IMAGE_TOKEN else 1 for token in row]
        rows.append([image_token if t == IMAGE_TOKEN else t for t, n in zip(row, repeats) for _ in range(n)])
        targets.append([label for label, n in zip(row_labels, repeats) for _ in range(n)])
    longest = max(map(len, rows))
    pad = [longest - len(row) for row in rows]
    batch = {
        "input_ids": torch.tensor([row + [0] * n for row, n in zip(rows, pad)]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * n for row, n in zip(rows, pad)]),
        "labels": torch.tensor([row + [IGNORE_LABEL] * n for row, n in zip(targets, pad)]),
    }
    return {**batch, "pixel_values": pixels} if len(pixels) else batch


def their_rows(output, batch):
    """Logits of the real rows, sample after sample."""
    return output.logits[batch["attention_mask"].bool()]


def test_every_row_of_logits_equals_transformers(pair, samples):
    ours, theirs = pair
    batch = their_batch(*samples, theirs.config.image_token_index)
    with torch.no_grad():
        expected, got = their_rows(theirs(**batch), batch), ours.logits(our_batch(*samples))
    print(
        "largest logit",
        expected.abs().max().item(),
        "largest difference",
        (got - expected).abs().max().item(),
    )
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_each_sample_alone_equals_transformers(pair, samples):
    ours, theirs = pair
    ids, labels, pixels = samples
    first = 0
    for row, row_labels in zip(ids, labels):
        images = row.count(IMAGE_TOKEN)
        alone = ([row], [row_labels], pixels[first : first + images])
        first += images
        batch = their_batch(*alone, theirs.config.image_token_index)
        with torch.no_grad():
            torch.testing.assert_close(ours.logits(our_batch(*alone)), their_rows(theirs(**batch), batch), atol=TOLERANCE, rtol=0)


def test_loss_and_every_gradient_equal_transformers(pair, samples):
    ours, theirs = pair
    ours.encoder.frozen = False
    ours.requires_grad_(True).zero_grad()
    theirs.zero_grad()
    loss = ours.loss(our_batch(*samples))
    expected_loss = theirs(**their_batch(*samples, theirs.config.image_token_index)).loss
    print("loss", loss.item(), "transformers", expected_loss.item())
    torch.testing.assert_close(loss, expected_loss, atol=TOLERANCE, rtol=0)
    loss.backward()
    expected_loss.backward()
    expected = {RUNTIME_5.to_model(name): value.grad for name, value in theirs.named_parameters()}
    got = {name: value.grad for name, value in ours.named_parameters()}
    assert got.keys() == expected.keys()
    assert got["vision_tower.vision_model.embeddings.class_embedding"].abs().max() > 0
    for name, gradient in got.items():
        if expected[name] is None:
            assert gradient is None, name
        else:
            torch.testing.assert_close(gradient, expected[name], atol=TOLERANCE, rtol=0, msg=name)


def test_greedy_tokens_equal_transformers(pair, samples):
    ours, theirs = pair
    ids, _, pixels = samples
    for row, images in ((ids[1], pixels[1:2]), (ids[2], pixels[:0]), (ids[4], pixels[4:])):
        batch = their_batch([row], [row], images, theirs.config.image_token_index)
        del batch["labels"]
        length = batch["input_ids"].shape[1]
        options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        expected = theirs.generate(**batch, **options)[0, length:].tolist()
        assert greedy(ours, row, images, 12) == expected


def greedy(model, ids, pixels, count):
    """The next tokens, everything computed anew for each."""
    grown = list(ids)
    for _ in range(count):
        with torch.no_grad():
            grown.append(int(model.logits(our_batch([grown], [[IGNORE_LABEL] * len(grown)], pixels))[-1].argmax()))
    return grown[len(ids) :]


def test_saving_and_loading_again_changes_no_bit(pair, samples, tmp_path):
    ours, _ = pair
    for format in ("hf", "native"):
        ours.save(tmp_path / format, format=format)
        again = lb.load(tmp_path / format)
        state, expected = again.state_dict(), ours.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        with torch.no_grad():
            assert torch.equal(again.logits(our_batch(*samples)), ours.logits(our_batch(*samples)))


def test_what_transformers_writes_of_ours_comes_back_bitwise(pair, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "again")
    again = lb.load(tmp_path / "again").state_dict()
    assert again.keys() == ours.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_without_a_spare_row_gets_one_that_never_wins(tied, randomised, tokenizer, samples, tmp_path):
    """Vocabulary and tokenizer are of one size: the image token is a new id, whose logit is the mean of all."""
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    vocab = len(tokenizer)
    ours = randomised(our_model(tokenizer, seed=3, vocab=vocab, decoder={"tied": tied}), 3)
    ours.save(tmp_path / "out")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.image_token_index == vocab
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<image>") == vocab
    batch = their_batch(*samples, vocab)
    with torch.no_grad():
        output, got = theirs(**batch), ours.logits(our_batch(*samples))
        loss = ours.loss(our_batch(*samples))
    expected = their_rows(output, batch)
    torch.testing.assert_close(got, expected[:, :vocab], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(expected[:, vocab], got.mean(-1), atol=TOLERANCE, rtol=0)
    assert torch.equal(expected.argmax(-1), got.argmax(-1))
    assert 0 <= (output.loss - loss).item() <= torch.tensor(1 / vocab).log1p().item() + TOLERANCE
    theirs.save_pretrained(tmp_path / "out")  # transformers' own save on top of ours
    again = lb.load(tmp_path / "out")
    assert len(again.tokenizer) == vocab
    assert all(torch.equal(again.state_dict()[name], value) for name, value in ours.state_dict().items())


def test_auto_processor_gives_our_pixels_and_as_many_image_tokens_as_patches(tokenizer, tmp_path):
    from PIL import Image
    from transformers import AutoProcessor

    ours = our_model(tokenizer, seed=4)
    ours.save(tmp_path / "out")
    picture = Image.effect_mandelbrot((50, 31), (-2, -1, 1, 1), 20).convert("RGB")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(images=picture, text="USER: <image> cat", return_tensors="pt")
    assert (inputs["input_ids"] == len(tokenizer)).sum() == PATCHES
    torch.testing.assert_close(inputs["pixel_values"][0], ours.encoder.preprocess(picture), atol=1e-6, rtol=0)


def test_answers_equal_transformers(randomised, tokenizer, tmp_path):
    """The same question and picture, each library with its own image processing and decoding."""
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    ours = randomised(our_model(tokenizer, seed=5), 5)
    # No bytes and no ids without text, so that every greedy token is text.
    ours.decoder.lm_head.weight.data[3:259] = 0
    ours.decoder.lm_head.weight.data[len(tokenizer) :] = 0
    ours.tokenize_mode = "llava15"
    ours.save(tmp_path / "out")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    picture = Image.effect_mandelbrot((40, 60), (-2, -1, 1, 1), 20).convert("RGB")
    messages = [{"role": "user", "content": "<image>\nWhat color is the cat?"}]
    tokens = encode_chat(messages, "vicuna_v1", tokenizer, mode="llava15", add_generation_prompt=True).ids
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    batch = their_batch([tokens], [tokens], pixels, theirs.config.image_token_index)
    del batch["labels"]
    new = theirs.generate(**batch, max_new_tokens=16, do_sample=False)[0, batch["input_ids"].shape[1] :]
    expected = tokenizer.decode(new, skip_special_tokens=True).strip()
    answer = ours.generate("What color is the cat?", images=[picture], max_new_tokens=16)
    assert answer.strip() == expected
    assert len(new) > 3
