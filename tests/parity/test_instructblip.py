"""The whole model against ``InstructBlipForConditionalGeneration``: read from its files, and written for it.

The samples are of unequal lengths, in words and in instructions. Ours are packed; transformers' are padded on the right, with a mask for the
decoder and one for the Q-Former, each image written out as one image token per query.
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
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.blip2_vit import Blip2ViTConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.presets import preset
from lmmblocks.projectors.instruction_tokens import Instruction
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch, Grid, LmmError, Sample
from lmmblocks.weights.inspect import inspect
from lmmblocks.weights.systems.instructblip import LAYOUT as INSTRUCTBLIP
from lmmblocks.weights.systems.instructblip import instructblip_from_hf, instructblip_to_hf

TOLERANCE = 1e-5
QUERIES, TEXT_IDS = 5, 60
TWIN = "InstructBlipForConditionalGeneration"

# transformers' options and ours, written twice on purpose.
VISION = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7)
BERT = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20, vocab_size=TEXT_IDS, max_position_embeddings=32)
TEXT = dict(model_type="llama", hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
TEXT |= dict(vocab_size=400, max_position_embeddings=512)
OUR_VISION = Blip2ViTConfig(dim=24, mlp_dim=40, layers=2, heads=4, image_size=28, patch=7)
OUR_BERT = dict(queries=QUERIES, dim=16, layers=3, heads=2, mlp_dim=20, vocab=TEXT_IDS, positions=32, prefix=True)
OUR_TEXT = dict(dim=32, ffn_dim=56, layers=2, heads=4, kv_heads=2, vocab=400, max_positions=512)


def hf_config(**text):
    from transformers import InstructBlipConfig

    parts = dict(vision_config=VISION, qformer_config=BERT, text_config={**TEXT, **text})
    return InstructBlipConfig(**parts, num_query_tokens=QUERIES, image_token_index=399)


def our_config(*, encoder=OUR_VISION, decoder=(), **projector):
    return LMMConfig(
        encoder=encoder,
        projector=Block("instruct_qformer", {**OUR_BERT, **projector}),
        decoder=TransformerConfig(**{**OUR_TEXT, **dict(decoder)}),
        template="instructblip",
    )


def our_model(words, randomised, seed, **changes):
    torch.manual_seed(seed)
    model = build(our_config(**changes), weights="random", tokenizer=words)
    return randomised(model, seed)


@pytest.fixture(scope="module")
def bert_tokenizer():
    """Whole words between [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"what color is the cat ? it asleep how many are there".split()]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


@pytest.fixture(scope="module")
def llama_tokenizer(tokenizer):
    """The tiny one, beginning a text with ``<s>`` as Llama's does; ours takes the token from the template."""
    from tokenizers import processors

    beginning = copy.deepcopy(tokenizer)
    beginning.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return beginning


@pytest.fixture(scope="module", params=["read", "written", "read tied", "written tied"])
def pair(request, randomised, tokenizer, tmp_path_factory):
    """Ours and theirs with the same weights."""
    from transformers import InstructBlipForConditionalGeneration

    way, _, tied = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("instructblip")
    if way == "read":
        theirs = randomised(InstructBlipForConditionalGeneration(hf_config(tie_word_embeddings=bool(tied))), 1)
        theirs.save_pretrained(folder)
        ours = lb.load(folder)
    else:
        ours = our_model(tokenizer, randomised, 2, decoder={"tied": bool(tied)}, vocab=400)
        ours.save(folder, format="hf")
        theirs, report = InstructBlipForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
    assert ours.config.decoder.tied == bool(tied) and theirs.dtype == torch.float32
    return ours, theirs.eval()


def text(generator, length, below=379):
    return torch.randint(3, below, (length,), generator=generator).tolist()


