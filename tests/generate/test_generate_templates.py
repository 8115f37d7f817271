"""Generation ends where the template says an answer ends, and shows nothing of its markup."""

import dataclasses
import warnings

import pytest
from PIL import Image

from lmmblocks.chat import TEMPLATES, MarkedTemplate, template_to_dict
from lmmblocks.chat.text_encoder import text_encoder
from lmmblocks.generate.conversation import Conversation
from lmmblocks.generate.decode import Answer
from lmmblocks.generate.engine import generate_stream
from lmmblocks.generate.options import Options
from lmmblocks.generate.text import AnswerText

LINES = MarkedTemplate("lines", opening="{bos}Q: ", to_answer="\nA:", lead=" ", ending="{eos}", to_question="\nQ: ")
QUESTION = "What colour is the cat?"


@pytest.fixture(scope="module")
def spoken(make_model):
    """A model, and what it says with an end token that never comes."""
    model = make_model(template=template_to_dict(LINES))
    return model, model.generate(QUESTION, max_new_tokens=16)


def ids_of(model, text):
    return text_encoder(model.tokenizer).encode(text)


def answer_of(model, ids):
    answer = Answer(model, Options(max_new_tokens=64))
    shown = "".join(answer.push(token) for token in ids)
    return shown, answer.done


def test_the_token_that_ends_a_turn_ends_the_answer_and_is_not_shown(spoken, make_model, greedy_ids):
    model, whole = spoken
    ids = greedy_ids(model, [{"role": "user", "content": QUESTION}], count=16)
    tokens = model.tokenizer.convert_ids_to_tokens(ids)
    prompt = f"Q: {QUESTION}\nA:".replace(" ", "▁")
    at = next(n for n in range(2, len(ids)) if tokens[n] not in tokens[:n] and tokens[n] not in prompt)
    token = tokens[at]
    ending = make_model(template=template_to_dict(dataclasses.replace(LINES, ending=token, tokens=(token,))))
    expected = AnswerText(model.tokenizer, (), (" ", ""))
    assert ending.generate(QUESTION, max_new_tokens=16) == "".join(map(expected.push, ids[:at])) + expected.finish(ended=True)
    assert whole.startswith(ending.generate(QUESTION, max_new_tokens=16))


@pytest.mark.parametrize("special", [True, False])
def test_an_end_token_counts_whether_the_tokenizer_calls_it_special_or_not(make_model, make_tokenizer, special):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=special)
    model = make_model(template="chatml", tokenizer=tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert answer_of(model, [*ids_of(model, " the cat "), end]) == (" the cat ", True), "ChatML takes no space off an answer"
    assert answer_of(model, [*ids_of(model, "the cat"), tokenizer.eos_token_id]) == ("the cat", True)


def test_what_the_template_puts_around_an_answer_is_taken_off(make_model):
    model = make_model(template="llama2")
    end = model.tokenizer.eos_token_id
    assert answer_of(model, [*ids_of(model, "  the cat  "), end]) == (" the cat ", True)
    assert answer_of(model, [*ids_of(model, "  "), end]) == ("", True)
    cut_short = Answer(model, Options(max_new_tokens=1))
    assert cut_short.push(*ids_of(model, " ")) == "", "the space in front"


def test_text_that_ends_an_answer_is_not_shown(make_model):
    model = make_model(template="vicuna_v0")
    assert answer_of(model, ids_of(model, " the # cat###")) == ("the # cat", True)


def test_a_lead_and_a_tail_of_several_tokens_are_taken_off(tokenizer):
    encode = text_encoder(tokenizer).encode
    for text, ended, shown in [
        ("\n> cat.\n", True, "cat"),
        ("\n> cat.\n", False, "cat.\n"),
        ("\ncat.", True, "\ncat."),
        ("\n>", True, ""),
    ]:
        answer = AnswerText(tokenizer, (), ("\n> ", ".\n"))
        pieces = [answer.push(token) for character in text for token in encode(character)]
        assert "".join(pieces) + answer.finish(ended=ended) == shown


def test_a_conversation_goes_on_behind_the_templates_own_end(make_model, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(TEMPLATES["gemma"].tokens), special_tokens=True)
    model = make_model(template="gemma", tokenizer=tokenizer)
    chat = Conversation(model, system="Be brief.")
    first = chat.ask(QUESTION, max_new_tokens=6)
    second = chat.ask("Is it asleep?", max_new_tokens=6)
    fresh = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Is it asleep?"},
    ]
    assert model.generate(fresh, max_new_tokens=6) == second


@pytest.mark.parametrize("way", ["generate", "stream", "chat"])
def test_a_template_that_leaves_questions_out_says_so(make_model, way):
    model, picture = make_model(template="plain"), Image.new("RGB", (9, 9))
    ask = {
        "generate": lambda text: model.generate(text, images=picture, max_new_tokens=1),
        "stream": lambda text: list(generate_stream(model, text, picture, max_new_tokens=1)),
        "chat": lambda text: Conversation(model).ask(text, picture, max_new_tokens=1),
    }[way]
    with pytest.warns(UserWarning, match="template 'plain' is for captions and leaves the words of the (prompt|conversation) out: .*vicuna_v1"):
        ask("What is it?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask("<image>")
