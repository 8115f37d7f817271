"""The template without roles: images, the question as it is, the answer."""

import json
import pickle

import pytest

from lmmblocks.chat import (
    TEMPLATES,
    PromptTemplate,
    encode_chat,
    template_from_dict,
    template_setting,
    template_to_dict,
    written,
)
from lmmblocks.projectors.instruction_tokens import image_instructions
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, LmmError

TEMPLATE = TEMPLATES["instructblip"]


def asked(content, answer=None):
    turns = [{"role": "user", "content": content}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("content", ["<image>\nWhy?", "Why? <image>", "<image>Why?"])
def test_images_stand_in_front_of_the_beginning_and_the_question_is_what_the_qformer_reads(content):
    assert written(TEMPLATE.render(asked(content, "So.")), bos="<s>", eos="</s>") == "<image><s>Why? So.</s>"
    assert written(TEMPLATE.render(asked(content), add_generation_prompt=True), bos="<s>") == "<image><s>Why?"
    assert image_instructions(asked(content)) == ["Why?"]


def test_what_is_learned_is_the_answer_as_a_text_of_its_own_and_the_end(tiny_tokenizer):
    """The original tokenises question and answer apart and joins them without the second beginning."""

    def apart(text):
        return tiny_tokenizer(text, add_special_tokens=False)["input_ids"]

    tokens = encode_chat(asked("<image>\nWhat color is the cat?", "Black"), TEMPLATE, tiny_tokenizer)
    answer = [*apart("Black"), tiny_tokenizer.eos_token_id]
    question = [IMAGE_TOKEN, tiny_tokenizer.bos_token_id, *apart("What color is the cat?")]
    assert tokens.ids == [*question, *answer]
    assert tokens.labels == [IGNORE_LABEL] * len(question) + answer


def test_an_empty_answer_is_the_end_alone_and_an_empty_question_the_beginning():
    assert written(TEMPLATE.render(asked("<image>", "")), bos="<s>", eos="</s>") == "<image><s></s>"


@pytest.mark.parametrize(
    "messages, message",
    [
        ([{"role": "system", "content": "S"}, *asked("q", "a")], "no place for a system message"),
        ([*asked("q", "a"), *asked("r", "b")], "takes one question and its answer, found 4 turns: write what was said before into the question"),
    ],
)
def test_what_it_has_no_place_for_is_refused(messages, message):
    with pytest.raises(LmmError, match=f"template 'instructblip' {message}|template 'instructblip' has {message}"):
        TEMPLATE.render(messages)


def test_it_survives_pickle_and_json():
    variant = PromptTemplate("mine", lead="\n")
    for template in (TEMPLATE, variant):
        assert pickle.loads(pickle.dumps(template)) == template
        assert template_from_dict(json.loads(json.dumps(template_to_dict(template)))) == template
    assert template_setting(TEMPLATE) == "instructblip" and template_to_dict(variant)["type"] == "prompt"
