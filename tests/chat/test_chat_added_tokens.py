"""What becomes of a token that was added, in training and in answers: the ids that are learned are those that are shown again."""

import warnings

import pytest

from lmmblocks.chat import answer_ends, decode_supervised, encode_chat, get_template
from lmmblocks.generate.text import AnswerText

TEMPLATE = "vicuna_v1"


def conversation(answer):
    return [{"role": "user", "content": "Where is <loc0>?"}, {"role": "assistant", "content": answer}]


def learned(tokenizer, answer):
    tokens = encode_chat(conversation(answer), TEMPLATE, tokenizer)
    return tokens, [label for label in tokens.labels if label >= 0]


@pytest.fixture
def grown(make_family, family_name):
    tokenizer = make_family(family_name)
    tokenizer.add_tokens(["[SEG]", "<loc0>"])
    return tokenizer


@pytest.fixture(params=["llama", "gpt", "unigram"])
def family_name(request):
    return request.param


def test_an_ordinary_token_is_learned_shown_and_read_back(grown):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens, labels = learned(grown, "there: [SEG] and <loc0>.")
    wanted = grown.convert_tokens_to_ids(["[SEG]", "<loc0>"])
    assert [label for label in labels if label in wanted] == wanted and wanted[1] in tokens.ids[: -len(labels)]
    ends = answer_ends(get_template(TEMPLATE), grown)
    answer = AnswerText(grown, ())
    shown = "".join(answer.push(label) for label in labels if label not in ends) + answer.finish()
    assert shown == "there: [SEG] and <loc0>."
    assert decode_supervised(tokens, grown, template=TEMPLATE) == [shown]


def test_a_special_token_stays_text_and_is_told(make_family, family_name):
    tokenizer = make_family(family_name)
    tokenizer.add_tokens(["[SEG]"], special_tokens=True)
    with pytest.warns(UserWarning, match=r"a text holds '\[SEG\]', a special token .* tokenizer.add_tokens"):
        _, labels = learned(tokenizer, "there: [SEG].")
    assert tokenizer.convert_tokens_to_ids("[SEG]") not in labels
    ends = answer_ends(get_template(TEMPLATE), tokenizer)
    answer = AnswerText(tokenizer, ())
    assert "".join(answer.push(label) for label in labels if label not in ends) + answer.finish() == "there: [SEG]."


def test_markup_in_a_text_is_no_news(make_family, family_name):
    tokenizer = make_family(family_name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.add_tokens(["<image>"], special_tokens=True)
        _, labels = learned(tokenizer, f"it says {tokenizer.eos_token} and \\<image>.")
    assert labels.count(tokenizer.eos_token_id) == 1