@pytest.fixture(scope="module")
def samples():
    """Token ids, labels and instructions of four samples: three with an image in front, one with two; and the pixels of all images."""
    generator = torch.Generator().manual_seed(7)
    ids = [
        [IMAGE_TOKEN, 1, *text(generator, 9)],
        [IMAGE_TOKEN, 1, *text(generator, 21)],
        [IMAGE_TOKEN, IMAGE_TOKEN, 1, *text(generator, 4)],
        [IMAGE_TOKEN, 1, *text(generator, 2)],
    ]
    labels = [[IGNORE_LABEL if i < 3 or i % 4 == 0 else token for i, token in enumerate(row)] for row in ids]
    asked = [[text(generator, 4, TEXT_IDS)], [text(generator, 11, TEXT_IDS)], [text(generator, 2, TEXT_IDS), text(generator, 6, TEXT_IDS)], [[7]]]
    return ids, labels, asked, torch.randn(5, 3, 28, 28, generator=generator)


def alone(samples):
    """Each sample as a batch of its own."""
    first = 0
    for ids, labels, asked in zip(*samples[:3]):
        yield [ids], [labels], [asked], samples[3][first : first + len(asked)]
        first += len(asked)


def our_batch(ids, labels, asked, pixels):
    plan = lb.plan_splice(ids, [[QUERIES] * row.count(IMAGE_TOKEN) for row in ids], labels=labels)
    instruction = Instruction.of([entry for own in asked for entry in own])
    return Batch(pixels, (Grid(4, 4),) * len(pixels), plan, instruction=instruction)


def padded(rows, value):
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def their_batch(ids, labels, asked, pixels, image_token):
    written = [[QUERIES if token == IMAGE_TOKEN else 1 for token in row] for row in ids]
    rows = [[image_token if token == IMAGE_TOKEN else token for token, n in zip(row, counts) for _ in range(n)] for row, counts in zip(ids, written)]
    targets = [[label for label, n in zip(row, counts) for _ in range(n)] for row, counts in zip(labels, written)]
    asked = [entry for own in asked for entry in own]
    return {
        "input_ids": padded(rows, 0),
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
        "labels": padded(targets, IGNORE_LABEL),
        "qformer_input_ids": padded(asked, 0),
        "qformer_attention_mask": padded([[1] * len(row) for row in asked], 0),
        "pixel_values": pixels,
    }


def their_rows(theirs, samples):
    """Logits of the real rows, sample after sample."""
    batch = their_batch(*samples, theirs.config.image_token_index)
    with torch.no_grad():
        return theirs(**batch).logits[batch["attention_mask"].bool()]


def test_every_row_of_logits_equals_transformers(pair, samples, record_parity):
    ours, theirs = pair
    with torch.no_grad():
        got, expected = ours.logits(our_batch(*samples)), their_rows(theirs, samples)
    difference = (got - expected).abs().max()
    print("largest logit", expected.abs().max().item(), "largest difference", difference.item())
    record_parity("InstructBLIP", TWIN, "logits", difference)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_each_sample_alone_equals_transformers_and_the_packed_batch(pair, samples):
    ours, theirs = pair
    with torch.no_grad():
        packed = ours.logits(our_batch(*samples))
        each = [ours.logits(our_batch(*one)) for one in alone(samples)]
    torch.testing.assert_close(torch.cat(each), packed, atol=TOLERANCE, rtol=0)
    for one, got in zip(alone(samples), each):
        torch.testing.assert_close(got, their_rows(theirs, one), atol=TOLERANCE, rtol=0)


def test_the_instruction_of_an_image_changes_its_sample_and_no_other(pair, samples):
    ours, _ = pair
    ids, labels, asked, pixels = samples
    other = [asked[0], [asked[1][0][::-1]], *asked[2:]]
    with torch.no_grad():
        before, after = ours.logits(our_batch(*samples)), ours.logits(our_batch(ids, labels, other, pixels))
    first, own = (len(ids[index]) - 1 + QUERIES for index in (0, 1))
    assert torch.equal(before[:first], after[:first]) and torch.equal(before[first + own :], after[first + own :])
    assert (before - after)[first : first + own].abs().max() > 1e-3


