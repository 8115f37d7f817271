import pytest

from lmmblocks.chat import FORMAT_PROMPTS, with_format
from lmmblocks.spec import LmmError

PAPER = {
    "short_answer": "Answer the question using a single word or phrase.",
    "option_letter": "Answer with the option's letter from the given choices directly.",
    "option_letter_cn": "请直接回答选项字母。",
    "caption": "Provide a one-sentence caption for the provided image.",
    "unanswerable": "When the provided information is insufficient, respond with 'Unanswerable'.\nAnswer the question using a single word or phrase.",
}


def test_prompts_are_the_papers_word_for_word():
    assert {name: FORMAT_PROMPTS[name] for name in PAPER} == PAPER
    assert set(FORMAT_PROMPTS) == {*PAPER, "region_description", "region_box", "json", "none"}


@pytest.mark.parametrize("fmt", [*PAPER, "json"])
def test_prompt_follows_the_question_on_a_new_line(fmt):
    assert with_format("<image>\nWhat is it?", fmt) == f"<image>\nWhat is it?\n{FORMAT_PROMPTS[fmt]}"


def test_region_prompts_lead_their_box_or_sentence_as_in_the_released_data():
    box = "[0.00, 0.64, 0.30, 0.76]"
    assert with_format(box, "region_description") == f"Please provide a short description for this region: {box}"
    assert with_format("a red cup", "region_box").endswith("region this sentence describes: a red cup")


def test_none_changes_nothing_and_an_empty_question_gives_the_prompt():
    assert with_format("What is it?", "none") == "What is it?"
    assert with_format("", "caption") == PAPER["caption"]


def test_unknown_format_names_the_closest():
    with pytest.raises(LmmError, match="'short_anwser'.*did you mean 'short_answer'"):
        with_format("What is it?", "short_anwser")


def test_prompts_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        FORMAT_PROMPTS["short_answer"] = "Reply briefly."
