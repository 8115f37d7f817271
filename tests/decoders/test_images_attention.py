"""``attention="images"``: each image row sees its whole image, in training, in the loss and in answers alike; what can't do that refuses."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks.decoders.hf import HFDecoder
from lmmblocks.decoders.rotary import LongRope
from lmmblocks.decoders.transformer import Transformer, TransformerConfig
from lmmblocks.eval.run import answer_questions
from lmmblocks.generate import Conversation, engine
from lmmblocks.generate import conversation as conversation_module
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import Batch, LmmError
from lmmblocks.weights.parts.hf_decoders import decoder_to_hf

DECODER = dict(dim=24, layers=2, heads=4, kv_heads=2, ffn_dim=32, vocab=400, max_positions=512)
TOLERANCE = 2e-5


def picture(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8))


def asked(text="<image>\nWhat color is the cat?"):
    return [{"role": "user", "content": text}]


PROMPTS = (
    ([picture(0)], asked()),
    ([], asked("Is it asleep?")),
    ([picture(1), picture(2)], asked("There are <image> and <image>: which is red?")),
)


@pytest.fixture(params=["native", "windowed", "hf"])
def make(request, make_tiny_model, tiny_config, make_hf):
    """A model of each kind of decoder, with the attention that is asked for."""

    def build(attention):
        config = dataclasses.replace(tiny_config, attention=attention)
        if request.param == "native":
            return make_tiny_model(config=config)
        if request.param == "windowed":
            return make_tiny_model(config=dataclasses.replace(config, decoder=TransformerConfig(**DECODER, window=9)))
        return make_tiny_model(config=config, decoder=HFDecoder.of(make_hf("llama")))

    return build


def twin_of(model):
    """transformers' model with the same weights, which takes a mask ``(1, 1, T, T)``."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if isinstance(model.decoder, HFDecoder):
        values = {**model.decoder.config.hf}
    else:
        values = decoder_to_hf(model.decoder.config)
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    twin = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    twin.load_state_dict(model.decoder.state_dict())
    return twin


def expected_logits(model, images, messages, attention):
    """Logits of one prompt by transformers, with the mask written down row by row."""
    pixels, grids = model.encoder.preprocess.batch(images)
    rows, counts = model.encode(pixels)
    ids = lb.chat.encode_chat(messages, model.template, model.tokenizer, add_generation_prompt=True).ids
    embeds, image_of, pieces = [], [], iter(rows.split(list(counts)))
    for token in ids:
        if token == -200:
            piece = next(pieces)
            image_of += [len(embeds)] * len(piece)
            embeds.append(piece)
        else:
            image_of.append(-1)
            embeds.append(model.decoder.embed(torch.tensor([token])))
    window = getattr(model.decoder.config, "window", None)
    own = torch.tensor(image_of)
    places = torch.arange(len(own))
    visible = places[None] <= places[:, None]
    if attention == "images":
        visible = visible | ((own[None] == own[:, None]) & (own >= 0)[:, None])
    if window is not None:
        visible = visible & (places[None] > places[:, None] - window)
    mask = torch.zeros(len(own), len(own)).masked_fill(~visible, torch.finfo(torch.float32).min)
    return twin_of(model)(inputs_embeds=torch.cat(embeds)[None], attention_mask=mask[None, None]).logits[0]


def logits_of(model, images, messages):
    """Logits of one prompt as training computes them."""
    return model.logits(lb.collate([lb.Sample(messages, images)], model, add_generation_prompt=True))


@pytest.fixture
def first_logits(monkeypatch):
    """Logits of the first token of every answer that is generated."""
    seen = []
    for module in (engine, conversation_module):
        inner = module.read_prompts

        def spy(*args, inner=inner):
            seen.append(inner(*args))
            return seen[-1]

        monkeypatch.setattr(module, "read_prompts", spy)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("attention", ["causal", "images"])
def test_training_sees_what_the_mask_of_transformers_lets_it_see(make, attention):
    model = make(attention)
    for images, messages in PROMPTS:
        found, wanted = (
            logits_of(model, images, messages),
            expected_logits(model, images, messages, attention),
        )
        assert (found - wanted).abs().max() < TOLERANCE * wanted.abs().max().clamp_min(1)
        if images:
            other = expected_logits(model, images, messages, "images" if attention == "causal" else "causal")
            assert (found - other).abs().max() > 100 * TOLERANCE  # the two are told apart


@torch.no_grad()
@pytest.mark.parametrize("attention", ["causal", "images"])
def test_the_first_token_of_an_answer_has_the_logits_of_training(make, attention, first_logits):
    """One prompt, a batch, and a conversation whose second picture comes with a cache."""
    model = make(attention)
    wanted = [logits_of(model, images, messages)[-1] for images, messages in PROMPTS]
    model.generate([messages for _, messages in PROMPTS], images=[images for images, _ in PROMPTS], max_new_tokens=3)
    (batched,) = first_logits
    for (images, messages), row, together in zip(PROMPTS, wanted, batched):
        model.generate(messages, images=images, max_new_tokens=1)
        for found in (first_logits[-1][0], together):
            assert (found - row).abs().max() < TOLERANCE * row.abs().max().clamp_min(1)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["causal", "images"])
