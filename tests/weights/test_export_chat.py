"""What is exported behaves in transformers as the model does here: the same ids, the same pixels, the same answers with the same ends."""

import copy
import json

import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks.chat import TEMPLATES, MarkedTemplate, answer_ends, encode_chat
from lmmblocks.config import LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.tiled import TiledConfig
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN

TOKENS = sorted({token for template in TEMPLATES.values() for token in getattr(template, "tokens", ())} - {"[INST]", "[/INST]"})
WRITABLE = [name for name, template in TEMPLATES.items() if not {"[INST]"} & set(getattr(template, "tokens", ()))]
TALKING = ["chatml", "llama3", "gemma", "phi3", "vicuna_v1", "mistral"]
QUESTION, ANSWER = "What color is the cat?", "Black"
ROWS = 4


@pytest.fixture(scope="module")
def words(tiny_tokenizer):
    """Begins a text with ``<s>``, as Llama's does, and knows the tokens of the templates."""
    from tokenizers.processors import TemplateProcessing

    made = copy.deepcopy(tiny_tokenizer)
    made.add_special_tokens({"additional_special_tokens": TOKENS})
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return made


@pytest.fixture(scope="module")
def model(words):
    vision = CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14)
    text = TransformerConfig(dim=24, layers=2, heads=2, kv_heads=1, ffn_dim=32, vocab=len(words), max_positions=1024)
    torch.manual_seed(0)
    made = lb.build(LMMConfig(encoder=vision, decoder=text), weights="random", tokenizer=words)
    head = made.decoder.lm_head.weight.data
    bytes_of_characters = [index for word, index in words.get_vocab().items() if word.startswith("<0x")]
    head[bytes_of_characters] = head.mean(0)  # never the likeliest: what is said is text
    return made


@pytest.fixture(scope="module")
def picture():
    return Image.linear_gradient("L").resize((45, 28)).convert("RGB")


@pytest.fixture()
def talked(model):
    """`talked(template, mode)`: the model, talked to in another way until the test is over."""
    kept = model.template, model.tokenize_mode

    def make(template, mode="pieces"):
        model.template, model.tokenize_mode = TEMPLATES[template] if isinstance(template, str) else template, mode
        return model

    yield make
    model.template, model.tokenize_mode = kept


def asked(picture, *, answered=True):
    """A conversation as processors take it, and as we do."""
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    theirs = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}]
    ours = [{"role": "user", "content": f"<image>\n{QUESTION}"}, {"role": "assistant", "content": ANSWER}]
    return (theirs, ours) if answered else (theirs[:1], ours[:1])


def expanded(tokens, rows, image):
    """Ids and the mask of what is learned, every image as its rows."""
    ids = [token for index in tokens.ids for token in ([image] * rows if index == IMAGE_TOKEN else [index])]
    learned = [int(label != IGNORE_LABEL) for index, label in zip(tokens.ids, tokens.labels) for _ in range(rows if index == IMAGE_TOKEN else 1)]
    return ids, learned


