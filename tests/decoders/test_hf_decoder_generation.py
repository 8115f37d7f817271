"""Generation with a decoder of transformers inside a model: the tokens are those of ``transformers.generate``; caches can be cut and left."""

import warnings
from dataclasses import replace

import pytest
import torch

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.generate.conversation import Conversation
from lmmblocks.generate.decode import Answer, decode, new_cache, read_prompts
from lmmblocks.generate.options import Options
from lmmblocks.generate.prompts import as_prompt, as_questions
from lmmblocks.spec import LmmError, Segments

PACKED = ["gpt2", "opt", "gpt_neox", "mistral", "gemma2", "phi", "mixtral", "deepseek_v3"]
PADDED = ["bloom", "gptj", "falcon", "mamba", "jamba", "gpt_oss"]
QUESTIONS = ["What color is the cat?", "Is it asleep?", "There are 3 red squares and one blue circle. What is it?"]
NEW = 12


@pytest.fixture(scope="module")
def make_model(make_pair, tiny_config, tiny_tokenizer):
    """An LMM around a toy model, and transformers' model with the same weights; a tied head of random weights repeats what it read."""

    def make(kind):
        decoder, twin = make_pair(kind, tie_word_embeddings=False)
        torch.manual_seed(1)
        config = replace(tiny_config, projector=lb.config.Block("mlp", {"depth": 2}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build(config, decoder=decoder, tokenizer=tiny_tokenizer, weights="random")
        for parameter in (*model.encoder.parameters(), *model.projector.parameters()):
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        return model, twin

    return make


def generated(model, texts, images, most=NEW):
    options = Options.of({"max_new_tokens": most})
    prompts = [as_prompt(question, model.input_spec) for question in as_questions(texts, images)[0]]
    answers = [Answer(model, options) for _ in prompts]
    cache = new_cache(model, len(prompts))
    list(decode(model, cache, read_prompts(model, cache, prompts, options), answers, options))
    return [answer.ids for answer in answers], prompts


def embeds_of(model, prompt):
    """The rows of one prompt, put together here."""
    decoder = model.decoder
    rows = iter(model.encode(prompt.pixels)[0].split(prompt.image_rows)) if prompt.image_rows else iter(())
    parts = [next(rows) if token < 0 else decoder.embed(torch.tensor([token])) for token in prompt.ids]
    return torch.cat(parts)


@pytest.mark.parametrize("kind", PACKED + PADDED)
def test_greedy_tokens_equal_transformers_generate(make_model, colour_picture, kind):
    model, twin = make_model(kind)
    images = [[colour_picture(0)], None, [colour_picture(1), colour_picture(2)]]
    found, prompts = generated(model, QUESTIONS, images)
    with torch.no_grad():
        for ids, prompt in zip(found, prompts):
            rows = embeds_of(model, prompt)[None]
            expected = twin.generate(
                inputs_embeds=rows,
                attention_mask=torch.ones(rows.shape[:2], dtype=torch.long),
                do_sample=False,
                max_new_tokens=NEW,
                eos_token_id=model.tokenizer.eos_token_id,
            )
            assert ids == expected[0].tolist()
    assert len({tuple(ids) for ids in found}) > 1, found


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "bloom", "mamba"])
def test_a_conversation_answers_as_fresh_prompts_would(make_model, colour_picture, kind):
    model, _ = make_model(kind)
    chat, turns = Conversation(model), []
    picture = colour_picture(3)
    for index, text in enumerate(QUESTIONS):
        new = [picture] if index == 0 else []
        answer = chat.ask(text, new, max_new_tokens=4)
        turns.append({"role": "user", "content": f"<image>\n{text}" if new else text})
        assert answer == model.generate(turns, [picture], max_new_tokens=4), (kind, index)
        turns.append({"role": "assistant", "content": answer})


def rows_of(decoder, cache, embeds, new):
    """Read some rows of each sequence, all from the same table of rows."""
    parts, places = [], []
    for sequence, count in enumerate(new):
        start = cache.lengths[sequence]
        parts.append(embeds[sequence][start : start + count])
        places.append(torch.arange(start, start + count))
    with torch.no_grad():
        hidden = decoder(torch.cat(parts), positions=torch.cat(places), segments=Segments.of(new), cache=cache)
    return hidden.split(list(new))


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "bloom", "falcon", "mamba", "jamba", "gpt_oss"])
def test_reading_in_pieces_leaving_and_cutting_back_equal_reading_at_once(make_pair, kind):
    decoder, _ = make_pair(kind)
    embeds = [torch.randn(12, decoder.dim, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    at_once = rows_of(decoder, decoder.new_cache(3), embeds, (12, 12, 12))
    cache = decoder.new_cache(3)
    first = rows_of(decoder, cache, embeds, (5, 0, 2))
    second = rows_of(decoder, cache, embeds, (1, 3, 4))
    assert cache.lengths == [6, 3, 6]
    cache.truncate(2, 4)
    cache.keep([0, 2])
    third = rows_of(decoder, cache, [embeds[0], embeds[2]], (2, 6))
    assert cache.lengths == [8, 10]
    pairs = [
        (first[0], at_once[0][:5]),
        (first[2], at_once[2][:2]),
        (second[0], at_once[0][5:6]),
        (second[1], at_once[1][:3]),
        (second[2], at_once[2][2:6]),
        (third[0], at_once[0][6:8]),
        (third[1], at_once[2][4:10]),
    ]
    assert max((a - b).abs().max().item() for a, b in pairs) <= 1e-5


def test_wrong_use_of_a_cache_is_refused(make_pair):
    cache = make_pair("bloom")[0].new_cache(2)
    with pytest.raises(LmmError, match=r"twice: found \[1, 1\]"):
        cache.keep([1, 1])
    with pytest.raises(LmmError, match="cannot truncate sequence 0 to 3 rows: it holds 0"):
        cache.truncate(0, 3)
    decoder, _ = make_pair("bloom")
    with pytest.raises(LmmError, match="holds 2 sequences, the batch brings 1 segments"):
        decoder(torch.zeros(2, 32), positions=torch.arange(2), segments=Segments.of([2]), cache=cache)