def test_a_picture_of_a_later_turn_sees_itself_behind_the_cache(make, attention, first_logits):
    model = make(attention)
    chat = Conversation(model)
    chat.ask("<image>\nWhat color is the cat?", picture(0), max_new_tokens=4)
    chat.ask("<image>\nAnd this?", picture(1), max_new_tokens=4)
    chat.ask("<image> or <image>?", [picture(2), picture(3)], max_new_tokens=4)
    for turn, count in ((0, 1), (1, 2), (2, 4)):
        row = logits_of(model, [picture(n) for n in range(count)], chat.messages[: 2 * turn + 1])[-1]
        assert (first_logits[turn][0] - row).abs().max() < TOLERANCE * row.abs().max().clamp_min(1)


@torch.no_grad()
def test_evaluation_asks_with_the_attention_too(make, first_logits):
    from lmmblocks.eval.questions import Question

    model = make("images")
    (images, messages) = PROMPTS[0]
    question = Question(0, "color", "short", messages[0]["content"], tuple(images), "Black")
    answer_questions(model, [question], max_new_tokens=1)
    row = logits_of(model, images, messages)[-1]
    assert (first_logits[0][0] - row).abs().max() < TOLERANCE * row.abs().max().clamp_min(1)


def test_gradients_go_through_what_is_seen_ahead(make):
    """The last row of a picture moves the first one's state, and only with this attention."""
    reached = {}
    for attention in ("causal", "images"):
        model = make(attention)
        batch = lb.collate([lb.Sample(asked(), [picture(0)])], model, add_generation_prompt=True)
        encoded = model.encode_images(batch.pixels)
        rows = encoded.rows_MD.detach().requires_grad_()
        hidden = model.read(dataclasses.replace(encoded, rows_MD=rows), batch.plan)
        hidden[batch.plan.image_rows[0]].pow(2).sum().backward()
        reached[attention] = bool(rows.grad[-1].any())
    assert reached == {"causal": False, "images": True}


def test_it_is_saved_loaded_and_told(make, tmp_path):
    model = make("images")
    model.save(tmp_path / "native", format="native")
    again = lb.load(tmp_path / "native")
    assert (again.attention, again.config.attention) == ("images", "images")
    images, messages = PROMPTS[2]
    with torch.no_grad():
        assert torch.equal(logits_of(again, images, messages), logits_of(model, images, messages))
    from lmmblocks.weights.inspect import inspect

    assert "each image row sees its whole image" in inspect(tmp_path / "native").settings["attention"]


@pytest.mark.parametrize("form", ["hf", "llava"])
def test_formats_that_cant_say_it_refuse(make_tiny_model, tiny_config, tmp_path, form):
    model = make_tiny_model(config=dataclasses.replace(tiny_config, attention="images"))
    with pytest.raises(LmmError, match=f"format '{form}' can't say that attention is 'images'.*format='native'"):
        model.save(tmp_path / "model", format=form)
    assert not (tmp_path / "model").exists()


class Looking(Transformer):
    """A decoder of one's own that knows no row that sees ahead."""

    sees_ahead = "it was never taught to"


class Short(torch.nn.Module):
    """One whose forward takes no ends at all."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config, self.dim, self.vocab = inner, inner.config, inner.dim, inner.vocab

    table = property(lambda self: self.inner.table)
    head_weight = property(lambda self: self.inner.head_weight)

    def embed(self, ids):
        return self.inner.embed(ids)

    def head(self, hidden):
        return self.inner.head(hidden)

    def forward(self, embeds, *, positions, segments, cache=None):
        return self.inner(embeds, positions=positions, segments=segments, cache=cache)


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (lambda hf: HFDecoder.of(hf("llama"), way="padded"), "runs padded, because way='padded' says so"),
        (lambda hf: HFDecoder.of(hf("bloom")), "bloom runs padded"),
        (
            lambda hf: TransformerConfig(**DECODER, rope_scaling=LongRope((1.0,) * 3, (2.0,) * 3, 64)),
            "with a cache LongRoPE reads rows again",
        ),
        (lambda hf: Looking(TransformerConfig(**DECODER)), "it was never taught to"),
        (lambda hf: Short(TransformerConfig(**DECODER).build()), "its forward takes no kv_end"),
    ],
)
def test_decoders_that_cant_are_refused_when_the_model_is_composed(make_tiny_model, tiny_config, make_hf, decoder, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = decoder(make_hf)
    make_tiny_model(config=tiny_config, decoder=made)  # fine as long as nothing sees ahead
    with pytest.raises(
        LmmError,
        match=f"attention='images' lets image rows see ahead, which decoder .* can't compute: .*{reason}",
    ):
        make_tiny_model(config=dataclasses.replace(tiny_config, attention="images"), decoder=made)


def test_a_plan_that_is_causal_is_refused_by_a_model_that_isnt(make_tiny_model, tiny_config):
    model = make_tiny_model(config=dataclasses.replace(tiny_config, attention="images"))
    pixels, grids = model.encoder.preprocess.batch([picture(0)])
    with pytest.raises(LmmError, match="attention is 'images', the plan's is causal"):
        model(Batch(pixels, grids, plan_splice([[1, -200, 5]], [[4]])))
    text = Batch(pixels[:0], (), plan_splice([[1, 5]], [[]]))
    assert model(text).shape[0] == 2


@pytest.mark.parametrize("value", ["bidirectional", "image", None, True])
def test_other_words_are_refused_with_the_closest(tiny_config, value):
    with pytest.raises(LmmError, match="attention must be one of causal, images, found"):
        dataclasses.replace(tiny_config, attention=value)