def test_loss_and_every_gradient_equal_transformers(pair, samples, record_parity):
    ours, theirs = pair
    ours.encoder.frozen = False
    ours.requires_grad_(True).zero_grad()
    theirs.requires_grad_(True).zero_grad()
    loss = ours.loss(our_batch(*samples))
    expected_loss = theirs(**their_batch(*samples, theirs.config.image_token_index)).loss
    print("loss", loss.item(), "transformers", expected_loss.item())
    torch.testing.assert_close(loss, expected_loss, atol=TOLERANCE, rtol=0)
    loss.backward()
    expected_loss.backward()
    expected = {INSTRUCTBLIP.to_model(name): value.grad for name, value in theirs.named_parameters()}
    got = {name: value.grad for name, value in ours.named_parameters()}
    assert got.keys() == expected.keys()
    for part in ("vision_tower.", "multi_modal_projector.query_tokens", "multi_modal_projector.qformer.embeddings.word", "language_model."):
        assert max(value.abs().max() for name, value in got.items() if name.startswith(part)) > 0, part
    errors = {}
    for name, gradient in got.items():
        want = expected[name]
        if gradient is None:  # the text's MLP of the last layer, which nothing reads
            assert want is None or not want.any(), name
        else:
            errors[name] = (gradient - want).abs().max().item()
    record_parity("InstructBLIP", TWIN, "gradients", max(errors.values()))
    print("largest gradient difference", max(errors, key=errors.get), max(errors.values()))
    assert all(error <= TOLERANCE for error in errors.values()), errors


def test_greedy_tokens_equal_transformers(pair, samples):
    ours, theirs = pair
    for one in alone(samples):
        batch = their_batch(*one, theirs.config.image_token_index)
        if len(batch["pixel_values"]) > 1:
            continue  # its generate() wants one row of ids per image
        del batch["labels"]
        options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        expected = theirs.generate(**batch, **options)[0, -12:].tolist()
        assert greedy(ours, one, 12) == expected


def greedy(model, sample, count):
    """The next tokens, everything computed anew for each."""
    (grown,), _, asked, pixels = sample
    start, grown = len(grown), list(grown)
    for _ in range(count):
        with torch.no_grad():
            grown.append(int(model.logits(our_batch([grown], [[IGNORE_LABEL] * len(grown)], asked, pixels))[-1].argmax()))
    return grown[start:]


def test_what_transformers_writes_of_ours_comes_back_bitwise(pair, samples, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "theirs")
    for folder, format in (("hf", "hf"), ("native", "native"), ("theirs", None)):
        if format:
            ours.save(tmp_path / folder, format=format)
        again = lb.load(tmp_path / folder)
        assert again.config.encoder == ours.config.encoder and again.config.template == "instructblip"
        state = again.state_dict()
        assert state.keys() == ours.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items()), folder
        with torch.no_grad():
            assert torch.equal(again.logits(our_batch(*samples)), ours.logits(our_batch(*samples)))


def test_the_weights_are_those_of_transformers_to_the_bit(pair):
    ours, theirs = pair
    state = ours.state_dict()
    named = {INSTRUCTBLIP.to_model(name): value for name, value in theirs.state_dict().items()}
    assert named.keys() == state.keys() and all(torch.equal(state[name], value) for name, value in named.items())


@pytest.fixture(scope="module")
def whole(bert_tokenizer, llama_tokenizer, randomised, tmp_path_factory):
    """A model with both tokenizers, and the folder it was written to for transformers."""
    folder = tmp_path_factory.mktemp("whole")
    bert_tokenizer.save_pretrained(folder / "bert")
    ours = our_model(llama_tokenizer, randomised, 5, tokenizer=str(folder / "bert"))
    ours.decoder.lm_head.weight.data[3:259] = 0  # no bytes and no ids without text, so that every greedy token is text
    ours.decoder.lm_head.weight.data[len(llama_tokenizer) :] = 0
    ours.save(folder / "out", format="hf")
    return ours, folder / "out"


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