@pytest.mark.filterwarnings("ignore:template .* ends answers with")
@pytest.mark.parametrize("mode", ["pieces", "llava15"])
@pytest.mark.parametrize("name", WRITABLE)
def test_the_processor_makes_our_ids_and_labels(talked, picture, tmp_path, name, mode):
    from transformers import AutoProcessor

    model = talked(name, mode)
    model.save(tmp_path / "m")
    processor = AutoProcessor.from_pretrained(tmp_path / "m")
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    theirs, ours = asked(picture)
    ids, learned = expanded(encode_chat(ours, model.template, model.tokenizer, mode=mode), ROWS, image)
    out = processor.apply_chat_template(theirs, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert list(out["input_ids"][0]) == ids
    assert list(out["assistant_masks"][0]) == learned
    prompt = expanded(encode_chat(ours[:1], model.template, model.tokenizer, mode=mode, add_generation_prompt=True), ROWS, image)[0]
    assert list(processor.apply_chat_template(theirs[:1], tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"][0]) == prompt


def with_end_at(model, prompt, picture, end):
    """A copy of a model that says `end` where it would say another word for the first time, as late as possible; and how many words come before."""
    made = copy.deepcopy(model)
    head = made.decoder.lm_head.weight.data
    for seed in range(50):  # some random models say one word for ever
        said = said_by(made, prompt, picture)
        word = [token for index, token in enumerate(said) if token not in said[:index] and token != end][-1]
        if said.index(word) >= 2 and end not in said:
            head[[word, end]] = head[[end, word]]
            return made, said.index(word)
        head.copy_(head[:, torch.randperm(head.shape[1], generator=torch.Generator().manual_seed(seed))])
    raise AssertionError("no model says three words")


def said_by(model, prompt, picture, count=24):
    """The first tokens that the model says whatever they are, everything computed anew for each."""
    ids = encode_chat(prompt, model.template, model.tokenizer, add_generation_prompt=True).ids
    pixels, grids = model.encoder.preprocess.batch([picture])
    said = []
    for _ in range(count):
        plan = lb.plan_splice([[*ids, *said]], [[ROWS]], labels=[[IGNORE_LABEL] * (len(ids) + len(said))])
        with torch.no_grad():
            said.append(model.logits(lb.spec.Batch(pixels, grids, plan))[-1].argmax().item())
    return said


@pytest.mark.parametrize("name", TALKING)
def test_transformers_stops_where_we_do_and_says_the_same(talked, picture, tmp_path, name):
    """At every token that ends an answer, the template's and the tokenizer's, and nowhere else."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = talked(name)
    theirs, ours = asked(picture, answered=False)
    for end in sorted(answer_ends(model.template, model.tokenizer)):
        ending, step = with_end_at(model, ours, picture, end)
        ending.save(tmp_path / str(end))
        answer = ending.generate(ours, images=[picture], max_new_tokens=30)
        processor = AutoProcessor.from_pretrained(tmp_path / str(end))
        other = LlavaForConditionalGeneration.from_pretrained(tmp_path / str(end)).eval()
        inputs = processor.apply_chat_template(theirs, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt")
        inputs["pixel_values"] = ending.encoder.preprocess.batch([picture])[0]
        new = other.generate(**inputs, max_new_tokens=30)[0, inputs["input_ids"].shape[1] :].tolist()
        assert new[-1] == end and len(new) == step + 1 > 1
        assert processor.decode(new, skip_special_tokens=True).strip() == answer.strip()


def test_transformers_ends_at_a_string_when_it_has_the_tokenizer(talked, picture, tmp_path):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = talked("v0_mmtag")
    with pytest.warns(UserWarning, match="template 'v0_mmtag' ends answers with '###', which is text and no token.*stop="):
        model.save(tmp_path / "m")
    processor = AutoProcessor.from_pretrained(tmp_path / "m")
    other = LlavaForConditionalGeneration.from_pretrained(tmp_path / "m").eval()
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(asked(picture, answered=False)[0], **options)
    with pytest.raises(ValueError, match="tokenizer"):
        other.generate(**inputs, max_new_tokens=2)
    assert other.generate(**inputs, max_new_tokens=2, tokenizer=processor.tokenizer).shape[1] == inputs["input_ids"].shape[1] + 2


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_the_processor_makes_our_pixels(talked, picture, tmp_path, fit):
    from transformers import AutoProcessor

    model = talked("chatml")
    kept = model.encoder.preprocess
    model.encoder.preprocess = lb.images.fit.with_fit(kept, fit)
    try:
        model.save(tmp_path / "m")
        expected = model.encoder.preprocess.batch([picture])[0]
    finally:
        model.encoder.preprocess = kept
    found = AutoProcessor.from_pretrained(tmp_path / "m").apply_chat_template(
        asked(picture, answered=False)[0], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )["pixel_values"]
    torch.testing.assert_close(found, expected, atol=3 / 255 / 0.26, rtol=0)  # other resizing than Pillow's is a few grey levels off


@pytest.mark.filterwarnings("ignore:template .* ends answers with")
@pytest.mark.parametrize("format", ["hf", "llava", "native"])
def test_the_tokenizers_old_chat_template_is_not_handed_on(talked, words, tmp_path, format):
    from transformers import AutoTokenizer

    model = talked("gemma")
    model.tokenizer = copy.deepcopy(words)
    model.tokenizer.chat_template = "{{ 'another model' }}"
    try:
        model.save(tmp_path / "llava", format=format)
    finally:
        model.tokenizer = words
    found = AutoTokenizer.from_pretrained(tmp_path / "llava")
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    assert found.apply_chat_template(messages, return_dict=True)["input_ids"] == encode_chat(messages, model.template, words).ids


class Backwards(MarkedTemplate):
    pass


def test_a_template_that_cannot_be_written_is_told_and_leaves_no_chat_template(talked, tmp_path):
    own = Backwards("own", opening="Q: ", to_answer="\nA:", ending="{eos}", to_question="\nQ: ")
    model = talked(own)
    with pytest.warns(UserWarning, match="template 'own' can't be written as a chat template: its class Backwards .*no chat template is written"):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m" / "chat_template.jinja").exists()
    assert "chat_template" not in json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "phi3", "vicuna_v1", "mistral", "llama2"])
def test_without_our_own_config_the_files_say_how_the_model_is_talked_to(talked, picture, tmp_path, name):
    model = talked(name, "llava15")
    model.save(tmp_path / "m")
    (tmp_path / "m" / "lmmblocks.json").unlink()
    again = lb.load(tmp_path / "m")
    assert answer_ends(again.template, again.tokenizer) == answer_ends(model.template, model.tokenizer)
    for messages in (asked(picture)[1], [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}] * 2):
        expected = encode_chat(messages, model.template, model.tokenizer, mode="llava15")
        assert encode_chat(messages, again.template, again.tokenizer, mode=again.tokenize_mode) == expected


def test_llava_next_writes_the_rows_of_its_tiles(words, picture, tmp_path):
    from transformers import AutoProcessor

    vision = CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14)
    text = TransformerConfig(dim=24, layers=2, heads=2, kv_heads=1, ffn_dim=32, vocab=len(words), max_positions=1024)
    config = LMMConfig(encoder=TiledConfig(vision, ((28, 56), (56, 28), (56, 56))), decoder=text, template="llama3")
    model = lb.build(config, weights="random", tokenizer=words)
    model.save(tmp_path / "m")
    processor = AutoProcessor.from_pretrained(tmp_path / "m")
    assert type(processor).__name__ == "LlavaNextProcessor"
    theirs, ours = asked(picture)
    batch = lb.collate([lb.Sample(ours, [picture])], model)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    tokens = encode_chat(ours, model.template, words, mode=model.tokenize_mode)
    ids, _ = expanded(tokens, batch.plan.total_rows - len(tokens.ids) + 1, image)
    assert list(processor.apply_chat_template(theirs, tokenize=True, return_dict=True)["input_ids"][0]) == ids
