"""Asking, scoring and counting: with a model that says what it is told, and once with a real one."""

import json

import pytest
from PIL import Image

from lmmblocks.data.records import load_records
from lmmblocks.eval import Question, Result, answer_questions, blind, evaluate, read_questions, summarise
from lmmblocks.spec import LmmError


class Parrot:
    """A model that answers from a table and remembers how it was asked."""

    def __init__(self, answers):
        self.answers, self.calls = answers, []

    def generate(self, prompts, images=None, **options):
        self.calls.append((list(prompts), images, options))
        return [self.answers[prompt] for prompt in prompts]


def question(prompt, answer, *, task="color", kind="short", images=()):
    return Question(prompt, task, kind, prompt, tuple(images), answer)


QUESTIONS = [
    question("1", "red"),
    question("2", "red"),
    question("3", "blue"),
    question("4", "green"),
    question("5", "A", task="letter", kind="letter"),
    question("6", "B", task="letter", kind="letter"),
    question("7", "[1]", task="list", kind="json"),
    question("8", "[2]", task="list", kind="json"),
    question("9", "a red circle", task="caption", kind="caption"),
]
ANSWERS = {"1": "Red", "2": "The red circle is red.", "3": "red", "4": "green", "5": "A", "6": "A", "7": "[1]", "8": "[2", "9": "a red square"}


@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_answers_come_in_order_whatever_the_batch_size(batch_size):
    model, progress = Parrot(ANSWERS), []
    answers = answer_questions(model, QUESTIONS, batch_size=batch_size, max_new_tokens=7, on_batch=progress.append)
    assert answers == [ANSWERS[q.prompt] for q in QUESTIONS]
    sizes = [len(prompts) for prompts, _, _ in model.calls]
    assert max(sizes) <= batch_size and sum(sizes) == 9 and progress == [sum(sizes[: i + 1]) for i in range(len(sizes))]
    assert all(options == {"max_new_tokens": 7} for _, _, options in model.calls)


def test_each_question_brings_its_own_images():
    asked = [question("1", "red", images=["a.png"]), question("2", "red"), question("3", "red", images=["b.png", "c.png"])]
    model = Parrot(ANSWERS)
    answer_questions(model, asked, batch_size=2)
    assert [images for _, images, _ in model.calls] == [[["a.png"], []], [["b.png", "c.png"]]]


def test_no_questions_need_no_model():
    assert answer_questions(None, []) == []
    assert summarise([]) == {
        "tasks": {},
        "short_answer": None,
        "short_answer_majority": None,
        "format": None,
        "json_parses": None,
        "questions": 0,
    }


def test_results_keep_question_answer_and_score():
    results = evaluate(Parrot(ANSWERS), QUESTIONS, batch_size=2)
    assert [r.question for r in results] == QUESTIONS and [r.answer for r in results] == list(ANSWERS.values())
    assert [r.score for r in results] == [1, 0, 0, 1, 1, 0, 1, 0, pytest.approx(2 / 3)]


def test_summary_counts_per_task_and_over_all():
    summary = summarise(evaluate(Parrot(ANSWERS), QUESTIONS))
    assert summary["tasks"] == {
        "color": {"questions": 4, "kind": "short", "score": 0.5, "majority": 0.5},
        "letter": {"questions": 2, "kind": "letter", "score": 0.5, "majority": 0.5},
        "list": {"questions": 2, "kind": "json", "score": 0.5, "majority": 0.5},
        "caption": {"questions": 1, "kind": "caption", "score": pytest.approx(2 / 3), "majority": 1},
    }
    assert summary["short_answer"] == 3 / 6 and summary["short_answer_majority"] == pytest.approx((4 * 0.5 + 2 * 0.5) / 6)
    assert summary["format"] == 5 / 6 and summary["json_parses"] == 1 / 2 and summary["questions"] == 9


def test_majority_of_short_answers_leaves_out_the_other_kinds_of_a_task():
    mixed = [
        question("1", "a red circle", kind="caption", task="all"),
        question("2", "red", task="all"),
        question("3", "red", task="all"),
        question("4", "blue", task="all"),
    ]
    summary = summarise([Result(q, "red", 0.0) for q in mixed])
    assert summary["short_answer_majority"] == pytest.approx(2 / 3)


def test_blind_questions_show_covered_images_of_the_same_count(colour_picture, tmp_path):
    colour_picture(1).save(tmp_path / "a.png")
    asked = [question("1", "red", images=[tmp_path / "a.png", colour_picture(2)]), question("2", "red")]
    covered = blind(asked, lambda image: Image.new("RGB", image.size, "gray"))
    assert [[i.getcolors() for i in q.images] for q in covered] == [[[(1200, (128, 128, 128))]] * 2, []]
    assert [(q.prompt, q.answer) for q in covered] == [(q.prompt, q.answer) for q in asked]


@pytest.fixture
def records(tmp_path, colour_picture):
    """Write records of one turn each and load them; `raw` are their further keys, or their turns."""
    colour_picture(0).save(tmp_path / "a.png")

    def make(*raws):
        entries = []
        for index, raw in enumerate(raws):
            turns = [{"from": "human", "value": "<image>\nWhat color?"}, {"from": "gpt", "value": "red"}]
            entries.append({"id": f"r{index}", "image": "a.png", "conversations": turns, **raw})
        (tmp_path / "data.json").write_text(json.dumps(entries))
        return load_records(tmp_path / "data.json", tmp_path)

    return make


def test_records_become_questions(records, tmp_path):
    plain, named = read_questions(records({}, {"tasks": ["color"], "kinds": ["text"]}))
    assert (plain.id, plain.task, plain.kind) == ("r0", "all", "short")
    assert (named.id, named.task, named.kind) == ("r1", "color", "text")
    assert plain.prompt == "<image>\nWhat color?" and plain.answer == "red"
    assert [str(image) for image in plain.images] == [str(tmp_path / "a.png")]


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"kinds": ["shrot"]}, "record 'r1': unknown kind of question 'shrot'; did you mean 'short'"),
        ({"kinds": "short"}, "record 'r1' has kinds 'short': expected a list with one name"),
        ({"kinds": []}, r"has kinds \[\]"),
        ({"tasks": ["a", "b"]}, r"has tasks \['a', 'b'\]"),
        ({"kinds": ["json"]}, "record 'r1': the right answer 'red' is not JSON"),
        ({"kinds": ["box"]}, "record 'r1': no box in 'red'"),
        (
            {"conversations": [{"from": role, "value": text} for role, text in (("human", "<image>?"), ("gpt", "a")) * 2], "image": ["a.png"] * 2},
            "record 'r1' has 4 messages: evaluation asks one question",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(next(iter(value))),
)
def test_records_that_cannot_be_scored_are_refused_before_anything_is_asked(records, raw, message):
    with pytest.raises(LmmError, match=message):
        read_questions(records({}, raw))


def test_a_real_model_is_asked_like_any_other(tiny_model, colour_picture):
    asked = [
        question("<image>\nWhat color is it?", "red", images=[colour_picture(1)]),
        question("Is it asleep?", "no"),
    ]
    together = evaluate(tiny_model, asked, batch_size=2, max_new_tokens=3)
    alone = evaluate(tiny_model, asked, batch_size=1, max_new_tokens=3)
    assert [r.answer for r in together] == [r.answer for r in alone]
    assert summarise(together)["questions"] == 2