def test_the_processor_of_transformers_builds_the_same_prompt(whole, picture):
    ours, folder = whole
    processor = pil_processor(folder)
    assert type(processor).__name__ == "InstructBlipProcessor"
    question = "What color is the cat?"
    inputs = processor(images=picture, text=question, return_tensors="pt")
    asked = Sample([{"role": "user", "content": f"{question} <image>"}], [picture])
    batch = lb.collate([asked], ours, add_generation_prompt=True)
    ids = encode_chat(asked.messages, ours.template, ours.tokenizer, add_generation_prompt=True).ids
    image_token = processor.tokenizer.get_vocab()["<image>"]
    assert inputs["input_ids"][0].tolist() == [image_token] * QUERIES + ids[1:] and ids[:2] == [IMAGE_TOKEN, 1]
    assert inputs["qformer_input_ids"][0].tolist() == batch.instruction.ids.tolist()
    assert len(batch.instruction.ids) == 8 and batch.plan.total_rows == inputs["input_ids"].shape[1]
    assert torch.equal(inputs["pixel_values"], batch.pixels)


def test_answers_equal_transformers(whole, picture):
    """The same questions and picture, each library with its own image processing, tokenizers and decoding."""
    from transformers import InstructBlipForConditionalGeneration

    ours, folder = whole
    theirs = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = pil_processor(folder)
    questions = ["What color is the cat?", "Is it asleep?", "How many are there in the picture?"]
    answers = ours.generate(questions, images=[picture] * 3, max_new_tokens=16)
    for question, answer in zip(questions, answers):
        inputs = processor(images=picture, text=question, return_tensors="pt")
        new = theirs.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.strip() == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert len(new) > 3


@pytest.mark.parametrize("format", ["hf", "native"])
def test_the_instructions_tokenizer_is_inside_and_moves_with_the_folder(whole, picture, format, tmp_path):
    ours, _ = whole
    ours.save(tmp_path / "first", format=format)
    assert str(tmp_path) not in (tmp_path / "first" / "lmmblocks.json").read_text()
    shutil.move(tmp_path / "first", tmp_path / "second")
    again = lb.load(tmp_path / "second")
    ask = dict(images=picture, max_new_tokens=6)
    assert again.generate("Is it asleep?", **ask) == ours.generate("Is it asleep?", **ask)
    again.save(tmp_path / "second", format=format)  # in its own place
    assert lb.load(tmp_path / "second").generate("Is it asleep?", **ask) == ours.generate("Is it asleep?", **ask)
    shutil.rmtree(tmp_path / "second" / "qformer_tokenizer")
    with pytest.raises(LmmError, match="holds no qformer_tokenizer/, which its Q-Former reads the instruction with"):
        lb.load(tmp_path / "second")


def test_a_folder_of_transformers_alone_is_asked_too(whole, picture):
    """Without ``lmmblocks.json``, everything follows from transformers' files."""
    ours, folder = whole
    plain = folder.parent / "plain"
    shutil.copytree(folder, plain)
    (plain / "lmmblocks.json").unlink()
    again = lb.load(plain)
    assert again.encoder.preprocess == ours.encoder.preprocess
    ask = dict(images=picture, max_new_tokens=8)
    assert again.generate("What color is the cat?", **ask) == ours.generate("What color is the cat?", **ask)
    found = inspect(plain)
    assert (found.layout, found.problems, found.missing) == ("Hugging Face (instructblip)", [], [])
    assert found.settings["template"] == "instructblip (chat_template.jinja)"
    assert found.image_tokens["640x480"] == QUERIES
    (plain / "chat_template.jinja").unlink()
    assert inspect(plain).settings["template"] == "instructblip (InstructBLIP's; the files don't say)"
    assert lb.load(plain).template == again.template == ours.template
    shutil.rmtree(plain / "qformer_tokenizer")
    with pytest.raises(LmmError, match="holds no qformer_tokenizer/"):
        lb.load(plain)


