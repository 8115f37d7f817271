"""What each kind of answer scores, case by case."""

import pytest

from lmmblocks.eval.scorers import KINDS, is_short, parse_json, score
from lmmblocks.spec import LmmError

CASES = [
    # kind, prediction, truth, score
    ("short", "Red", "red", 1),
    ("short", "the red.", "red", 1),
    ("short", "2", "two", 1),
    ("short", "reddish", "red", 0),
    ("short", "", "red", 0),
    ("short", "red circle", "circle red", 0),
    ("text", "STOP", "stop", 1),
    ("text", "stopp", "stop", 0),
    ("letter", "B", "B", 1),
    ("letter", " B\n", "B", 1),
    ("letter", "b", "B", 0),
    ("letter", "B.", "B", 0),
    ("letter", "B. red", "B", 0),
    ("json", '{"a": 1, "b": [2]}', '{"b":[2],"a":1}', 1),
    ("json", '[{"a": 1}, {"b": 2}]', '[{"b": 2}, {"a": 1}]', 1),
    ("json", '[{"a": [1, 2]}, {"a": [3]}]', '[{"a": [3]}, {"a": [2, 1]}]', 1),
    ("json", "[1, 1, 2]", "[1, 2, 2]", 0),
    ("json", '{"a": 1.0}', '{"a": 1}', 1),
    ("json", '{"a": true}', '{"a": 1}', 0),
    ("json", "[true, 1]", "[1, true]", 1),
    ("json", '{"a": "1"}', '{"a": 1}', 0),
    ("json", '{"a": 1, "c": 2}', '{"a": 1}', 0),
    ("json", '{"a": 1}, and more', '{"a": 1}', 0),
    ("json", "```json\n[]\n```", "[]", 0),
    ("json", "null", "[]", 0),
    ("json", "[" * 100_000, "[]", 0),
    ("box", "[0.10, 0.10, 0.50, 0.50]", "[0.10, 0.10, 0.50, 0.50]", 1),
    ("box", "It is at [0.1, 0.1, 0.5, 0.5].", "[0.10, 0.10, 0.50, 0.50]", 1),
    ("box", "[0.00, 0.00, 0.40, 0.20]", "[0.00, 0.00, 0.40, 0.40]", 1),  # half of it
    ("box", "[0.00, 0.00, 0.40, 0.19]", "[0.00, 0.00, 0.40, 0.40]", 0),
    ("box", "[0.60, 0.60, 0.90, 0.90]", "[0.10, 0.10, 0.50, 0.50]", 0),
    ("box", "[0.50, 0.50, 0.10, 0.10]", "[0.10, 0.10, 0.50, 0.50]", 0),
    ("box", "[1, 2, 300, 400]", "[0.10, 0.10, 0.50, 0.50]", 0),
    ("box", "top left", "[0.10, 0.10, 0.50, 0.50]", 0),
    ("caption", "A red circle.", "a red circle", 1),
    ("caption", "a red circle", "A red square.", 2 / 3),
    ("caption", "red red red", "red", 1 / 2),
    ("caption", "red,circle", "circle red", 1),
    ("caption", "", "red", 0),
    ("caption", "blue", "red", 0),
]


@pytest.mark.parametrize("kind, prediction, truth, expected", CASES, ids=lambda value: str(value)[:24])
def test_score(kind, prediction, truth, expected):
    assert score(kind, prediction, truth) == pytest.approx(expected)


def test_every_kind_has_cases_and_perfect_answers_score_one():
    assert {kind for kind, *_ in CASES} == set(KINDS)
    for kind, _, truth, _ in CASES:
        assert score(kind, truth, truth) == 1


@pytest.mark.parametrize(
    "kind, truth, message",
    [("json", "not json", "the right answer 'not json' is not JSON"), ("box", "top left", "no box in 'top left'")],
)
def test_a_wrong_right_answer_is_an_error_whatever_the_model_says(kind, truth, message):
    for prediction in ("[]", "nonsense"):
        with pytest.raises(LmmError, match=message):
            score(kind, prediction, truth)


def test_unknown_kinds_are_refused_with_the_closest():
    with pytest.raises(LmmError, match="unknown kind of question 'shrot'; did you mean 'short'.; known: .'box'"):
        score("shrot", "a", "a")


@pytest.mark.parametrize(
    "text, short",
    [
        ("red", True),
        (" B\n", True),
        ("top left corner", True),
        ("红色", True),
        ("it is red now", False),
        ("Red.", False),
        ("Red!", False),
        ("", False),
        ("  \n", False),
        ("red\nblue", False),
    ],
)
def test_short_answers_are_words_phrases_or_letters(text, short):
    assert is_short(text) is short


@pytest.mark.parametrize("text, value", [("[1]", [1]), ('"a"', "a"), ("0", 0), ("{", None), ("", None), ("[1] x", None)])
def test_json_is_parsed_as_a_whole_or_not_at_all(text, value):
    assert parse_json(text) == value
