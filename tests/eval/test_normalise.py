"""The answer normaliser is the reference's to the character, quirks included."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmmblocks.eval.normalise import normalise_answer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "misc.json").read_text())["normalise"]


@pytest.mark.parametrize("answer", list(GOLDEN))
def test_answers_equal_the_recorded_ones(answer):
    assert normalise_answer(answer) == GOLDEN[answer]


# Worked out from the reference's rules (mmf EvalAIAnswerProcessor), one quirk each.
QUIRKS = {
    "": "",
    "None": "0",
    "TEN apples": "10 apples",
    "eleven": "eleven",
    "an apple, a pear and the fig": "apple pear and fig",
    "a-b": "b",  # the hyphen becomes a space, and then "a" is an article
    "x-ray": "x ray",
    "x -ray": "x ray",
    "t-shirt - blue": "tshirt blue",  # one hyphen touches a space: all are deleted
    "and/or": "and or",
    "3.5.": "3.5",
    "3. 5": "3 5",
    "a.5": "a.5",
    "v1.x": "v1x",
    "what?": "what",
    "it's": "it 's",
    "its": "its",
    "somebody'd": "somebodyd",
    "somebodyd": "somebodyd",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "couldntve": "couldntve",
    "Im": "im",
    "line\none\ttwo": "line 1 2",
    "rock'n'roll": "rock'n'roll",
    "it is 5:30 pm": "it is 5:30 pm",
    "50%": "50%",
    "$1,000.50": "$1000.50",
}


@pytest.mark.parametrize("answer", list(QUIRKS))
def test_quirks(answer):
    assert normalise_answer(answer) == QUIRKS[answer]


def test_only_the_first_32_periods_go():
    assert normalise_answer(".x" * 40) == "x" * 32 + ".x" * 8


words = st.lists(st.from_regex(r"\A[b-z]{2,6}\Z"), min_size=1, max_size=5)


@given(words)
def test_plain_words_only_lose_articles_and_spell_numbers(answer):
    numbers = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
               "seven": "7", "eight": "8", "nine": "9", "ten": "10"}  # fmt: skip
    given_back = normalise_answer("  ".join(answer).upper()).split()
    expected = [numbers.get(word, word) for word in answer if word not in ("a", "an", "the")]
    assert [word.replace("'", "") for word in given_back] == expected


@given(st.text(max_size=60))
def test_any_text_becomes_lower_case_words_without_articles(answer):
    found = normalise_answer(answer)
    assert found == " ".join(found.split()) and not {"a", "an", "the"} & set(found.split())
    assert not re.search(r'[;/\[\]"{}()=+\\_<>@`!,?-]', found)