def test_a_training_step_learns_the_answer_alone(whole, picture):
    ours, _ = whole
    messages = [{"role": "user", "content": "<image>\nIs it asleep?"}, {"role": "assistant", "content": "No"}]
    batch = lb.collate([Sample(messages, [picture])], ours)
    taught = [*ours.tokenizer(" No", add_special_tokens=False)["input_ids"], ours.tokenizer.eos_token_id]
    assert batch.plan.targets.tolist()[-1] == taught[-1]
    assert ours.tokenizer.decode(batch.plan.targets[:-1]).strip() == "No"
    ours.requires_grad_(True)
    ours.loss(batch).backward()
    assert all(part.grad is not None for part in (ours.projector.query_tokens, ours.decoder.lm_head.weight))


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_an_encoder_decoder_is_refused(kind):
    values = {**hf_config().to_dict(), "text_config": {"model_type": kind, "d_model": 32}}
    with pytest.raises(LmmError, match=f"text_config, is a '{kind}'.*decoder-only language models: use .*instructblip-vicuna-7b"):
        instructblip_from_hf(values)


def test_what_the_native_blocks_can_not_compute_is_refused():
    values = hf_config().to_dict()
    with pytest.raises(LmmError, match="qformer_config.*hidden_act='relu'"):
        instructblip_from_hf({**values, "qformer_config": {**BERT, "hidden_act": "relu"}})
    with pytest.raises(LmmError, match="positive numbers.*num_query_tokens=0"):
        instructblip_from_hf({**values, "num_query_tokens": 0})
    with pytest.raises(LmmError, match="text_config, has model_type 'opt'"):
        instructblip_from_hf({**values, "text_config": {"model_type": "opt"}})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder": CLIPConfig(dim=24, mlp_dim=40, layers=2, heads=4, image_size=28, patch=7)}, "encoder 'CLIP' .expected 'Blip2ViT'."),
        ({"encoder": Blip2ViTConfig(dim=24, mlp_dim=40, layers=2, heads=4, image_size=28, patch=7, select=(-2,))}, r"select=\(-2,\)"),
        ({"prefix": False}, "prefix=False .expected prefix=True."),
    ],
)
def test_what_transformers_instructblip_has_no_place_for_is_refused(changes, message, tokenizer, randomised, tmp_path):
    model = our_model(tokenizer, randomised, 3, vocab=400, **changes)
    with pytest.raises(LmmError, match=f"InstructBLIP has no place for .*{message}.*format='native'"):
        model.save(tmp_path / "out", format="hf")
    model.save(tmp_path / "out", format="native")
    state = lb.load(tmp_path / "out").state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["instructblip-vicuna-7b", "instructblip-vicuna-13b"])
def test_the_presets_have_the_names_and_shapes_of_transformers_own_model(name):
    """At full size, without memory."""
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

    ours = build(preset(name), weights="random", device="meta")
    values = instructblip_to_hf(ours, ours.config, 31999)
    with torch.device("meta"):
        theirs = InstructBlipForConditionalGeneration(InstructBlipConfig(**values))
    expected = {INSTRUCTBLIP.to_model(key): tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert ours.projector.out_grid(Grid(16, 16)) == 32 and ours.encoder.preprocess.fit == "squash"
    default = json.loads(InstructBlipConfig(text_config={"model_type": "llama"}).to_json_string(use_diff=False))
    for section in ("vision_config", "qformer_config"):
        differing = {key for key, value in values[section].items() if key in default[section] and default[section][key] != value}
        assert differing <= {"vocab_size"}, differing  # BERT's 30522 and [DEC]
