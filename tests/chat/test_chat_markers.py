"""The place of an image and the word `<image>` are never mistaken for each other."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmmblocks.chat import encode_chat, escape_markers, llava15_messages
from lmmblocks.chat.pieces import IMAGE_MARKER, content_of_parts, content_pieces, count_markers, split_markers
from lmmblocks.generate.prompts import as_questions, user_message
from lmmblocks.projectors.instruction_tokens import image_instructions
from lmmblocks.spec import IMAGE_TOKEN, LmmError

WORDS = st.lists(st.sampled_from(["\\", "<image>", "<ima", "ge>", "<", "image>", " ", "\n", "a", "\\<image>"]), max_size=10).map("".join)


def conversation(content, answer="yes"):
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


@given(WORDS)
def test_an_escaped_text_is_that_text(text):
    assert split_markers(escape_markers(text)) == [text]
    assert [piece.text for piece in content_pieces(escape_markers(text), "user")] == ([text] if text else [])


@given(st.lists(WORDS | st.none(), max_size=6))
def test_the_parts_of_a_list_are_found_again_in_the_string(parts):
    content = content_of_parts(parts)
    assert count_markers(content) == parts.count(None)
    said = "".join(part for part in parts if part)
    assert "".join(split_markers(content)).replace("\n", "") == said.replace("\n", "")


@pytest.mark.parametrize(("backslashes", "text", "images"), [(0, "", 1), (1, "<image>", 0), (2, "\\", 1), (3, "\\<image>", 0), (4, "\\\\", 1)])
def test_backslashes_count_as_in_a_shell(backslashes, text, images):
    content = "\\" * backslashes + IMAGE_MARKER
    assert "".join(split_markers(content)) == text and count_markers(content) == images


def test_backslashes_elsewhere_are_text():
    assert split_markers("C:\\new\\\\x <image>\\") == ["C:\\new\\\\x ", "\\"]


@pytest.mark.parametrize("mode", ["pieces", "llava15"])
@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v1", "mpt", "instructblip"])
def test_the_word_has_the_ids_of_its_characters_in_every_turn(family, template, mode):
    plain, word = (conversation(f"<image>\nthe tag {tag} does?", f"it is {tag}") for tag in ("<imagE>", "\\<image>"))
    expected = encode_chat(plain, template, family, mode=mode)
    found = encode_chat(word, template, family, mode=mode)
    assert found.ids.count(IMAGE_TOKEN) == expected.ids.count(IMAGE_TOKEN) == 1
    listed = conversation([{"type": "image"}, {"type": "text", "text": "the tag <image> does?"}], [{"type": "text", "text": "it is <image>"}])
    assert encode_chat(listed, template, family, mode=mode) == found


def test_llavas_order_keeps_the_word_a_word():
    moved = llava15_messages(conversation("the tag \\<image> here\n<image>"))
    assert moved[0]["content"] == "<image>\nthe tag \\<image> here"
    assert image_instructions(moved) == ["the tag <image> here"]


def test_a_content_list_of_another_form_is_refused_by_its_part(tiny_llama):
    for part in ({"type": "video"}, {"type": "image", "image": "a.png"}, "text", {"type": "text"}):
        with pytest.raises(LmmError, match="in its content, expected parts"):
            encode_chat(conversation([part]), "vicuna_v1", tiny_llama)


@pytest.mark.parametrize("text", ["What does the HTML tag <image> do?", "look: a <image> b\nthen answer"])
def test_a_marker_inside_a_sentence_is_not_taken_for_the_picture_without_a_word(text, colour_picture):
    with pytest.warns(UserWarning, match=r"taken for the place of the picture; write \\<image>"):
        as_questions(text, [colour_picture(0)])


@pytest.mark.parametrize(
    "text", ["<image>\nWhat?", "<image> What?", "What is <image>", "What?\n<image>\nAnswer.", "the tag \\<image> here", "no marker"]
)
def test_other_markers_and_words_are_silent(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        user_message(text, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        user_message("is <image> as <image> there?", 2)


def test_the_word_beside_a_picture_leaves_the_picture_in_front(colour_picture):
    (question,), _ = as_questions("What does the tag \\<image> do?", [colour_picture(0)])
    assert question.messages[0]["content"] == "<image>\nWhat does the tag \\<image> do?"
